"""Prints what the benchmarks recorded as an aligned table, and draws it.

    python bench/table.py F [--png OUT]     F: the file that pytest --benchmark-json=F wrote

What could be measured on some machine but is not in F stands below, as "not measured", and so do
the rows that the machine was too unquiet for.
"""

import argparse
import json
import math
from pathlib import Path

import contenders

MISSING = "not measured"
UNQUIET = 1.5  # the slowest fifth of some contender's calls over its fastest fifth
MUST = {"x_eager": "the reference", "x_compile": "torch.compile of the reference"}
COLUMNS = (  # key, heading, format
    ("op", "op", "{}"),
    ("impl", "impl", "{}"),
    ("case", "case", "{}"),
    ("dtype", "dtype", "{}"),
    ("mode", "mode", "{}"),
    ("p50_us", "p50 us", "{:,.1f}"),
    ("p20_us", "p20", "{:,.1f}"),
    ("p80_us", "p80", "{:,.1f}"),
    ("gbps", "GB/s", "{:,.1f}"),
    ("tflops", "TFLOP/s", "{:.3g}"),
    ("pct_of_peak", "% of peak", "{:.0f}"),
    ("x_eager", "x eager", "{:.2f}"),
    ("x_compile", "x compile", "{:.2f}"),
    ("x_peers", "x peers", "{}"),
    ("err_ratio", "err ratio", "{:.2f}"),
    ("peak_mib", "peak MiB", "{:,.1f}"),
)
IDENTITY = 5  # of these, the first that name a row; `dtype` is known only once measured
EAGER, COMPILED, INK, QUIET, LINE = "#c3cad3", "#2f5fd0", "#1d2229", "#69727d", "#dfe3e8"


def rows_of(record: dict) -> list[dict]:
    """What was measured, then every other row of the cases modules with its figures missing."""
    measured = [b["extra_info"] for b in record["benchmarks"] if "p50_us" in b["extra_info"]]
    there = {(r["op"], r["impl"], r["case"], r["mode"]) for r in measured}
    asked = [r for r in contenders.rows() if r[3] != "bwd" or r[2].startswith("gpu-")]
    missing = [dict(zip(("op", "impl", "case", "mode"), r)) for r in asked if r not in there]
    served = {(r[0], r[2]) for r in asked}
    for op in contenders.op_names():  # a case that no implementation of today is for
        bare = [case for case in contenders.cases(op).BENCH if (op, case) not in served]
        missing += [{"op": op, "impl": "-", "case": case, "mode": "-"} for case in bare]
    return sorted(measured + missing, key=lambda r: (r["op"], r["case"], r["impl"], r["mode"]))


def cell(row: dict, key: str, form: str) -> str:
    value = row.get(key)
    if isinstance(value, dict):
        return ", ".join(f"{name} {x:.2f}" for name, x in value.items()) or "-"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return form.format(value)


def line(row: dict) -> str:
    """One row for itself, each figure with its name."""
    named = [cell(row, key, form) for key, _, form in COLUMNS[:IDENTITY]]
    figures = [f"{heading} {cell(row, key, form)}" for key, heading, form in COLUMNS[IDENTITY:]]
    return f"{' '.join(named)}: {', '.join(figures)}"


def unmeasured(rows: list[dict]) -> list[str]:
    """A line for all implementations of an op that lack the same cases in the same modes."""
    modes: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if "p50_us" not in row:
            modes.setdefault((row["op"], row["impl"], row["case"]), []).append(row["mode"])
    cases: dict[tuple[str, str], list[str]] = {}
    for (op, impl, case), lacking in modes.items():
        cases.setdefault((op, impl), []).append(f"{case} {', '.join(lacking)}")
    alike: dict[tuple[str, str], list[str]] = {}
    for (op, impl), lacking in cases.items():
        alike.setdefault((op, "; ".join(lacking)), []).append(impl)
    return [f"{MISSING}: {op} {', '.join(impls)}: {what}" for (op, what), impls in alike.items()]


def unquiet(row: dict) -> bool:
    return row.get("spread", 1.0) > UNQUIET


