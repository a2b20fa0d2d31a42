"""RFC 3339: a time as a source writes it -> milliseconds since 1970; a time without a zone is no time.

Fractions finer than a millisecond are cut off. Times may lie, far ahead or long ago: they stay claimed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.envelope import Refused
from schemas.facts import MS_MAX

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
LAST = EPOCH + MS_MAX * MS


def time_ms(raw: Mapping[str, Any], key: str) -> int | None:
    """Read the time in a field, None if there is none; Refused (bad-time) unless it has a zone and fits 1970..9999."""
    text = raw.get(key)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None or not EPOCH <= at <= LAST:
            raise ValueError
        return (at - EPOCH) // MS
    except (TypeError, ValueError, OverflowError):
        raise Refused("bad-time", f"{key} is no time with a zone, in 1970 to 9999") from None
