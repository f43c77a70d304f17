"""The pictures of a run, each from numpy arrays or plain records to one PNG file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ldae_fast.report.canvas import Sheet, as_pixels, resize
from ldae_fast.report.format import finite, number, percent
from ldae_fast.report.style import ACCENT, ALARM, INK, MUTED, QUIET
from ldae_fast.report.tables import CHANCE, TRAINED, probe_rows

MARGIN, GAP, GROUP_GAP = 40, 8, 40
HEAD = 100  # pixels above the tiles: a title, a hairline, a second title
MOST_FILTERS = 64
DIVERGED = "no longer finite"
PROBES = {
    "knn_top1": "kNN top-1",
    "effective_rank": "effective rank",
    "held_out_top1": "held-out top-1",
    "ema_held_out_top1": "held-out top-1, EMA",
}


def denoising_grid(
    path: str | Path,
    clean: np.ndarray,
    noisy: np.ndarray,
    denoised: np.ndarray,
    levels: Sequence[int],
    sigmas: Sequence[float],
) -> Path:
    """What the network is given and what it makes of it, at each of L noise levels.

    clean (N, H, W, 3), noisy and denoised (L, N, H, W, 3), all 0..1; levels: t; sigmas: sigma_t.
    """
    if not np.shape(noisy) == np.shape(denoised) == (len(levels), *np.shape(clean)):
        raise ValueError(
            f"noisy and denoised must be (levels, *clean.shape) = {(len(levels), *np.shape(clean))}"
            f"; got {np.shape(noisy)} and {np.shape(denoised)}"
        )
    pairs = [[resize(as_pixels(x)) for x in pair] for pair in zip(noisy, denoised)]
    groups = [[resize(as_pixels(clean))], *pairs]
    titles = ["clean", *(f"t = {t}   σ = {s:.2f}" for t, s in zip(levels, sigmas))]
    return _image_table(groups, titles, [[""], *[["noisy", "denoised"]] * len(pairs)]).save(path)


def masking_grid(
    path: str | Path,
    original: np.ndarray,
    masked: np.ndarray,
    reconstruction: np.ndarray,
    ratio: float,
) -> Path:
    """What a masked autoencoder is shown and what it makes of the rest: (N, H, W, 3) each, 0..1."""
    shapes = [np.shape(x) for x in (original, masked, reconstruction)]
    if len(set(shapes)) > 1:
        raise ValueError(f"original, masked and reconstruction must have one shape; got {shapes}")
    tiles = [resize(as_pixels(x)) for x in (original, masked, reconstruction)]
    titles, below = ["original", f"{percent(ratio)} hidden"], [[""], ["input", "reconstruction"]]
    return _image_table([tiles[:1], tiles[1:]], titles, below).save(path)


def noise_levels(path: str | Path, images: np.ndarray, sigmas: Sequence[float]) -> Path:
    """The same images under rising latent noise: images (S, N, H, W, 3) 0..1, sigmas (S,)."""
    if len(images) != len(sigmas):
        raise ValueError(f"sigmas must have one value an image column, {len(images)}; got {sigmas}")
    columns = [resize(as_pixels(column)) for column in images]
    return _image_table([columns], [""], [[f"σ = {s:.2f}" for s in sigmas]]).save(path)


def reconstructions(
    path: str | Path, clean: np.ndarray, decoded: np.ndarray, psnr: Sequence[float]
) -> Path:
    """What a tokenizer keeps of images: each above what it decodes to, and its PSNR.

    clean and decoded (N, H, W, 3), 0..1; psnr (N,) in dB.
    """
    if not np.shape(clean) == np.shape(decoded) == (len(psnr), *np.shape(clean)[1:]):
        raise ValueError(
            f"clean and decoded must be ({len(psnr)}, H, W, 3), an image a PSNR; got "
            f"{np.shape(clean)} and {np.shape(decoded)}"
        )
    columns = [resize(as_pixels(np.stack(pair))) for pair in zip(clean, decoded)]
    title = f"original above its reconstruction: PSNR {np.mean(psnr):.1f} dB"
    return _image_table([columns], [title], [[f"{value:.1f} dB" for value in psnr]]).save(path)


def sample_grid(path: str | Path, images: np.ndarray, title: str) -> Path:
    """Samples in rows, about as many as columns: images (N, H, W, 3), 0..1 or uint8.

    Few are enlarged, to about the width of a title.
    """
    across = math.ceil(math.sqrt(len(images)))
    tiles = resize(as_pixels(images), target=max(96, 680 // across - GAP))
    count, height, width = tiles.shape[:3]
    space = 2 * MARGIN + across * (width + GAP) - GAP
    words = 2 * MARGIN + 17 * len(title)  # a letter at 8.5 points takes less than 17 pixels
    sheet = Sheet(max(space, words), HEAD + math.ceil(count / across) * (height + GAP) + MARGIN)
    sheet.write(MARGIN, 60, title, 8.5, align="left", bold=True)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, across)
        sheet.paste(MARGIN + column * (width + GAP), HEAD + row * (height + GAP), tile)
    return sheet.save(path)


def pca_filters(path: str | Path, filters: np.ndarray, variance: np.ndarray) -> Path:
    """The patch components that carry the latents, and how much variance the first ones hold.

    filters (K, p, p, 3) in any range, each scaled about grey; variance (P,): all eigenvalues.
    """
    variance = np.asarray(variance, np.float64)
    share = variance / max(variance.sum(), np.finfo(np.float64).tiny)
    filters = np.asarray(filters, np.float64)
    kept, shown = len(filters), min(len(filters), MOST_FILTERS)
    across = min(shown, 4 if shown <= 16 else 8)
    peak = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    tiles = resize(as_pixels(0.5 + filters / np.where(peak > 0, 2 * peak, 1)), target=120)[:shown]

    step_x, step_y = tiles.shape[2] + 16, tiles.shape[1] + 44
    left, bottom = MARGIN + across * step_x, HEAD + math.ceil(shown / across) * step_y
    chart = (left + 120, max(480, 1600 - left - 120), min(640, max(480, bottom - HEAD - 44)))
    sheet = Sheet(sum(chart[:2]) + MARGIN, max(bottom, HEAD + chart[2] + 110))
    title = f"{kept} kept components" + (f", {shown} shown" if shown < kept else "")
    sheet.write(MARGIN, 60, title, 9.5, align="left", bold=True)
    for index, tile in enumerate(tiles):
        x, y = MARGIN + index % across * step_x, HEAD + index // across * step_y
        sheet.paste(x, y, tile)
        sheet.write(x + tile.shape[1] / 2, y + tile.shape[0] + 24, _share(share[index]), 6.5, QUIET)
    _variance_curve(sheet, chart, share.cumsum(), kept)
    return sheet.save(path)


def curves(path: str | Path, metrics: list[dict]) -> Path:
    """Loss on top; below it the learning rate and the probes, as far as they were logged."""
    names = {"loss": "loss", "lr": "learning rate"} | PROBES
    present = [name for name in names if len(_series(metrics, name)[0])]
    below = [name for name in present if name != "loss"]
    sheet = Sheet(1640, 1000 if below and len(below) < len(present) else 560)
    if not present:
        sheet.write(820, 280, "Nothing logged yet", 11, QUIET)
    top = 110
    if "loss" in present:
        _panel(sheet, (110, top, 1480, 380), "loss", names["loss"], metrics)
        top = 640
    width = (1480 - 120 * (len(below) - 1)) // max(1, len(below))
    for index, name in enumerate(below):
        box = (110 + index * (width + 120), top, width, 280)
        _panel(sheet, box, name, names[name], metrics)
    return sheet.save(path)


def bars(path: str | Path, result: Mapping) -> Path:
    """Linear-probe accuracy of the trained encoder beside the baselines; see `result_table`."""
    rows = [(name, top1) for name, top1, _ in probe_rows(result) if top1 is not None]
    chance = dict(rows).get(CHANCE)
    rows = [row for row in rows if row[0] != CHANCE]
    left = max(330, 60 + 19 * max(len(name) for name, _ in rows)) if rows else 330
    sheet = Sheet(left + 830, 200 + 80 * max(1, len(rows)))
    sheet.write(MARGIN, 64, "Linear probe, top-1 accuracy", 10, align="left", bold=True)
    axes = sheet.axes(left, 110, 650, 80 * max(1, len(rows)))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set(xticks=[], yticks=range(len(rows)), ylim=(max(1, len(rows)) - 0.5, -0.5))
    labels = axes.set_yticklabels([name for name, _ in rows], fontsize=9, color=INK)
    values = [top1 for _, top1 in rows]
    colors = [ACCENT if name == TRAINED else MUTED for name, _ in rows]
    axes.barh(range(len(rows)), values, height=0.62, color=colors)
    axes.set_xlim(0, max([*values, chance or 0, 1e-3]))
    for y, ((name, top1), label) in enumerate(zip(rows, labels)):
        weight = "bold" if name == TRAINED else "normal"
        label.set_fontweight(weight)
        axes.annotate(percent(top1), (top1, y), (7, 0), textcoords="offset points", va="center",
                      fontsize=9, color=INK, fontweight=weight)  # fmt: skip
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(f"chance {percent(chance)}", (chance, 0), (0, -9), color=QUIET, fontsize=7.5,
                      xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", va="top")  # fmt: skip
    return sheet.save(path)


def _image_table(groups: list, titles: list[str], subtitles: list[list[str]]) -> Sheet:
    """Columns of tiles in titled groups: groups[g][c] is (N, h, w, 3) uint8, a tile a row."""
    count, height, width = groups[0][0].shape[:3]
    head = HEAD if any(titles) else HEAD - 40
    columns = sum(map(len, groups))
    gaps = GAP * (columns - len(groups)) + GROUP_GAP * (len(groups) - 1)
    sheet = Sheet(2 * MARGIN + columns * width + gaps, head + count * (height + GAP) + MARGIN - GAP)
    x = MARGIN
    for group, title, below in zip(groups, titles, subtitles):
        span = len(group) * (width + GAP) - GAP
        if title:
            sheet.write(x + span / 2, 46, title, 8.5, bold=True)
            sheet.rule(x, x + span, 60)
        for column, words in zip(group, below):
            sheet.write(x + width / 2, head - 13, words, 7.5, QUIET)
            for row, tile in enumerate(column):
                sheet.paste(x, head + row * (height + GAP), tile)
            x += width + GAP
        x += GROUP_GAP - GAP
    return sheet


def _variance_curve(sheet: Sheet, chart: tuple, total: np.ndarray, kept: int) -> None:
    """Cumulative share over components (P,), the kept ones marked; chart: x, width, height."""
    x, width, height = chart
    held = total[min(kept, len(total)) - 1]
    words = f"{percent(held)} of variance in {kept} of {len(total)}"
    sheet.write(x - 80, 60, words, 9.5, align="left", bold=True)
    axes = sheet.axes(x, HEAD, width, height)
    counts = np.arange(1, len(total) + 1)
    axes.plot(counts, total, color=ACCENT, linewidth=1.6)
    axes.fill_between(counts[:kept], total[:kept], color=ACCENT, alpha=0.10, linewidth=0)
    axes.plot([kept], [held], "o", color=ACCENT, markersize=5)
    axes.set(xscale="log", xlim=(1, max(2, len(total))), ylim=(0, 1.02))
    ticks = [2**k for k in range(len(total).bit_length()) if 2**k <= len(total)]
    axes.set_xticks(ticks[:: 1 + len(ticks) // 8], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("components", fontsize=7.5, color=QUIET, labelpad=6)


def _panel(sheet: Sheet, box: tuple, name: str, title: str, metrics: list[dict]) -> None:
    """One quantity over steps in the box (x, y, width, height), with its last value as a word.

    Of a probe, which is taken now and then, when it was.
    """
    x, y, width, height = box
    steps, values = _series(metrics, name)
    axes = sheet.axes(x, y, width, height)
    if dense := name == "loss" and len(steps) > 200:
        axes.plot(steps, values, color=ACCENT, linewidth=0.7, alpha=0.3)
    drawn = _smooth(values) if dense else values
    marker = "o" if len(steps) <= 30 else ""
    axes.plot(steps, drawn, color=ACCENT, linewidth=1.6, marker=marker, markersize=3.5,
              clip_on=not marker)  # fmt: skip
    word = _last_word(metrics, name, drawn)
    sheet.write(x - 70, y - 40, title, 9.5, align="left", bold=True)
    color = ALARM if word == DIVERGED else ACCENT
    sheet.write(x + width, y - 40, word, 9.5, color, align="right", bold=True)
    if name in PROBES:
        sheet.write(x + width, y - 14, _when(metrics, name), 7, QUIET, align="right")
    axes.set_xlim(0, max(1, *(finite(record.get("step")) or 0 for record in metrics)))
    _scale(axes, name, values)
    axes.locator_params(axis="x", nbins=max(3, width // 190), integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _scale(axes, name: str, values: np.ndarray) -> None:
    """Logarithmic for a positive loss over a decade; otherwise linear, a share in percent."""
    if name == "loss" and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.locator_params(axis="y", nbins=4)
    if name == "lr":
        axes.set_ylim(0, None)
    share = name.endswith("top1")
    if share and axes.get_ylim()[1] > 1:
        axes.set_ylim(None, 1)
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %" if share else _tick(v))


def _tick(value: float) -> str:
    """0.00075 -> '7.5e-4': a long row of zeros is hard to count."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:,.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _last_word(metrics: list[dict], name: str, drawn: np.ndarray) -> str:
    """The value to remember: the last one, but the peak of a learning rate that ends at zero."""
    last = [record[name] for record in metrics if name in record][-1]
    if finite(last) is None:
        return DIVERGED
    if name == "lr":
        return f"peak {_tick(drawn.max())}"
    return percent(drawn[-1]) if name.endswith("top1") else number(float(drawn[-1]))


def _when(metrics: list[dict], name: str) -> str:
    """At which step, and of how many images, a probe's last value is."""
    last = [record for record in metrics if name in record][-1]
    images = last.get(f"{name}_images")
    return f"at step {number(last['step'])}" + (f", of {number(images)} images" if images else "")


def _series(metrics: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have both as finite numbers."""
    pairs = [(finite(record.get("step")), finite(record.get(name))) for record in metrics]
    pairs = [pair for pair in pairs if None not in pair]
    return tuple(np.array(pairs, np.float64).reshape(-1, 2).T)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of medians over a fiftieth of the curve each: one wild step does not bend it."""
    reach = max(1, len(values) // 100)
    for middle in (np.median, np.mean):
        start = 2 * values[0] - values[reach:0:-1]  # mirrored twice: a steep start stays steep
        padded = np.concatenate([start, values, values[-2 : -reach - 2 : -1]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        values = middle(windows, axis=1)
    return values


def _share(value: float) -> str:
    return f"{100 * value:.{1 if value >= 0.001 else 2}f} %" if value >= 1e-4 else "< 0.01 %"