def doubtful(rows: list[dict]) -> list[str]:
    """A line that names the rows in which times moved by more than UNQUIET."""
    named = [
        f"{row['op']} {row['impl']} {row['case']} {row['mode']} ({row['spread']:.1f}x)"
        for row in rows
        if unquiet(row)
    ]
    return [f"unquiet, p80 over p20 of some contender: {', '.join(named)}"] if named else []


def table(rows: list[dict]) -> str:
    """Aligned columns, figures to the right; what is doubtful and what was not measured below."""
    lines = [[heading for _, heading, _ in COLUMNS]]
    lines += [[cell(r, key, f) for key, _, f in COLUMNS] for r in rows if "p50_us" in r]
    widths = [max(map(len, column)) for column in zip(*lines)]
    left = {key for key, _, _ in COLUMNS[:IDENTITY]} | {"x_peers"}
    sides = ["<" if key in left else ">" for key, _, _ in COLUMNS]
    aligned = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths)).rstrip() for line in lines
    ]
    return "\n".join([*aligned, *doubtful(rows), *unmeasured(rows)])


def rates(record: dict) -> str:
    """The machine's own rates, that "% of peak" is a share of."""
    infos = [b["extra_info"] for b in record["benchmarks"] if "copy_gbps" in b["extra_info"]]
    said = {
        f"{i['device']}: copy {i['copy_gbps']:,.0f} GB/s, product for {i['dtype']} "
        f"{i['gemm_tflops']:,.3g} TFLOP/s"
        for i in infos
    }
    note = "A copy also reads what it writes over; an update in place does not, and may pass 100 %."
    return "\n".join(["Measured in this run:", *sorted(said), note]) if said else ""


def picture(rows: list[dict], path: Path) -> None:
    """One pair of bars a row: times faster than eager and than torch.compile, on one log axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if "x_eager" in r]
    if not rows:
        print("no picture: nothing was measured")
        return
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.46 * len(rows)), layout="constrained")
    ratios = [r[key] for r in rows for key in MUST if r[key]]
    top, low = max(ratios), min(1.0, *ratios) * 0.9
    for i, row in enumerate(rows):
        for shift, key, colour in ((-0.19, "x_eager", EAGER), (0.19, "x_compile", COMPILED)):
            value = row[key]
            if value is None:  # torch.compile fails there
                continue
            axes.barh(i + shift, value - 1, 0.34, left=1, color=colour, zorder=2)
            beside = (4, "left") if value >= 1 else (-4, "right")
            words = f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
            axes.annotate(words, (value, i + shift), textcoords="offset points", va="center",
                          fontsize=8, color=INK, xytext=(beside[0], 0), ha=beside[1])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlim(low * 0.75, top * 1.35)  # room for a figure beside the longest bar
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if low * 0.88 <= t <= top * 1.3]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks], fontsize=8, color=QUIET)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    names = [f"{r['op']}\n{r['impl']} · {r['case']} · {r['dtype']} · {r['mode']}"
             f"{' · unquiet' if unquiet(r) else ''}" for r in rows]  # fmt: skip
    axes.set_yticks(range(len(rows)), names, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.axvline(1, color=INK, linewidth=0.9, zorder=3)
    axes.grid(axis="x", color=LINE, linewidth=0.7, zorder=0)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (EAGER, COMPILED)]
    labels = [f"than {MUST[k]}" for k in ("x_eager", "x_compile")]
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle("Times faster (right of the line) or slower", x=0.01, ha="left",
                    fontsize=11, color=INK)  # fmt: skip
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, metavar="F")
    parser.add_argument("--png", type=Path, metavar="OUT", help="draw the ratios there")
    args = parser.parse_args()
    try:
        record = json.loads(args.record.read_text())
        rows = rows_of(record)
    except (OSError, ValueError, LookupError, TypeError) as problem:
        parser.error(
            f"F must be what pytest --benchmark-json=F wrote; got {args.record}: {problem}"
        )
    print(table(rows))
    print(f"\n{rates(record)}")
    if args.png:
        picture(rows, args.png)


if __name__ == "__main__":
    main()
