"""A study's outputs: trajectory.json, .md, .html and .png, each whole or as it was before."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean

from ldae_fast.report.atomic import replace_bytes
from ldae_fast.report.format import finite, percent, span, spoken
from ldae_fast.report.page import document, fact_list, figure, reproduce
from ldae_fast.report.study_picture import study_picture
from ldae_fast.report.tables import column_sides, markdown_table

SCORES = ("", "linear top-1, %", "± over seeds", "each seed", "kNN, %", "the paper, %")
ORDERS = ("better in the paper", "than", "there by", "here by", "p", "n", "here")
CLAIMS = ("claim", "higher", "than", "here by", "p", "n", "verdict")
SAME_FOR_ALL = ("raw_pixels", "colour_histogram")  # baselines that no setting of an arm moves
METHOD = (
    "Each p is one-sided, from a paired t-test over the seeds that both have: runs of one seed "
    "share the order of images, flips, noise levels, the test images, and initial weights where "
    "the networks' shapes do not differ. "
    "Confirmed is p < 0.05, each test on its own, from three seeds on, where both sides are better "
    "than their untrained encoders. ± is the standard deviation over seeds."
)
CAPTION = "Dots are means, small dots single seeds, bars one standard deviation. The scales differ."


def write_reports(out: Path, summary: Mapping) -> None:
    """All four files into `out`, from what is known by now."""
    content = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    replace_bytes(out / "trajectory.json", content.encode())
    study_picture(out / "trajectory.png", summary)
    replace_bytes(out / "trajectory.md", markdown(summary).encode())
    replace_bytes(out / "trajectory.html", document(summary["title"], page(summary, out)))


# --- The same tables in both ----------------------------------------------------------------------


def score_rows(summary: Mapping) -> list[tuple[str, ...]]:
    return [
        (row["label"], hundredths(row["mean"]) or row["state"], hundredths(row["std"]),
         each_seed(row), hundredths(row["knn_mean"]), hundredths(row["paper"]))
        for row in summary["rows"]
    ]  # fmt: skip


def score_table(summary: Mapping) -> tuple[list[list[str]], list[str]]:
    """Rows and header, without what this study has nothing of: figures of the paper, seeds."""
    rows = score_rows(summary)
    there = [at for at, _ in enumerate(SCORES) if any(row[at] for row in rows)]
    return [[row[at] for at in there] for row in rows], [SCORES[at] for at in there]


def each_seed(row: Mapping) -> str:
    """The scores of several seeds, so that a reader can test them anew; one is the mean itself."""
    scores = [hundredths(row["by_seed"][seed]) for seed in sorted(row["by_seed"])]
    return ", ".join(scores) if len(scores) > 1 else ""


def claim_rows(summary: Mapping) -> list[tuple[str, ...]]:
    return [
        (f"{c['name']}: {c['claim']}", c["better"], c["worse"], *tested(c))
        for c in summary["hypotheses"]
    ]


def order_rows(summary: Mapping) -> list[tuple[str, ...]]:
    return [
        (o["better_label"], o["worse_label"], signed(o["paper_difference"]), *tested(o))
        for o in summary["orderings"]
    ]


def tested(found: Mapping) -> tuple[str, ...]:
    """difference, p, n, verdict."""
    p = found["p"]
    words = "" if p is None else f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}"
    return signed(found["difference"]), words, str(found["n"]), found["verdict"]


def hundredths(fraction: float | None) -> str:
    value = finite(fraction)
    return "" if value is None else f"{100 * value:.1f}"


def signed(fraction: float | None) -> str:
    value = finite(fraction)
    return "" if value is None else f"{100 * value + 0.0:+.1f}"


def run_facts(summary: Mapping) -> list[tuple[str, str]]:
    asked = next((k for k in ("steps", "epochs", "minutes") if summary[k]), "")
    budget = f"{summary[asked]:,.10g} {asked}" if asked else ""
    times = [run["seconds"] for run in summary["runs"] if run["seconds"]]
    facts = [
        ("data", summary["data"]),
        ("image size", str(summary["image_size"])),
        ("each run", budget),
        ("runs finished", f"{summary['finished']} of {summary['of']}"),
    ]
    return facts + ([("trained for", span(sum(times)))] if times else [])


def beside(summary: Mapping) -> str:
    """One sentence on what needs no training, '' where nothing was measured."""
    runs = [run for run in summary["runs"] if run["baselines"]]
    if not runs:
        return ""
    parts = [
        f"{spoken(name)} {percent(mean(values))}"
        for name in (*SAME_FOR_ALL, "untrained")
        if (values := [r["baselines"][name] for r in runs if name in r["baselines"]])
    ]
    parts.append(f"chance {percent(runs[0]['chance'])}")
    return f"The same probe without training: {', '.join(parts)}."


def perceptual(summary: Mapping) -> str:
    """A sentence on what the perceptual losses compared by, '' where no run had one."""
    rows: dict[str, list[str]] = {}
    for run in summary["runs"]:
        if run.get("perceptual") and run["row"] not in rows.setdefault(run["perceptual"], []):
            rows[run["perceptual"]].append(run["row"])
    parts = [f"by {name} ({', '.join(of)})" for name, of in rows.items()]
    return f"The tokenizers' perceptual loss compares {', '.join(parts)}." if parts else ""


def failures(summary: Mapping) -> list[tuple[str, str]]:
    failed = [(run["run"], run["problem"]) for run in summary["runs"] if "problem" in run]
    return failed + [(f"{arm}, left out", why) for arm, why in summary["left_out"].items()]


# --- Markdown -------------------------------------------------------------------------------------


def markdown(summary: Mapping) -> str:
    parts = [
        f"# {summary['title']}",
        "\n".join(f"* {label}: {words}" for label, words in run_facts(summary)),
        summary["note"],
        markdown_table(*score_table(summary)),
        beside(summary),
        perceptual(summary),
        "![Linear top-1 of each row](trajectory.png)",
    ]
    if summary["hypotheses"]:
        parts += ["## Claims", markdown_table(claim_rows(summary), CLAIMS)]
    if summary["orderings"]:
        parts += ["## The paper's orderings", markdown_table(order_rows(summary), ORDERS)]
    if summary["hypotheses"] or summary["orderings"]:
        parts.append(METHOD)
    if failed := failures(summary):
        parts += ["## Not measured", "\n".join(f"* {name}: {why}" for name, why in failed)]
    parts += ["## Run it again", f"```\n{summary['command']}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


# --- Page -----------------------------------------------------------------------------------------


def page(summary: Mapping, out: Path) -> list[str]:
    unfinished = summary["finished"] < summary["of"]
    ran = [claim for claim in summary["hypotheses"] if claim["n"]]
    parts = [
        f"<h1>{escape(summary['title'])}</h1><p>{escape(lead(summary))}</p>",
        *(f'<p class="verdict">{escape(claim_words(claim))}</p>' for claim in ran),
        fact_list(run_facts(summary)),
        '<p class="quiet">This study is not finished.</p>' if unfinished else "",
        f'<p class="quiet">{escape(summary["note"])}</p>',
        figure(out / "trajectory.png", "", CAPTION),
        "<h2>Rows</h2>" + html_table(*score_table(summary)),
        f'<p class="quiet">{escape(beside(summary))}</p>',
        f'<p class="quiet">{escape(perceptual(summary))}</p>',
    ]
    if summary["orderings"]:
        parts.append("<h2>The paper's orderings</h2>" + html_table(order_rows(summary), ORDERS))
    if summary["hypotheses"]:
        parts.append("<h2>Claims</h2>" + html_table(claim_rows(summary), CLAIMS))
    if summary["hypotheses"] or summary["orderings"]:
        parts.append(f'<p class="quiet">{escape(METHOD)}</p>')
    if failed := failures(summary):
        lines = "".join(f"<li>{escape(f'{name}: {why}')}</li>" for name, why in failed)
        parts.append(f"<h2>Not measured</h2><ul>{lines}</ul>")
    return [*parts, reproduce(summary["command"])]


def lead(summary: Mapping) -> str:
    beside_paper = any(row["paper"] is not None for row in summary["rows"])
    return "each row beside the paper's" if beside_paper else "the paper gives no figures for it"


def claim_words(claim: Mapping) -> str:
    """'H2, many noise levels beat one: confirmed (+2.1 points, p = 0.012, n = 3)'."""
    difference, p, n, verdict = tested(claim)
    measured = f"{difference} points, " if difference else ""
    chance = f"p = {p}, " if p else ""
    return f"{claim['name']}, {claim['claim']}: {verdict} ({measured}{chance}n = {n})"


def html_table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Figures at the right of their column, words at the left."""
    kinds = ["figure" if side == ">" else "words" for side in column_sides(rows, len(head))]

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (f'<{tag} class="{kind}">{escape(c)}</{tag}>' for kind, c in zip(kinds, cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<table class="columns">{line("th", head)}{body}</table>'
