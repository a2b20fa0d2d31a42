"""Trouble: which chunks a step failed on, kept over restarts; after ATTEMPTS_MAX they are taken with care.

A step that raises ends its process, for the state may be half changed. Started again from the snapshot it may fail in
the same place; a bug would then stop a partition for ever. So where it failed often enough the one record that fails
is found, and becomes a dead letter that can be replayed when the step is mended (Fold.take_with_care).
"""

import hashlib
import json
from pathlib import Path

ATTEMPTS_MAX = 3  # a full memory or a killed child may pass; a bug in a step does not


class Trouble:
    """Failed stretches of one deployment's partitions, one small file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def failed(self, topic: str, partition: int, start: int, end: int) -> int:
        """Note a failure in [start, end); gives how often this partition failed there."""
        known = self._read(topic, partition)
        again = known is not None and start < known["end"] and known["start"] < end
        attempts = known["attempts"] + 1 if again and known else 1
        path = self._path(topic, partition)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".tmp")
        # Joined while it goes on: chunks are cut otherwise at each start, and the record is somewhere in them.
        first, last = (min(start, known["start"]), max(end, known["end"])) if again and known else (start, end)
        temporary.write_text(json.dumps({"start": first, "end": last, "attempts": attempts}))
        temporary.replace(path)
        return attempts

    def touches(self, topic: str, partition: int, start: int, end: int) -> bool:
        """Say whether [start, end) holds records of a stretch that failed too often."""
        known = self._read(topic, partition)
        return known is not None and known["attempts"] >= ATTEMPTS_MAX and start < known["end"] and known["start"] < end

    def _path(self, topic: str, partition: int) -> Path:
        name = hashlib.sha256(topic.encode()).hexdigest()[:16]
        return self._folder / f"trouble-{name}-{partition}.json"

    def _read(self, topic: str, partition: int) -> dict[str, int] | None:
        """Give what a file holds; one that is damaged is a failure forgotten, which its next one notes again."""
        try:
            found = json.loads(self._path(topic, partition).read_text())
            return {name: int(found[name]) for name in ("start", "end", "attempts")}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
