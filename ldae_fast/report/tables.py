"""A run's result in words and figures: for a terminal, for Markdown, and as rows for the page."""

import re
import textwrap
from collections.abc import Mapping, Sequence

from ldae_fast.report.format import finite, number, one_line, percent, points, span, spoken

TRAINED = "trained encoder"
CHANCE = "chance"
AHEAD = "trained is ahead by"
WIDTH = 88
FIGURE = re.compile(r"[-+]?[\d,.]*\d[\d,.]*( %)?")


def probe_rows(result: Mapping) -> list[tuple[str, float | None, float | None]]:
    """(name, linear top-1, lead of the trained encoder over it), fractions of 1 or None.

    The trained encoder first, then the baselines from the best down, then chance.
    """
    trained = finite(result.get("linear_top1"))
    baselines = {spoken(k): finite(v) for k, v in (result.get("baselines") or {}).items()}
    ranked = sorted(baselines.items(), key=lambda row: (row[1] is None, -(row[1] or 0)))
    if finite(result.get("chance")) is not None:
        ranked.append((CHANCE, finite(result["chance"])))
    leads = [None if None in (trained, top1) else trained - top1 for _, top1 in ranked]
    return [(TRAINED, trained, None), *((*row, lead) for row, lead in zip(ranked, leads))]


def facts(result: Mapping) -> list[tuple[str, str]]:
    """(label, words) of what was run and what came out, for the keys that are there."""
    spelled = [
        ("recipe", "recipe", one_line),
        ("data", "data", one_line),
        ("perceptual loss by", "perceptual", one_line),
        ("steps", "steps", number),
        ("images", "images", number),
        ("time", "seconds", span),
        ("linear top-1", "linear_top1", percent),
        ("with EMA weights", "ema_linear_top1", percent),
        ("kNN top-1", "knn_top1", percent),
        ("effective rank", "effective_rank", lambda rank: f"{rank:,.1f}"),
    ]
    there = [(label, result.get(key), words) for label, key, words in spelled]
    there = [item for item in there if item[1] is not None]
    return [(label, words(value)) for label, value, words in there]


def result_table(result: Mapping) -> str:
    """`result.json` as aligned text: what was run, the linear probe beside its baselines, verdict.

    Accuracies in it are fractions of 1; differences are shown in percentage points.
    """
    ran = [fact for fact in facts(result) if fact[0] != "linear top-1"]
    head = ("linear probe", "top-1", AHEAD if len(probe_rows(result)) > 1 else "")
    scores = [(name, percent(top1), points(lead)) for name, top1, lead in probe_rows(result)]
    lines = [*aligned(ran, "<<"), *([""] if ran else []), *aligned([head, *scores], "<>>")]
    for key in ("verdict", "note"):
        if result.get(key):
            lines += ["", *textwrap.wrap(one_line(result[key]), WIDTH)]
    return "\n".join(lines)


def finetune_table(result: Mapping) -> str:
    """A fine-tuning run's accuracies as aligned text, the weights beside their moving average."""
    rows = [("fine-tuning, top-1", "trained", "EMA")]
    for label, key, images in (
        ("test images", "finetune_top1", "test_images"),
        ("held-out training images", "held_out_top1", "held_out_images"),
    ):
        if result[images]:
            scores = (percent(result[name]) for name in (key, f"ema_{key}"))
            rows.append((f"{number(result[images])} {label}", *scores))
    rows.append((CHANCE, percent(result["chance"]), ""))
    note = ["", *textwrap.wrap(result["note"], WIDTH)] if result["note"] else []
    return "\n".join([*aligned(rows, "<>>"), *note])


def markdown_table(rows: Sequence[Sequence], header: Sequence[str]) -> str:
    """A Markdown table that also lines up as plain text; columns of figures align to the right."""
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    sides = column_sides(cells[1:], len(header))
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    rule = ["-" * (w - 1) + (":" if side == ">" else "-") for w, side in zip(widths, sides)]
    lines = [[f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths)] for row in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def column_sides(rows: Sequence[Sequence[str]], count: int) -> list[str]:
    """'>' for each of `count` columns of figures, '<' for the others.

    A word here and there ("waiting") does not make it a column of words: most of its cells do.
    """
    columns = [[bool(FIGURE.fullmatch(row[at])) for row in rows if row[at]] for at in range(count)]
    return [">" if 2 * sum(figures) > len(figures) else "<" for figures in columns]


def _cell(value: object) -> str:
    words = f"{value:.6g}" if isinstance(value, float) else number(value)
    return "" if value is None else words.replace("|", "\\|")


def aligned(rows: list[tuple[str, ...]], sides: str) -> list[str]:
    """Lines of columns two spaces apart, each to its side, '<' or '>'."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths)) for row in rows)
    return [line.rstrip() for line in lines]
