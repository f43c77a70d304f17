"""One live line on a terminal, or a plain line now and then where the output is kept in a file."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from ldae_fast.report.format import duration, number, one_line

REDRAW_S = 0.1
CLEAR = "\r\x1b[K"


class Progress:
    """Shows how far some work is: `with Progress("train") as line: line.update(0.2, {...})`.

    A field reads 'name value', or 'value name' where the name is a rate ('images/s'). On a narrow
    terminal the last fields go first, so order them by importance. The time left counts from the
    first update, so that a resumed run is not credited with what it did before.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.label = label
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.live = is_live(self.stream)
        self.wait_s = REDRAW_S if self.live else every_s
        self.start_s = clock()
        self.origin: tuple[float, float] | None = None  # (clock, fraction) at the first update
        self.state: tuple[float | None, Mapping] | None = None
        self.written_s = float("-inf")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(finished=kind is None)

    def update(self, fraction: float | None, fields: Mapping[str, str | float | int]) -> None:
        """Notes the state; formats and writes it only when the line is due.

        `fraction` is the share of the work that is done, 0 to 1, or None where it is not known.
        """
        now = self.clock()
        self.state = (fraction, fields)
        if fraction is not None and (self.origin is None or fraction < self.origin[1]):
            self.origin = (now, fraction)
        if now - self.written_s >= self.wait_s:
            self.written_s = now
            self._show(self._time(now, fraction))

    def note(self, text: str) -> None:
        """Prints a line of its own above the live one."""
        self._write((CLEAR if self.live else "") + one_line(text) + "\n")
        self.written_s = float("-inf") if self.live else self.written_s

    def close(self, finished: bool = True) -> None:
        """Leaves the last state on a finished line; further calls do nothing."""
        if self.state is None:
            return
        elapsed = duration(self.clock() - self.start_s)
        self._show(f"in {elapsed}" if finished else f"stopped after {elapsed}")
        self._write("\n" if self.live else "")
        self.state = None

    def _time(self, now: float, fraction: float | None) -> str:
        if fraction is None:
            return f"{duration(now - self.start_s)} elapsed"
        start, origin = self.origin
        if fraction <= origin:
            return ""
        return f"{duration((now - start) * (1 - min(fraction, 1)) / (fraction - origin))} left"

    def _show(self, when: str) -> None:
        parts = [self.label, *(field_text(*item) for item in self.state[1].items())]
        if self.live:
            self._write(CLEAR + fit(parts, when, columns(self.stream) - 1))
        else:
            self._write("  ".join(filter(None, [*parts, when])) + "\n")

    def _write(self, text: str) -> None:
        """A terminal that went away (a closed connection) must not end the work it reports on."""
        if self.stream is None:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = None


def is_live(stream: TextIO | None) -> bool:
    """Whether a line can be rewritten in place there."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):
        return False


def columns(stream: TextIO | None) -> int:
    """Width of the terminal now; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return 80


def field_text(name: str, value: str | float | int) -> str:
    """'loss 0.1234', and '1,180 images/s' for a rate."""
    return one_line(f"{rate(value)} {name}" if name.endswith("/s") else f"{name} {number(value)}")


def rate(value: str | float | int) -> str:
    """A rate, where decimals below a hundredth of it would only flicker."""
    return f"{value:,.0f}" if isinstance(value, (int, float)) and value >= 100 else number(value)


def fit(parts: list[str], when: str, width: int) -> str:
    """`parts` and `when` on one line of at most `width` characters; whole fields go first."""
    for kept in range(len(parts), 0, -1):
        line = "  ".join(filter(None, [*parts[:kept], when]))
        if len(line) <= width:
            return line
    return parts[0][: max(0, width)]
