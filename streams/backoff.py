"""Back-off: how long to wait before the next connection: exponential with full jitter, never less than was asked for.

Full jitter (a draw between zero and the ceiling) spreads many clients best; see "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015. A connection that lived for `healthy_s` starts the count again.
"""

import random
from dataclasses import dataclass, field

WAIT_S_MAX = 3_600.0  # a source that asks for more is asked again after an hour; X's windows are 15 minutes


@dataclass
class Backoff:
    """The waits of one source. With the defaults X is asked at most about 40 times in 15 minutes; it allows 50."""

    rng: random.Random
    first_s: float = 1.0
    ceiling_s: float = 60.0
    healthy_s: float = 20.0
    failures: int = field(default=0, init=False)

    def after(self, lived_s: float, asked_s: float = 0.0) -> float:
        """Give the seconds to wait after a connection that lived so long; `asked_s`: what the source asked for."""
        if lived_s >= self.healthy_s:
            self.failures = 0
        ceiling = min(self.ceiling_s, self.first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return min(WAIT_S_MAX, asked_s) + self.rng.uniform(0.0, ceiling)
