"""A white sheet measured in pixels: image tiles, words and charts on it, then one PNG."""

import io
from pathlib import Path

import numpy as np

from ldae_fast.report.atomic import replace_bytes
from ldae_fast.report.style import HAIRLINE, INK, PAPER, QUIET

DPI = 200  # twice a plain screen's, so that words stay sharp on dense displays
TILE = 160  # pixels that a small image is enlarged to
LARGEST = 320


class Sheet:
    """Everything is placed by pixels from the top left; text sizes are in points at `DPI`."""

    def __init__(self, width: int, height: int):
        from matplotlib.figure import Figure  # here: half a second that training need not wait for

        self.width, self.height = width, height
        self.pixels = np.full((height, width, 3), 255, np.uint8)
        size = ((width + 0.01) / DPI, (height + 0.01) / DPI)  # the canvas truncates to whole pixels
        self.figure = Figure(figsize=size, dpi=DPI, facecolor=PAPER)

    def paste(self, x: int, y: int, tile: np.ndarray) -> None:
        """Puts a tile (h, w, 3) uint8 with its top left corner at (x, y)."""
        self.pixels[y : y + tile.shape[0], x : x + tile.shape[1]] = tile

    def write(self, x, y, words, size=8.5, color=INK, align="center", bold=False) -> None:
        """Words on the baseline y; formulas in them stay plain text."""
        self.figure.text(
            x / self.width, 1 - y / self.height, words, fontsize=size, color=color, ha=align,
            va="baseline", fontweight="bold" if bold else "normal", parse_math=False,
            fontfamily="DejaVu Sans",
        )  # fmt: skip

    def rule(self, x0: int, x1: int, y: int) -> None:
        """A hairline from x0 to x1."""
        self.pixels[y : y + 2, x0:x1] = tuple(bytes.fromhex(HAIRLINE[1:]))

    def axes(self, x: int, y: int, width: int, height: int):
        """A chart in that box: a base line, light horizontal rules, quiet numbers."""
        box = (x / self.width, 1 - (y + height) / self.height)
        axes = self.figure.add_axes((*box, width / self.width, height / self.height))
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(HAIRLINE)
        axes.grid(axis="y", color=HAIRLINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, labelsize=7.5, labelcolor=QUIET, pad=5)
        return axes

    def save(self, path: str | Path) -> Path:
        """Writes the PNG, whole or not at all."""
        self.figure.figimage(self.pixels, zorder=-1)
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        return replace_bytes(path, content.getvalue())


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 1 or 3), float 0..1 or uint8, as (..., H, W, 3) uint8; clipped."""
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be (..., H, W, 1 or 3); got {images.shape}")
    if images.dtype != np.uint8:
        images = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        images = np.rint(images.clip(0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def resize(images: np.ndarray, target: int = TILE) -> np.ndarray:
    """(..., H, W, 3) uint8, by a whole factor: pixels repeated up to about `target`, or averaged
    down to at most `LARGEST` on the longer side, so that no resampling blurs what is shown."""
    longest = max(images.shape[-3:-1])
    factor = max(1, round(target / longest))
    images = images.repeat(factor, axis=-3).repeat(factor, axis=-2)
    block = -(-longest // LARGEST)
    if block == 1:
        return images
    height, width = (side // block for side in images.shape[-3:-1])
    images = images[..., : height * block, : width * block, :].astype(np.float32)
    blocks = images.reshape(*images.shape[:-3], height, block, width, block, 3)
    return np.rint(blocks.mean(axis=(-4, -2))).astype(np.uint8)
