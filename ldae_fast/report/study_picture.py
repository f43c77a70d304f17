"""The picture of a study: accuracies over seeds beside the paper's, a row a line, two scales."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldae_fast.report.canvas import Sheet
from ldae_fast.report.format import one_line
from ldae_fast.report.style import ACCENT, HAIRLINE, INK, MUTED, QUIET

LEFT, PANEL, VALUE, GAP, ROW, HEAD = 40, 560, 200, 60, 66, 150
LETTER = 15.5  # pixels of one at the labels' size, on average


def study_picture(path: str | Path, summary: Mapping) -> Path:
    """summary: what trajectory.json holds. Means as dots, seeds as small ones, their standard
    deviation as a bar; the paper's panel only where it has figures."""
    rows = summary["rows"]
    labels = [one_line(row["label"]) for row in rows]
    words = round(LETTER * max((len(label) for label in labels), default=0)) + 40
    paper = [row["paper"] for row in rows]
    shown = 2 if any(value is not None for value in paper) else 1
    height = ROW * max(1, len(rows))
    sheet = Sheet(LEFT + words + shown * (PANEL + VALUE) + (shown - 1) * GAP + LEFT,
                  HEAD + height + 90)  # fmt: skip
    sheet.write(LEFT, 60, summary["title"], 11, align="left", bold=True)
    for index in range(len(rows) + 1):
        sheet.rule(LEFT, sheet.width - LEFT, HEAD + index * ROW)
    for index, label in enumerate(labels):
        sheet.write(LEFT, HEAD + (index + 0.5) * ROW + 9, label, 8.5, align="left")
    x = LEFT + words
    place = {row["row"]: index for index, row in enumerate(rows)}
    steps = [(place[row["follows"]], place[row["row"]]) for row in rows if row["follows"]]
    ours = [(row["mean"], row["std"], list(row["by_seed"].values())) for row in rows]
    _panel(sheet, x, "this study", ours, [row["state"] for row in rows], steps, ACCENT)
    if shown == 2:
        theirs = [(value, None, []) for value in paper]
        _panel(sheet, x + PANEL + VALUE + GAP, "the paper, ImageNet-1k", theirs,
               ["no figure"] * len(rows), steps, INK)  # fmt: skip
    return sheet.save(path)


def _panel(
    sheet: Sheet,
    x: int,
    title: str,
    rows: Sequence[tuple],
    missing: Sequence[str],
    steps: Sequence[tuple[int, int]],
    color: str,
) -> None:
    """rows: (mean, standard deviation, values); `missing` says why where a mean is None.

    steps: pairs of rows that a line joins.
    """
    sheet.write(x, HEAD - 24, title, 9, color, align="left", bold=True)
    sheet.write(x + PANEL + VALUE, HEAD - 24, "linear top-1, %", 7.5, QUIET, align="right")
    axes = sheet.axes(x, HEAD, PANEL, ROW * len(rows))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=HAIRLINE, linewidth=0.6)
    axes.set(yticks=[], ylim=(len(rows) - 0.5, -0.5))
    for pair in steps:
        ends = [rows[y][0] for y in pair]
        if None not in ends:
            axes.plot([100 * end for end in ends], pair, color=MUTED, linewidth=1.2)
    reach = [100 * v for mean, _, values in rows if mean is not None for v in (mean, *values)]
    for y, (mean, std, values) in enumerate(rows):
        middle = HEAD + (y + 0.5) * ROW + 9
        if mean is None:
            sheet.write(x + PANEL + VALUE, middle, missing[y], 7.5, QUIET, align="right")
            continue
        bar = 100 * (std or 0)
        reach += [100 * mean - bar, 100 * mean + bar]
        axes.plot([100 * v for v in values], [y + 0.27] * len(values), "o", color=color, alpha=0.55,
                  markersize=3.2, markeredgewidth=0)  # fmt: skip
        axes.errorbar(100 * mean, y, xerr=bar or None, fmt="o", color=color, markersize=6.5,
                      elinewidth=1.4, capsize=3)  # fmt: skip
        spread = f" ± {bar:.1f}" if std is not None else ""
        sheet.write(x + PANEL + VALUE, middle, f"{100 * mean:.1f}{spread}", 8.5, align="right")
    low, high = (min(reach), max(reach)) if reach else (0, 1)
    room = max(0.12 * (high - low), 0.5)
    axes.set_xlim(low - room, high + room)
    axes.locator_params(axis="x", nbins=6)
    if not reach:
        axes.set_xticks([])
