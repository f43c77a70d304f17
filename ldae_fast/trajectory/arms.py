"""What a study compares: the rows of the path, or the arms of a named sweep."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..config import Config, SettingError
from ..recipes import ROWS, SCALE_COLUMNS, SIZE_COLUMNS
from ..recipes import SIZES as NETWORKS
from . import paper

WIDTHS = (8, 16, 32, 64, 128)  # values per token that Table 2 compares
SMALL_SIZES = ("tiny", "small", "S")  # the paper's sizes are out of proportion below 128 pixels


@dataclass(frozen=True)
class Arm:
    """One thing that is trained and measured, or, with `of`, a way to probe what another trained.

    settings: by dotted name. paper: its linear top-1 there, a fraction. budget: times the study's.
    """

    name: str  # of its folders
    label: str
    recipe: str
    settings: dict[str, str] = field(default_factory=dict)
    paper: float | None = None
    budget: float = 1.0
    of: "Arm | None" = None


@dataclass(frozen=True)
class Hypothesis:
    """A claim stated before any run: `better` has the higher linear top-1 than `worse`.

    Both are arms, or words for a side of several `pairs` (better, worse) of arms; a seed counts
    once, by its mean over those that it has.
    """

    name: str
    claim: str
    better: str
    worse: str
    pairs: tuple[tuple[str, str], ...] = ()


# Arms that are no rows. Pixels as a tokenizer drop no component that the loss could weigh less, so
# what is held against them weighs all alike too.
VARIANTS = {
    "even": {"objective.rest_weight": "1"},
    "pixel": {"tokenizer.kind": "pixel"},
    "mae": {},
}
HYPOTHESES = (
    Hypothesis("H1", "noise in a low-dimensional latent space beats noise on pixels, all else the "
               "same", "even", "pixel"),
    Hypothesis("H2", "many noise levels beat one", "row12", "row13"),
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Arms, and the pairs of them (before, after) whose order the paper tells.

    optional: an arm that the settings do not admit is left out; otherwise it fails like a run.
    """

    title: str
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    optional: bool = False

    def named(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def fraction(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)


# --- The path -------------------------------------------------------------------------------------


def path_arm(row: str) -> Arm:
    recipe, step, top1 = paper.PATH[row]
    if row in VARIANTS:
        return Arm(row, step, recipe, VARIANTS[row])
    return Arm(recipe, f"{row}  {step}", recipe, {}, fraction(top1))


def path_study(rows: Sequence[str]) -> Study:
    """The rows in the paper's order; each is held against the last one before it that is there."""
    rows = [row for row in paper.PATH if row in rows]
    arms = tuple(map(path_arm, rows))
    there = {arm.name for arm in arms}
    chain = [arm.name for row, arm in zip(rows, arms) if row.isdigit() and row != "13"]
    pairs = (*neighbours(chain), ("row12", "row13"), ("row12", "ldae-aug"))
    return Study(
        "From a diffusion model to l-DAE",
        arms,
        tuple(pair for pair in pairs if there.issuperset(pair)),
        HYPOTHESES,
    )


def rows_of(names: Iterable[str]) -> list[str]:
    """The rows of the path whose arms are named so."""
    return [row for row in paper.PATH if path_arm(row).name in names]


def default_rows() -> list[str]:
    """Rows 0 to 13, as far as there are recipes for them, and what H1 compares."""
    beside = ("12+", "mae")
    there = (row for row, (recipe, *_) in paper.PATH.items() if recipe in ROWS)
    return [row for row in there if row not in beside]


def parse_rows(text: str) -> list[str]:
    """'7,10-13,pixel' -> the rows, each once; SettingError for what is no row, or not there yet."""
    rows: list[str] = []
    for word in filter(None, (w.strip().removeprefix("row") for w in text.split(","))):
        first, dash, last = word.partition("-")
        if dash and first.isdigit() and last.isdigit():
            ends = [known_row(first), known_row(last)]
            wanted = [str(n) for n in range(int(ends[0]), int(ends[1]) + 1)]
        else:
            wanted = [known_row(word)]
        if not wanted:
            raise SettingError(f"--rows {word}: the first row must not come after the last")
        rows += [known_row(row) for row in wanted if row not in rows]
    if not rows:
        raise SettingError(f"--rows must name rows such as 7,10-13; got {text!r}")
    return rows


def known_row(row: str) -> str:
    there = [name for name, (recipe, *_) in paper.PATH.items() if recipe in ROWS]
    if row in there:
        return row
    near = difflib.get_close_matches(row, there, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SettingError(f"--rows: there is no row {row!r}; the rows are {', '.join(there)}{hint}")


def parse_seeds(text: str, arms: Iterable[Arm]) -> dict[str, int]:
    """'3' or '7:3,10:5' -> how many seeds each arm gets, by name; those not named get one."""
    counts = {arm.name: 1 for arm in arms}
    if ":" not in text:
        return dict.fromkeys(counts, count_of(text))
    for pair in text.split(","):
        name, _, count = pair.strip().partition(":")
        name = {"12+": "ldae-aug"}.get(name, f"row{name}" if f"row{name}" in counts else name)
        if name not in counts:
            near = difflib.get_close_matches(name, counts, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(counts)}"
            raise SettingError(f"--seeds: this study has no {name!r}{hint}")
        counts[name] = count_of(count)
    return counts


def count_of(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= 1000:
        raise SettingError(f"--seeds must be a number from 1 to 1000, or ROW:NUMBER; got {text!r}")
    return int(text)


def neighbours(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(names))


# --- Sweeps ---------------------------------------------------------------------------------------
# Each takes the settings of l-DAE at the study's image size, and may list arms that this size does
# not admit: the study leaves those out and says why.


def table2(base: Config) -> Study:
    arms, pairs = [], []
    for (kind, label, recipe), by_width in paper.TABLE2.items():
        row = [
            Arm(f"{kind}-d{d}", f"{label}, d = {d}", recipe,
                {"tokenizer.d": str(d)}, fraction(top1))
            for d, top1 in by_width.items()
        ]  # fmt: skip
        arms += row
        pairs += neighbours([arm.name for arm in row])
    return Study("Tokenizer and values per token (Table 2)", tuple(arms), tuple(pairs))


def fig5(base: Config) -> Study:
    """Image sides up to the study's own, each with the network of the study's."""
    if base.data.image_size < 64:
        raise SettingError(
            "--table fig5 compares image sides up to --image-size, from 32 pixels on, so it needs "
            f"64 or more; got {base.data.image_size}"
        )
    same = {name: read(base, name) for name in (*SIZE_COLUMNS, *SCALE_COLUMNS[2:])}
    arms = [
        Arm(f"pixel-{side}-{patch}", f"{side} pixels, patch {patch}, {3 * patch**2} values",
            "row7", {"tokenizer.kind": "pixel", "data.image_size": str(side),
                     "model.patch": str(patch), **same}, fraction(top1))
        for (side, patch), top1 in paper.FIG5.items() if side <= base.data.image_size
    ]  # fmt: skip
    title = "No tokenizer: noise on pixels, always 256 tokens (Fig. 5)"
    return Study(title, tuple(arms), tuple(neighbours([arm.name for arm in arms])))


def probe_t(base: Config) -> Study:
    arms, pairs = [], []
    for kind, by_level in paper.PROBE_T.items():
        words = {"raw": "clean", "noisy": "noisy"}[kind]
        row = [
            Arm(f"{words}-t{t}", f"{words} input, t = {t}", "row12",
                {"evaluate.t": str(t), "evaluate.input": kind}, fraction(top1), of=path_arm("12"))
            for t, top1 in by_level.items() if t <= base.noise.levels
        ]  # fmt: skip
        arms += row
        pairs += neighbours([arm.name for arm in row])
    return Study("Noise level and input while probing", tuple(arms), tuple(pairs))


def cut(base: Config) -> Study:
    """Where the encoder ends: around the middle, where it was cut in training."""
    depth, blocks = base.model.depth, base.model.depth + base.model.decoder_depth
    by_share = {block / 24: top1 for block, top1 in paper.CUT_OF_24.items()}
    arms = [
        Arm(f"block{at}", f"encoder ends after block {at} of {blocks}", "row12",
            {"evaluate.cut": str(at)}, fraction(by_share.get(at / blocks)), of=path_arm("12"))
        for at in range(max(1, depth - 3), min(blocks, depth + 3) + 1)
    ]  # fmt: skip
    return Study("Encoder cut", tuple(arms), tuple(neighbours([arm.name for arm in arms])))


def augment(base: Config) -> Study:
    arms = path_arm("12"), path_arm("12+")
    return Study("Crops in pre-training", arms, (("row12", "ldae-aug"),))


def epochs(base: Config) -> Study:
    arms = [
        Arm(f"budget-x{times}", f"{times} x the budget", "ldae-aug", {}, fraction(top1), times)
        for times, top1 in paper.EPOCHS.items()
    ]
    return Study("Length of pre-training", tuple(arms), tuple(neighbours([a.name for a in arms])))


def size(base: Config) -> Study:
    small = base.data.image_size < 128
    by_size = dict.fromkeys(SMALL_SIZES) if small else paper.SIZES
    arms = [
        Arm(f"size-{name}", f"size {name}", "ldae-aug",
            {k: str(v) for k, v in zip(SIZE_COLUMNS, NETWORKS[name])}, fraction(top1))
        for name, top1 in by_size.items()
    ]  # fmt: skip
    return Study(
        "Size of encoder and decoder", tuple(arms), tuple(neighbours([a.name for a in arms]))
    )


def scale(base: Config) -> Study:
    """What the paper leaves open: the scale of the latents. No figure of it to compare with."""
    full = str(3 * base.model.patch**2)
    arms = [
        Arm(f"pca-d{d}-{kind}", f"PCA, d = {d}, {kind}", "row12",
            {"tokenizer.d": str(d), "tokenizer.scale": kind})
        for d in WIDTHS for kind in ("global", "whiten")
    ]  # fmt: skip
    arms += [
        Arm("pca-full-whiten", f"PCA, all {full}, whiten", "row12",
            {"tokenizer.d": full, "tokenizer.scale": "whiten"}),
        Arm("pixel", "pixels", "row12", {"tokenizer.kind": "pixel"}),
    ]  # fmt: skip
    whitened = tuple((f"pca-d{d}-whiten", f"pca-d{d}-global") for d in WIDTHS)
    claims = (
        Hypothesis("H3", "latents scaled one by one serve better than all by one number, on "
                   "average over d", "whiten", "global", whitened),
        Hypothesis("H4", "at full rank too: noise with the spectrum of the images beats white "
                   "noise", "pca-full-whiten", "pixel"),
    )  # fmt: skip
    return Study("Scale of the latents", tuple(arms), hypotheses=claims)


SWEEPS: dict[str, Callable[[Config], Study]] = {
    "table2": table2,
    "fig5": fig5,
    "probe-t": probe_t,
    "cut": cut,
    "augment": augment,
    "epochs": epochs,
    "size": size,
    "scale": scale,
}


def sweep(name: str, base: Config) -> Study:
    if name not in SWEEPS:
        near = difflib.get_close_matches(name, SWEEPS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"--table must be one of {', '.join(SWEEPS)}; got {name!r}{hint}")
    return replace(SWEEPS[name](base), optional=True)


def varies_size(study: Study) -> bool:
    """Whether the arms are of several sizes."""
    return len({arm.settings.get("model.width") for arm in study.arms}) > 1


def read(config: Config, name: str) -> str:
    group, _, key = name.partition(".")
    return str(getattr(getattr(config, group), key))
