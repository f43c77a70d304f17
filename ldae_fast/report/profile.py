"""Where a train step's time went, against what the device allows: a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldae_fast.report.canvas import Sheet
from ldae_fast.report.format import number, percent
from ldae_fast.report.style import ACCENT, INK, MUTED, QUIET
from ldae_fast.report.tables import aligned

MARGIN, ROW = 40, 62  # pixels
HEAD = ("part", "calls", "ms", "share", "GFLOP", "MB", "roofline ms", "of roofline")


@dataclass(frozen=True)
class Part:
    """A row, of one step. traffic (bytes) and flop: needed at least; None where nobody can say."""

    name: str
    seconds: float
    calls: float | None = None
    traffic: int | None = None
    flop: int | None = None


@dataclass(frozen=True)
class StepProfile:
    """parts add up to step_s, the mean of the steps; copy_rate in bytes/s, product_rate in FLOP/s.

    plain_s: a step without the profiler, or None. title: what was run, where.
    """

    title: str
    steps: str  # in words
    parts: Sequence[Part]
    step_s: float
    plain_s: float | None
    copy_rate: float
    product_rate: float

    def roofline(self, part: Part) -> float | None:
        """Seconds that the device needs at least for a part."""
        if part.traffic is None or part.flop is None:
            return None
        return max(part.traffic / self.copy_rate, part.flop / self.product_rate)

    def total(self) -> Part:
        known = [p for p in self.parts if p.traffic is not None and p.flop is not None]
        seconds = sum(p.seconds for p in self.parts)
        traffic, flop = sum(p.traffic for p in known), sum(p.flop for p in known)
        return Part("a step", seconds, None, traffic, flop)

    def bound(self) -> float:
        """Seconds that a step's known parts need at least, one after the other."""
        return sum(self.roofline(part) or 0.0 for part in self.parts)


def profile_table(profile: StepProfile) -> str:
    """The parts as aligned text, the step below them, and what was measured above."""
    rows = [row(part, profile, profile.roofline(part)) for part in profile.parts]
    lines = aligned([HEAD, *rows, row(profile.total(), profile, profile.bound())], "<>>>>>>>")
    return "\n".join([*heading(profile), "", *lines[:-1], "-" * len(lines[0]), lines[-1]]) + "\n"


def heading(profile: StepProfile) -> list[str]:
    step = f"{profile.steps}: {number(1e3 * profile.step_s)} ms a step under the profiler"
    if profile.plain_s is not None:
        step += f", {number(1e3 * profile.plain_s)} ms without it"
    rates = (
        f"roofline: {number(profile.copy_rate / 1e9)} GB/s of a copy, "
        f"{number(profile.product_rate / 1e12)} TFLOP/s of a product, measured in this run"
    )
    return [profile.title, step, rates]


def row(part: Part, profile: StepProfile, bound: float | None) -> tuple[str, ...]:
    unknown = bound is None
    return (
        part.name,
        "" if part.calls is None else f"{part.calls:,.0f}",
        f"{1e3 * part.seconds:,.2f}",
        percent(part.seconds / profile.step_s),
        "" if not part.flop else f"{part.flop / 1e9:,.2f}",
        "" if not part.traffic else f"{part.traffic / 1e6:,.1f}",
        "" if unknown else f"{1e3 * bound:,.2f}",
        "" if unknown or part.seconds <= 0 else f"{100 * bound / part.seconds:,.0f} %",
    )


def profile_picture(path: str | Path, profile: StepProfile) -> Path:
    """A bar a part: the time it took, and in it the time that the roofline allows."""
    parts = list(profile.parts)
    left, wide = 60 + 17 * max(len(part.name) for part in parts), 760
    sheet = Sheet(left + wide + 360, 200 + ROW * len(parts))
    sheet.write(MARGIN, 64, f"Where a step's {number(1e3 * profile.step_s)} ms went", 10.5,
                align="left", bold=True)  # fmt: skip
    sheet.write(MARGIN, 100, profile.title, 7.5, QUIET, align="left")
    axes = sheet.axes(left, 170, wide, ROW * len(parts))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set(xticks=[], yticks=range(len(parts)), ylim=(len(parts) - 0.5, -0.5))
    axes.set_yticklabels([part.name for part in parts], fontsize=8.5, color=INK)
    bounds = [profile.roofline(part) or 0.0 for part in parts]
    axes.set_xlim(0, max([*bounds, *(part.seconds for part in parts), 1e-9]))
    axes.barh(range(len(parts)), [p.seconds for p in parts], height=0.66, color=MUTED)
    axes.barh(range(len(parts)), bounds, height=0.24, color=ACCENT)
    for y, part in enumerate(parts):
        axes.annotate(words(part, profile), (max(part.seconds, bounds[y]), y), (7, 0), va="center",
                      textcoords="offset points", fontsize=8.5, color=INK)  # fmt: skip
    legend(sheet, left, 150)
    return sheet.save(path)


def words(part: Part, profile: StepProfile) -> str:
    bound, share = profile.roofline(part), percent(part.seconds / profile.step_s)
    if bound is None or part.seconds <= 0:
        return share
    return f"{share}  ·  {100 * bound / part.seconds:,.0f} % of roofline"


def legend(sheet: Sheet, x: int, y: int) -> None:
    for color, height, text in ((MUTED, 22, "measured"), (ACCENT, 8, "the roofline's least")):
        rgb = tuple(bytes.fromhex(color[1:]))
        top = y - 8 - height // 2
        sheet.pixels[top : top + height, x : x + 44] = rgb
        sheet.write(x + 58, y, text, 7.5, QUIET, align="left")
        x += 90 + 15 * len(text)
