"""Image files to uint8 RGB.

JPEG goes through simplejpeg (libjpeg-turbo), which gives the interpreter's lock back while it
decodes, so that threads run side by side; Pillow reads the rest.
"""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from .errors import BadImage

# (height, width) -> how many times smaller, along a side, an image may come
Shrink = Callable[[int, int], float]

MAX_PIXELS = 100_000_000
# A list, because Pillow would hand an EPS file to Ghostscript, which is to run it.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM")
JPEG_MAGIC = b"\xff\xd8"
ORIENTATION_TAG = 0x0112
LUMA = np.array([  # the JPEG standard's example luminance table, which is libjpeg's quality 50
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def whole(height: int, width: int) -> float:
    return 1


def decode(data: bytes, name: str, shrink: Shrink = whole) -> np.ndarray:
    """The image in `data`, (H, W, 3) uint8 RGB, upright; transparent parts lie on white.

    A JPEG comes 2, 4 or 8 times smaller a side where `shrink` of its upright sides allows it.
    Raises BadImage with `name` where there is no whole image of at most MAX_PIXELS.
    """
    if not data:
        raise BadImage(name, "is empty")
    try:
        image = decode_jpeg(data, name, shrink) if data[:2] == JPEG_MAGIC else None
        return decode_any(data, name) if image is None else image
    except (BadImage, MemoryError):
        raise
    except Exception as problem:  # broken files make decoders raise nearly anything
        raise BadImage(name, explain(data, problem)) from problem


def decode_jpeg(data: bytes, name: str, shrink: Shrink) -> np.ndarray | None:
    """None where it takes Pillow: CMYK, or a file that libjpeg only warns of."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height, name)
        if colours in ("CMYK", "YCCK"):
            return None
        tag = orientation(data) if b"Exif\0\0" in data else 1
        most = shrink(width, height) if tag >= 5 else shrink(height, width)
        times = next((n for n in (8, 4, 2) if n <= most), None)
        least = [-(-side // times) if times else 0 for side in (height, width)]  # 0: do not shrink
        image = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError:
        return None
    return turned(image, tag)


def orientation(data: bytes) -> int:
    """What the EXIF block of a file asks, 1 to 8; a block that makes no sense asks nothing: 1."""
    try:
        with open_image(data) as opened:
            tag = opened.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return tag if tag in range(1, 9) else 1


def turned(image: np.ndarray, tag: int) -> np.ndarray:
    """An image made upright by Pillow's own transposition, by way of one with the same tag."""
    if tag == 1:
        return image
    tagged = Image.fromarray(image)
    tagged.getexif()[ORIENTATION_TAG] = tag
    return np.asarray(ImageOps.exif_transpose(tagged))


def decode_any(data: bytes, name: str) -> np.ndarray:
    with open_image(data) as image:
        check_size(*image.size, name)
        image.load()
        image = ImageOps.exif_transpose(image)
        return np.array(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(
            name, f"has {width} x {height} pixels, over the limit of {MAX_PIXELS // 10**6} million"
        )


def explain(data: bytes, problem: Exception) -> str:
    if isinstance(problem, Image.DecompressionBombError):
        return f"has too many pixels, over the limit of {MAX_PIXELS // 10**6} million"
    if isinstance(problem, Image.UnidentifiedImageError):
        return "is a damaged JPEG" if data[:2] == JPEG_MAGIC else (
            f"is no image in a known format ({', '.join(FORMATS)}); it begins with {data[:12]!r}"
        )  # fmt: skip
    return f"is damaged ({problem})"


def jpeg_quality(data: bytes) -> int | None:
    """The quality, 1..100 on libjpeg's scale, that a JPEG was written with; None for others.

    libjpeg multiplies its table by 2 - q/50 from q = 50 upward and by 50/q below; the sum of the
    file's table tells which q comes nearest.
    """
    try:
        with open_image(data) as image:
            total = sum(image.quantization[0])
    except Exception:  # as in decode()
        return None
    q = np.arange(1, 101)[:, None]
    factor = np.where(q < 50, 50 / q, 2 - q / 50)
    sums = np.clip(np.floor(LUMA * factor + 0.5), 1, 255).sum(axis=1)
    return int(np.abs(sums - total).argmin()) + 1
