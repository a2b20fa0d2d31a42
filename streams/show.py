"""Show: progress and tables on a terminal, plain lines anywhere else.

Texts from posts and models are data: control characters are taken out before they reach a terminal, and rich's own
markup is off for them.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

BARS = "▁▂▃▄▅▆▇█"


def clean(text: object) -> str:
    """Give a text without control characters (ANSI escapes begin with one)."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


class Screen:
    """Where a command speaks."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.began = time.monotonic()
        self._console = None
        if self.terminal:
            from rich.console import Console

            self._console = Console(highlight=False, markup=False)

    def say(self, text: str = "") -> None:
        """Print one line."""
        print(clean(text), flush=True)

    def head(self, title: str) -> None:
        """Begin a part, with the seconds since the start."""
        line = f"{time.monotonic() - self.began:6.1f} s  {title}"
        if self._console is not None:
            self._console.print(f"\n{clean(line)}", style="bold cyan")
        else:
            self.say(f"\n{line}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows under columns; numbers to the right."""
        rows = list(rows)
        texts = [[clean(cell) if not isinstance(cell, float) else f"{cell:.3f}" for cell in row] for row in rows]
        numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))] if texts else []
        widths = [
            max(len(column), *(len(row[i]) for row in texts)) if texts else len(column)
            for i, column in enumerate(columns)
        ]
        numeric = numeric or [False] * len(columns)

        def line(cells: Sequence[str]) -> str:
            pieces = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)]
            return "  " + "  ".join(pieces).rstrip()

        self.say(line(columns))
        for row in texts:
            self.say(line(row))

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[float, float], None]]:
        """Show how far a long piece of work is: call the function with (done, of); `of` 0 says that nobody knows."""
        if self._console is None:
            yield self._plain(what)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=self._console, transient=True)
        with bar:
            task = bar.add_task(what, total=None)

            def advance(done: float, of: float) -> None:
                bar.update(task, completed=int(done), total=int(of) or None)

            yield advance

    def _plain(self, what: str) -> Callable[[float, float], None]:
        told = time.monotonic()

        def advance(done: float, of: float) -> None:
            nonlocal told
            if time.monotonic() - told >= 5.0:
                told = time.monotonic()
                self.say(f"  {what}: {done:.0f}{f' of {of:.0f}' if of else ''}")

        return advance


def spark(values: Sequence[float]) -> str:
    """Draw numbers as one line of bars, lowest to highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * (value - low) / span))] for value in values)
