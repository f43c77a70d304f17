"""Data: real files of every kind and every fault, read through the public door."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import struct
import tarfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from conftest import heeding_permissions
from PIL import Image

from ldae_fast.data import BadImage, DataError, Loader, Source, in_order, open_source
from ldae_fast.data.augment import center_box, crop_box, cut, uniforms
from ldae_fast.data.decode import decode, jpeg_quality
from ldae_fast.data.order import permutation
from ldae_fast.data.packed import own_digest, pack
from ldae_fast.data.parquet import Parquet

SHARED_CIFAR = Path(__file__).resolve().parents[1] / "../shared/data/cifar10"
RNG = np.random.default_rng(0)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height: int = 60, width: int = 80) -> np.ndarray:
    """An image that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([3 * y, 3 * x, y + x], axis=-1).astype(np.uint8)


def huge_png() -> bytes:
    """A PNG whose header promises 400 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
              for c in (header, content))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def huge_jpeg() -> bytes:
    data = bytearray(encoded(smooth(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


@pytest.fixture
def images(tmp_path):
    """folder: three classes of 20 PNG images, sizes 12 x 9 to 31 x 28."""
    for name, count in (("ant", 20), ("bee", 20), ("cat", 20)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            data = encoded(pixels(12 + i, 9 + i, seed=len(name) * 100 + i + ord(name[0])))
            (tmp_path / "set" / name / f"{i:03}.png").write_bytes(data)
    return tmp_path / "set"


def folder(path, split: str = "train", size: int = 8) -> Source:
    return open_source(f"folder:{path}", split, size)


def loader(source: Source, **changed) -> Loader:
    return Loader(source, **{"batch_size": 7, "image_size": 8, "seed": 5, **changed})


def center(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image as the loader gives it."""
    out = np.empty((size, size, 3), np.uint8)
    cut(image, center_box(*image.shape[:2]), out)
    return out


def taken(iterator, count: int) -> list:
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def same(a, b) -> bool:
    return all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("images", "labels", "ids", "flip")
    )


# --- Decoding -------------------------------------------------------------------------------------


def test_png_is_exact_and_jpeg_close():
    image = pixels(17, 23)
    assert np.array_equal(decode(encoded(image), "x"), image)
    got = decode(encoded(smooth(), "JPEG", quality=95), "x")
    assert got.shape == (60, 80, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - smooth()).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGB", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    source = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    got = decode(encoded(source, kind), "x")
    assert got.shape == (4, 5, 3)
    assert got.min() >= 253


def test_cmyk_has_the_colours_that_pillow_gives():
    """libjpeg-turbo takes these inverted values for plain ones."""
    image = Image.fromarray(smooth()).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, "x") - expected).max() == 0
    assert np.abs(expected - smooth()).mean() < 6


def test_transparent_parts_lie_on_white():
    image = np.zeros((2, 3, 4), np.uint8)
    image[0, 0] = (200, 0, 0, 255)
    image[1, 1] = (0, 0, 0, 128)
    got = decode(encoded(image), "x")
    assert got[0, 0].tolist() == [200, 0, 0]
    assert got[0, 1].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [127, 127, 127]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.putpixel((0, 0), 0)
    got = decode(encoded(palette, transparency=0), "x")
    assert got[0].tolist() == [[255, 255, 255], [50, 60, 70]]


def test_grey_of_16_bits_is_scaled_not_clipped():
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(values)), "x")[0, :, 0].tolist() == [0, 1, 100, 255]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x")[1, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_one_pixel(kind):
    assert decode(encoded(np.full((1, 1, 3), 90, np.uint8), kind), "x").tolist() == [[[90] * 3]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("tag", "turn"),
    [  # what a viewer must do to the stored rows and columns
        (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]), (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)), (77, lambda a: a),
    ],
)  # fmt: skip
def test_orientation_is_honoured(kind, tag, turn):
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"quality": 95} if kind == "JPEG" else {}
    plain = decode(encoded(smooth(), kind, **options), "x")
    got = decode(encoded(smooth(), kind, exif=exif, **options), "x")
    assert np.array_equal(got, turn(plain))


def test_a_damaged_exif_block_does_not_lose_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(smooth(), "JPEG", exif=exif))
    at = data.index(b"Exif\0\0") + 6
    data[at : at + 8] = b"\xff" * 8
    assert decode(bytes(data), "x").shape == (60, 80, 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(run me) print\n%%EOF\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"), (b"hello, I am text", "no image in a known format"),
        (encoded(pixels(40, 40))[:-900], "damaged"),
        (encoded(pixels(40, 40), "JPEG")[:-900], "damaged"),
        (encoded(pixels(40, 40), "JPEG")[:30], "damaged"),
        (b"\xff\xd8", "damaged"), (b"\x89PNG\r\n\x1a\n", "no image in a known format"),
        (huge_png(), "too many pixels|20000 x 20000"), (huge_jpeg(), "60000 x 60000 pixels"),
        (EPS, "no image in a known format"),
    ],
)  # fmt: skip
def test_a_broken_image_is_named_with_its_reason(data, reason):
    start = time.perf_counter()
    with pytest.raises(BadImage, match=reason) as raised:
        decode(data, "here/is.jpg")
    assert raised.value.name == "here/is.jpg"
    assert str(raised.value).startswith("here/is.jpg: ")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_never_passes_for_whole(kind):
    data = encoded(pixels(48, 48), kind)
    for end in range(2, len(data) - 30, 211):
        with pytest.raises(BadImage):
            decode(data[:end], "x")


def test_noise_raises_nothing_but_bad_image():
    random.seed(0)
    seeds = [encoded(smooth(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM")]
    for trial in range(300):
        data = bytearray(seeds[trial % len(seeds)])
        for _ in range(random.randint(1, 30)):
            data[random.randrange(len(data))] = random.randrange(256)
        with contextlib.suppress(BadImage):
            assert decode(bytes(data), "x").dtype == np.uint8


@pytest.mark.parametrize(("tag", "height", "width"), [(1, 61, 83), (6, 64, 80)])
def test_a_jpeg_comes_smaller_only_as_far_as_it_may(tag, height, width):
    """By halves; the sides asked about are those of the upright image, and so is what comes."""
    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(smooth(height, width), "JPEG", quality=95, exif=exif)
    whole, asked = decode(data, "x"), []
    for most, times in ((0.4, 1), (1.99, 1), (2, 2), (3.9, 2), (4, 4), (7.9, 4), (8, 8), (99, 8)):
        small = decode(data, "x", lambda *sides, most=most: asked.append(sides) or most)
        assert small.shape[:2] == tuple(-(-side // times) for side in whole.shape[:2])
        if times == 1:
            assert np.array_equal(small, whole)
        elif times < 8:
            height, width = (side // times * times for side in whole.shape[:2])
            blocks = whole[:height, :width].reshape(height // times, times, -1, times, 3)
            kept = small[: height // times, : width // times]
            assert np.abs(blocks.mean((1, 3)) - kept).mean() < 3
    assert set(asked) == {whole.shape[:2]}
    assert decode(encoded(smooth()), "x", lambda *sides: 8).shape == (60, 80, 3)  # a PNG


def test_a_truncated_jpeg_never_passes_for_whole_when_shrunk():
    data = encoded(pixels(48, 48), "JPEG")
    for end in range(2, len(data) - 30, 211):
        with pytest.raises(BadImage):
            decode(data[:end], "x", lambda *sides: 8)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 100])
def test_jpeg_quality_is_read_from_the_tables(quality):
    found = jpeg_quality(encoded(smooth(), "JPEG", quality=quality))
    assert abs(found - quality) <= (1 if quality >= 10 else 3)
    assert jpeg_quality(encoded(smooth())) is None


def longest_pause(work) -> float:
    """The longest that this thread stands still, as a share of another one's time for `work`."""
    worker = threading.Thread(target=work)
    worker.start()
    rounds = longest = 0
    last = start = time.perf_counter()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last, rounds = max(longest, now - last), now, rounds + 1
    assert rounds > 100
    return longest / (time.perf_counter() - start)


def test_simplejpeg_gives_the_lock_back():
    """The claim of decode.py: this thread keeps running while another one decodes."""
    data = simplejpeg.encode_jpeg(np.tile(pixels(200, 200), (15, 15, 1)))
    assert longest_pause(lambda: decode(data, "x")) < 0.7


# --- Augmentation and order -----------------------------------------------------------------------


def scaled(image: np.ndarray, box, size: int) -> np.ndarray:
    """The part that Pillow cuts out, then scales, as (size, size, 3)."""
    part = Image.fromarray(image).crop([round(edge) for edge in box])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)).astype(int)


def test_center_leaves_the_right_size_alone_and_takes_the_middle():
    image = pixels(8, 8)
    assert np.array_equal(center(image, 8), image)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (center(wide, 10) == 200).all()
    tall = pixels(64, 40)
    assert np.abs(center(tall, 20) - scaled(tall, (0, 12, 40, 52), 20)).max() <= 2
    assert center(pixels(1, 1), 8).shape == (8, 8, 3)


@pytest.mark.filterwarnings("error")
def test_cutting_is_pillows_bicubic_of_whole_pixels():
    """Enlarged, shrunk a little and a lot; from memory that cannot be written; lengthwise too."""
    grey = pixels(150, 200) // 2 + 64  # so that no value in between is clipped
    image = np.frombuffer(grey.tobytes(), np.uint8).reshape(150, 200, 3)
    for box in ((0, 0, 200, 150), (3.4, 10.6, 60.2, 149.7), (199.6, 149.6, 200, 150)):
        for size in (1, 7, 64, 200):
            out = np.empty((size, size, 3), np.uint8)
            cut(image, box, out)
            inside = [min(round(box[0]), 199), min(round(box[1]), 149), *box[2:]]
            off = np.abs(out - scaled(image, inside, size))
            assert off.max() <= 2
            assert off.mean() < 0.4


def test_cutting_gives_the_lock_back():
    image, out = pixels(3000, 3000), np.empty((900, 900, 3), np.uint8)
    assert longest_pause(lambda: cut(image, (1, 1, 2999, 2999), out)) < 0.7


def test_crops_stay_inside_and_keep_area_and_shape():
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    for height, width in ((32, 32), (100, 40), (7, 300), (1, 1)):
        areas = []
        for u in RNG.random((300, 4)):
            left, top, right, bottom = crop_box(height, width, u, scale, ratio)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            shape = (right - left) / (bottom - top)
            assert ratio[0] - 1e-9 <= shape <= ratio[1] + 1e-9
            areas.append((right - left) * (bottom - top) / (height * width))
        if height == width:
            assert min(areas) >= 0.2 - 1e-9
            assert np.mean(areas) == pytest.approx(0.6, abs=0.04)
    assert crop_box(16, 16, np.full(4, 1 - 2**-32), (1, 1)) == pytest.approx((0, 0, 16, 16))


def test_uniforms_are_a_function_of_seed_epoch_and_index():
    indices = np.array([4, 0, 9, 2**40])
    u = uniforms(3, 2, indices, 5)
    assert u.shape == (4, 5)
    assert u.dtype == np.float64
    assert np.array_equal(uniforms(3, 2, indices[2:], 5), u[2:])
    for other in (uniforms(4, 2, indices, 5), uniforms(3, 1, indices, 5)):
        assert not np.isclose(other, u).any()
    many = uniforms(0, 0, np.arange(20_000), 5)
    assert many.min() >= 0
    assert many.max() < 1
    assert np.abs(many.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(many.T) - np.eye(5)).max() < 0.03


def test_permutation_is_complete_and_new_each_epoch():
    first, second = permutation(1, 0, 40_000), permutation(1, 1, 40_000)
    assert np.array_equal(np.sort(first), np.arange(40_000))
    assert (first == second).sum() < 10
    assert abs(np.corrcoef(first, np.arange(40_000))[0, 1]) < 0.02
    mirrored = uniforms(1, 0, first, 1)[:, 0] < 0.5  # order and flip share no number
    assert 0.48 < mirrored[:20_000].mean() < 0.52


# --- The loader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["center", "random-resized-crop"])
def test_the_same_batches_for_any_workers_and_start(images, augment):
    source = folder(images)
    plain = loader(source, augment=augment, workers=0, cache_mb=0)
    expected = [plain.batch(step) for step in range(25)]
    for workers, cache_mb, start in itertools.product((0, 1, 2, 3), (0, 64), (0, 11)):
        other = loader(source, augment=augment, workers=workers, cache_mb=cache_mb)
        got = taken(other.iterate(start), 25 - start)
        assert all(same(a, b) for a, b in zip(got, expected[start:]))
    assert not all(same(a, b) for a, b in zip(expected, expected[8:]))


def test_an_epoch_has_each_image_once_with_its_own_label(images):
    source = folder(images)
    assert len(source) == 54
    batches = [loader(source).batch(step) for step in range(54)]
    ids = torch.cat([batch.ids for batch in batches]).reshape(7, 54)
    assert all(torch.equal(epoch.sort().values, torch.arange(54)) for epoch in ids)
    for batch in batches[:10]:
        assert batch.images.shape == (7, 8, 8, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.flip.dtype == torch.bool
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
        assert batch.labels.tolist() == [int(source.labels[i]) for i in batch.ids]
        for image, i in zip(batch.images, batch.ids):
            assert np.array_equal(image, center(source.read(int(i)), 8))
    flips = torch.cat([batch.flip for batch in batches]).float().mean()
    assert 0.4 < flips < 0.6
    assert not loader(source, flip=False).batch(0).flip.any()


def test_a_batch_larger_than_the_set_spans_epochs(images):
    batch = loader(folder(images), batch_size=130).batch(0)
    assert sorted(Counter(batch.ids.tolist()).values()) == [2] * 32 + [3] * 22


def test_a_batch_belongs_to_its_user(images):
    """Writing into a batch changes no later one, cached or not."""
    made = loader(folder(images))
    first = made.batch(0)
    kept = first.images.clone()
    for tensor in (first.images, first.labels, first.ids):
        tensor.zero_()
    assert torch.equal(made.batch(0).images, kept)
    assert made.batch(0).ids.any()


def test_small_sets_are_decoded_once(images):
    source = folder(images)
    made, plain = loader(source), loader(source)
    for step in range(8):
        made.batch(step)
    for path in images.rglob("*.png"):
        path.unlink()
    assert made.batch(20).images.any()
    with pytest.raises(DataError, match=r"no image can be read|are broken"):
        plain.batch(0)


def test_closing_ends_the_threads(images):
    before = threading.active_count()
    batches = loader(folder(images), workers=3).iterate()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    unused = in_order(folder(images), 8, batch_size=4)
    unused.close()
    assert threading.active_count() == before


class Slow(Source):
    """Every read takes `seconds`; index `fails` raises what no one foresaw."""

    def __init__(self, count: int, seconds: float, fails: int = -1):
        self.name, self.classes, self.labels = "slow", ("one",), np.zeros(count, np.int64)
        self.seconds, self.fails = seconds, fails

    def read(self, index):
        time.sleep(self.seconds)
        if index == self.fails:
            raise RuntimeError("unforeseen")
        return np.full((8, 8, 3), index % 256, np.uint8)

    def describe(self, index):
        return str(index)


def test_a_failing_worker_stops_its_consumer_at_once():
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="unforeseen"):
        list(in_order(Slow(400, 0.002, fails=9), 8, batch_size=4, workers=2))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("augment", ["center", "random-resized-crop"])
def test_shrunk_jpegs_give_nearly_the_batches_of_whole_ones(tmp_path, monkeypatch, augment):
    """Seen from the same images as PNG; twice the wanted side is always decoded."""
    shapes, plain = [], simplejpeg.decode_jpeg

    def spy(*args, **options):
        shapes.append((image := plain(*args, **options)).shape)
        return image

    for kind, name in (("JPEG", "a.jpg"), ("PNG", "a.png")):
        (tmp_path / kind / "class").mkdir(parents=True)
        for i in range(10):
            data = encoded(smooth(80, 80)[:, i:] // 3, "JPEG", quality=95)
            data = data if kind == "JPEG" else encoded(decode(data, "x"))
            (tmp_path / kind / "class" / f"{i}{name}").write_bytes(data)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    jpeg, png = (
        loader(folder(tmp_path / kind), augment=augment, workers=0, cache_mb=0)
        for kind in ("JPEG", "PNG")
    )
    for step in range(4):
        shapes.clear()
        off = jpeg.batch(step).images.int() - png.batch(step).images.int()
        assert off.abs().float().mean() < 2
        assert same(jpeg.batch(step), jpeg.batch(step))
        assert all(min(shape[:2]) >= 16 for shape in shapes)
    assert shapes
    assert min(shape[0] for shape in shapes) in (20, 40)


def test_waiting_is_counted_and_prefetched_batches_cost_none():
    made = Loader(Slow(64, 0.005), batch_size=8, image_size=8, seed=0, workers=2, cache_mb=0)
    batches = made.iterate()
    next(batches)
    first = made.wait_s
    assert first >= 0.03
    time.sleep(0.3)
    for _ in range(3):
        next(batches)
    assert made.wait_s - first < 0.03
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_gives_the_whole_source_once(images, workers):
    source = folder(images)
    batches = list(in_order(source, 8, batch_size=10, workers=workers))
    assert [len(batch.ids) for batch in batches] == [10] * 5 + [4]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(54))
    assert not any(batch.flip.any() for batch in batches)
    assert np.array_equal(batches[1].images[3], center(source.read(13), 8))


def test_views_differ_and_repeat(images):
    def run(**options):
        return list(in_order(folder(images), 8, batch_size=10, **options))

    first = run(view=1, seed=3)
    assert all(same(a, b) for a, b in zip(first, run(view=1, seed=3, workers=0)))
    one = torch.cat([batch.images for batch in run(view=1, seed=3, workers=1)])
    for other in (run(view=2, seed=3), run(view=1, seed=4), run(view=0, seed=3)):
        assert not torch.equal(torch.cat([batch.images for batch in other]), one)
    assert 10 < sum(int(batch.flip.sum()) for batch in first) < 44


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"image_size": -2}, "image_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"augment": "centre"}, "augment must be one of center"),
        ({"bad_images": "skip"}, "bad_images must be 'replace' or 'raise'"),
    ],
)
def test_a_wrong_setting_is_named(images, setting, message):
    with pytest.raises(DataError, match=message):
        loader(folder(images), **setting)


# --- Broken images --------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_can_be_opened():
    """Every descriptor that this process may have is taken. Yields what gives them back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    taken = []

    def free():
        while taken:
            os.close(taken.pop())

    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield free
    finally:
        free()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_storage_that_does_not_answer_is_waited_for(images, monkeypatch):
    """Its images are not broken: one that could be read would stand in for all of them."""
    source = folder(images)
    monkeypatch.setattr("ldae_fast.data.source.PAUSES_S", (0.05,) * 40)
    with no_file_can_be_opened() as free:
        later = threading.Timer(0.2, free)
        later.start()
        assert source.read(0).shape == (12, 9, 3)
        later.join()
    monkeypatch.setattr("ldae_fast.data.source.PAUSES_S", (0.01, 0.01))
    loader = Loader(source, batch_size=4, image_size=8, seed=0, workers=0, cache_mb=0)
    with (
        no_file_can_be_opened(),
        pytest.raises(DataError, match=r"\d\d\d\.png: cannot be read \(Too many open files\)"),
    ):
        loader.batch(0)
    assert not source.bad


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """11,000 tiny images, of which 1 % of those for training are broken in one of six ways."""
    root = tmp_path_factory.mktemp("damaged")
    data = [encoded(pixels(8, 8, seed)) for seed in range(50)]
    for label in range(11):
        (root / f"{label:02}").mkdir()
        for i in range(1000):
            (root / f"{label:02}" / f"{i:04}.png").write_bytes(data[i % 50])
    source = folder(root)
    faults = [
        data[0][:-40], b"", b"text", huge_png(), huge_jpeg(),
    ]  # fmt: skip
    broken = np.random.default_rng(1).permutation(len(source))[:100]
    for turn, index in enumerate(broken):
        path = Path(source.paths[index])
        path.unlink() if turn % 6 == 5 else path.write_bytes(faults[turn % 6])
    return source, {int(index) for index in broken}


def test_a_run_over_damaged_images_names_each_and_repeats(damaged):
    source, broken = damaged
    assert len(source) == 9900

    def run(workers, cache_mb):
        source.bad.clear()
        batches = taken(
            loader(source, batch_size=330, workers=workers, cache_mb=cache_mb).iterate(), 30
        )
        return dict(source.bad), batches

    bad, batches = run(2, 64)
    assert set(bad) == broken
    assert all(bad[index].startswith(source.paths[index] + ": ") for index in broken)
    again, repeated = run(0, 0)
    assert again == bad
    assert all(same(a, b) for a, b in zip(batches, repeated))


def test_what_one_reader_replaced_another_refuses(damaged):
    source, broken = damaged
    taken(loader(source, batch_size=330, workers=0, cache_mb=0).iterate(), 30)
    assert set(source.bad) == broken
    strict = Loader(source, batch_size=330, image_size=8, seed=0, workers=0, bad_images="raise")
    with pytest.raises(DataError, match=r"\d\d\d\d\.png"):
        taken(strict.iterate(), 30)


def test_a_broken_image_gives_way_to_the_next_whole_one(damaged):
    source, broken = damaged
    index = min(broken)
    heir = next(i for i in itertools.count(index) if i not in broken)
    batch = next(
        b for b in in_order(source, 8, batch_size=100, workers=0) if index in b.ids.tolist()
    )
    row = batch.ids.tolist().index(index)
    assert np.array_equal(batch.images[row], source.read(heir))
    assert batch.labels[row] == source.labels[heir]


def test_the_heir_brings_its_label(images):
    """The last image of a class is broken: the next whole one is of the next class."""
    source = folder(images)
    last = int(np.flatnonzero(source.labels == 0)[-1])
    Path(source.paths[last]).write_bytes(b"")
    made = loader(source, batch_size=54)
    for _ in range(2):  # read, then from the cache
        batch = made.batch(0)
        assert batch.labels[batch.ids == last].item() == 1


def test_broken_images_can_be_refused(damaged):
    source, broken = damaged
    with pytest.raises(DataError) as raised:
        list(in_order(source, 8, batch_size=100, bad_images="raise"))
    assert source.paths[min(broken)] in str(raised.value)


@pytest.mark.parametrize("whole", [0, 1, 24])
def test_a_set_that_is_mostly_broken_is_refused(images, whole):
    source = folder(images)
    for path in source.paths[whole:]:
        Path(path).write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken; the first is .*png: is no image"):
        loader(source, batch_size=54).batch(0)


# --- Specifications -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar-10", "did you mean cifar10"), ("Photos", "did you mean photos"),
        ("foldr:/x", "did you mean folder"), ("nothing-like-it", "expected photos, fashion-mnist"),
        ("folder:", "needs a path"), ("parquet", "needs a path"), ("photos:x", "takes no path"),
        ("folder:/no/such/place", "there is no folder /no/such/place"),
        ("parquet:/no/such.parquet", "no .parquet file at /no/such.parquet"),
        ("wds:/no/{00..02}.tar", "no file /no/00.tar"), ("wds:/no/*.tar", "no file"),
        ("packed:/no/such", "pack.json is missing"),
    ],
)  # fmt: skip
def test_a_wrong_specification_gets_one_clear_sentence(spec, message):
    with pytest.raises(DataError, match=message) as raised:
        open_source(spec, "train", 32)
    assert "\n" not in str(raised.value)


def test_split_and_size_are_checked_and_a_bare_folder_is_recognised(images):
    with pytest.raises(DataError, match="'train' or 'test'; got 'val'"):
        folder(images, "val")
    with pytest.raises(DataError, match="image_size must be at least 1"):
        folder(images, size=0)
    with pytest.raises(DataError, match=f"did you mean folder:{images}"):
        open_source(str(images), "train", 32)


# --- Folders --------------------------------------------------------------------------------------


def test_folder_holds_out_every_tenth_image(images):
    train, test = folder(images), folder(images, "test")
    assert train.classes == test.classes == ("ant", "bee", "cat")
    names = [f"{name}/{i:03}.png" for name in train.classes for i in (9, 19)]
    assert [str(Path(path).relative_to(images)) for path in test.paths] == names
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert not set(train.paths) & set(test.paths)
    assert len(train) + len(test) == 60
    assert train.read(0).shape == (12, 9, 3)
    assert train.describe(0) == str(images / "ant/000.png")


def test_folder_uses_train_and_val_where_they_are(images, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(images, root / "train")
    shutil.copytree(images / "bee", root / "val/bee")
    train, test = folder(root), folder(root, "test")
    assert (len(train), len(test)) == (60, 20)
    assert test.classes == train.classes
    assert set(test.labels.tolist()) == {1}
    (root / "test").mkdir()  # as ImageNet has it: images without labels
    (root / "test" / "1.png").write_bytes(encoded(pixels(4, 4)))
    assert set(folder(root, "test").labels.tolist()) == {1}
    shutil.copytree(images / "bee", root / "test/all")
    assert set(folder(root, "test").labels.tolist()) == {1}
    shutil.rmtree(root / "test")
    shutil.copytree(images / "bee", root / "val/dragonfly")
    with pytest.raises(DataError, match="lack: dragonfly"):
        folder(root, "test")


def test_a_small_class_still_has_a_test_image(tmp_path):
    for name, count in (("a", 3), ("b", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.JPG").write_bytes(encoded(pixels(4, 4), "JPEG"))
    assert folder(tmp_path).labels.tolist() == [0, 0, 1]
    assert folder(tmp_path, "test").labels.tolist() == [0]


def test_folders_without_images_or_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no subfolders"):
        folder(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(pixels(4, 4)))
    with pytest.raises(DataError, match="has no subfolders"):
        folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("none here")
    with pytest.raises(DataError, match="no image under"):
        folder(tmp_path)
    (tmp_path / "a" / "one.png").write_bytes(encoded(pixels(4, 4)))
    with pytest.raises(DataError, match="no images for split 'test'"):
        folder(tmp_path, "test")


def test_a_class_that_cannot_be_listed_is_no_class_that_is_not_there(images):
    closed = images / "cat" / "more"
    closed.mkdir()
    closed.chmod(0)
    with heeding_permissions(), pytest.raises(DataError) as raised:
        folder(images)
    closed.chmod(0o700)
    assert str(raised.value) == (
        f"{closed} cannot be listed (Permission denied); make the folder readable, or move it out "
        "of the data"
    )


def test_a_class_without_images_is_told(images):
    assert folder(images).note == ""
    for name in ("dog", "empty"):
        (images / name).mkdir()
    assert folder(images).note == "Left out, as folders without an image: dog, empty."


def test_a_digest_tells_what_stands_at_an_index_and_not_where(images, tmp_path):
    before = folder(images).digest
    moved = images.rename(tmp_path / "moved")
    assert folder(moved).digest == before
    (moved / "ant" / "000.png").rename(moved / "ant" / "zzz.png")
    renamed = folder(moved).digest
    assert renamed != before
    (moved / "ant" / "zzz.png").rename(moved / "bee" / "zzz.png")  # of another class now
    assert folder(moved).digest not in (before, renamed)


def test_a_digest_sees_other_images_of_the_same_labels_where_that_is_free(tmp_path):
    found = set()
    for side in (6, 7):
        files = tmp_path / f"side{side}"
        (files / "ant").mkdir(parents=True)
        for i in range(12):
            (files / "ant" / f"{i:02}.png").write_bytes(encoded(pixels(side, 5, i)))
        names = sorted((files / "ant").iterdir())
        pairs = ([(f"{p.stem}.cls", b"0"), (f"{p.stem}.png", p.read_bytes())] for p in names)
        write_tar(files / "a.tar", list(itertools.chain(*pairs)))
        pack(f"folder:{files}", files / "packed")
        found |= {
            wds(files / "a.tar").digest,
            open_source(f"packed:{files}/packed", "train", 32).digest,
        }
    assert len(found) == 4


# --- Parquet --------------------------------------------------------------------------------------


def write_parquet(path: Path, count: int, seed: int = 0, metadata=None, **columns) -> None:
    data = [{"bytes": encoded(pixels(6, 5, seed + i)), "path": None} for i in range(count)]
    table = pa.table(
        columns or {"image": data, "label": [(seed + i) % 3 for i in range(count)]}
    ).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


def parquet(path, split: str = "train") -> Source:
    return open_source(f"parquet:{path}", split, 32)


def test_parquet_shards_are_read_at_random(tmp_path):
    for shard in range(2):
        write_parquet(tmp_path / "data" / f"train-0000{shard}.parquet", 11, seed=100 * shard)
    write_parquet(tmp_path / "data" / "validation-00000.parquet", 5, seed=900)
    train, test = parquet(tmp_path), parquet(tmp_path, "test")
    assert (len(train), len(test)) == (22, 5)
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.note == ""
    for i in np.random.default_rng(0).permutation(22).tolist():
        seed = 100 * (i // 11) + i % 11
        assert np.array_equal(train.read(i), pixels(6, 5, seed))
        assert train.labels[i] == seed % 3
    assert np.array_equal(test.read(4), pixels(6, 5, 904))
    assert train.describe(12) == f"{tmp_path}/data/train-00001.parquet:1"


def test_parquet_in_one_file_holds_out_every_tenth_row(tmp_path):
    write_parquet(tmp_path / "all.parquet", 25)
    train, test = parquet(tmp_path / "all.parquet"), parquet(tmp_path / "all.parquet", "test")
    assert [test.describe(i).split(":")[1] for i in range(2)] == ["9", "19"]
    assert (len(train), len(test)) == (23, 2)
    assert np.array_equal(train.read(9), pixels(6, 5, 10))


def test_parquet_keeps_no_more_row_groups_than_allowed(tmp_path):
    write_parquet(tmp_path / "all.parquet", 40)
    source = Parquet(str(tmp_path / "all.parquet"), "train", kept_bytes=1000)
    for i in (0, 30, 1, 20, 35, 2):
        assert np.array_equal(source.read(i), pixels(6, 5, int(source.rows[i])))
        assert len(source.groups.kept) <= 2
        assert source.groups.bytes == sum(a.nbytes for a in source.groups.kept.values())


def test_parquet_takes_class_names_from_the_metadata(tmp_path):
    info = {"info": {"features": {"label": {"names": ["x", "y", "z"]}}}}
    write_parquet(tmp_path / "a.parquet", 12, metadata={"huggingface": json.dumps(info)})
    assert parquet(tmp_path).classes == ("x", "y", "z")
    info["info"]["features"]["label"]["names"] = ["x", "y"]
    write_parquet(tmp_path / "a.parquet", 12, metadata={"huggingface": json.dumps(info)})
    with pytest.raises(DataError, match=r"labels 0..2 came for 2 named classes"):
        parquet(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [1]}, r"binary field 'bytes', found 0.*text"),
        ({"image": [{"bytes": b"x"}], "name": ["a"]}, r"integer column of labels, found 0"),
        ({"image": [{"bytes": b"x"}], "a": [1], "b": [1]}, r"found 2; its columns are image"),
        ({"image": [{"bytes": b"x"}], "label": [-1]}, r"must lie in 0.*-1 came"),
        ({"image": [{"bytes": b"x"}], "label": [10**15]}, r"must lie in 0"),
        ({"image": [{"bytes": b"x"}] * 2, "label": [1, None]}, r"lacks 1 labels"),
    ],
)  # fmt: skip
def test_parquet_columns_that_do_not_fit_are_told(tmp_path, columns, message):
    write_parquet(tmp_path / "a.parquet", 1, **columns)
    with pytest.raises(DataError, match=message):
        parquet(tmp_path)


def test_parquet_on_a_storage_that_does_not_answer_is_not_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("ldae_fast.data.source.PAUSES_S", (0.01, 0.01))
    path = tmp_path / "a.parquet"
    write_parquet(path, 30)
    source = Parquet(str(path), "train", kept_bytes=0)
    source.read(20)  # so that no other row group is kept
    loader = Loader(source, batch_size=4, image_size=8, seed=0, workers=0, cache_mb=0)
    path.rename(tmp_path / "away")
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"a\.parquet:\d+: cannot be read \(.*symbolic links\)"):
        loader.batch(0)
    assert not source.bad
    path.unlink()
    (tmp_path / "away").rename(path)
    assert np.array_equal(source.read(0), pixels(6, 5, 0))
    path.unlink()
    with pytest.raises(BadImage, match=r"a\.parquet:20: cannot be read"):
        source.read(18)  # of which rows 9 and 19 are for testing


def test_parquet_damage_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, 30)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as Parquet"):
        parquet(tmp_path)
    write_parquet(path, 2, image=[{"bytes": None}, {"bytes": b"junk"}], label=[0, 1])
    with pytest.raises(BadImage, match=r"a.parquet:0: is empty"):
        parquet(path).read(0)


def test_the_shared_cifar10():
    if not SHARED_CIFAR.is_dir():
        pytest.skip(f"needs the CIFAR-10 Parquet files in {SHARED_CIFAR}")
    train, test = parquet(SHARED_CIFAR), parquet(SHARED_CIFAR, "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.note == "Images stored as JPEG, quality about 75."
    batch = Loader(train, batch_size=256, image_size=32, seed=0).batch(50)
    assert batch.images.shape == (256, 32, 32, 3)
    assert 90 < batch.images.float().mean() < 150


# --- Tar shards -----------------------------------------------------------------------------------


def write_tar(path: Path, members: list, form=tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(number: int, prefix: str = "") -> list:
    name = f"{prefix}{number:05}"
    image = encoded(pixels(6, 5, number))
    return [(f"{name}.cls", b"%d\n" % (number % 4)), (f"{name}.png", image), (f"{name}.json", b"")]


def wds(pattern, split: str = "train") -> Source:
    return open_source(f"wds:{pattern}", split, 32)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "folder.x/" * 3, "long/" * 40, "grüße/"])
def test_wds_reads_every_tar_format(tmp_path, form, prefix):
    write_tar(tmp_path / "a.tar", [m for i in range(25) for m in sample(i, prefix)], form)
    train, test = wds(tmp_path / "a.tar"), wds(tmp_path / "a.tar", "test")
    assert (len(train), len(test)) == (23, 2)
    assert train.classes == ("0", "1", "2", "3")
    for i, number in ((0, 0), (8, 8), (9, 10), (22, 24)):
        assert np.array_equal(train.read(i), pixels(6, 5, number))
        assert train.labels[i] == number % 4


def test_wds_ranges_globs_and_named_splits(tmp_path):
    for shard in range(8, 12):
        write_tar(tmp_path / f"set-train-{shard:03}.tar", sample(10 * shard) + sample(shard))
    write_tar(tmp_path / "set-val-000.tar", sample(7))
    assert len(wds(f"{tmp_path}/set-train-{{008..011}}.tar")) == 7  # the eighth is held out
    assert len(wds(f"{tmp_path}/set-*.tar")) == 8
    test = wds(f"{tmp_path}/*.tar", "test")
    assert len(test) == 1
    assert np.array_equal(test.read(0), pixels(6, 5, 7))
    with pytest.raises(DataError, match=r"no file .*set-train-012.tar"):
        wds(f"{tmp_path}/set-train-{{008..012}}.tar")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:2000], "ends inside a member"),
        (lambda d: d[:1500], "no whole tar"),
        (lambda d: d[:700], "no whole tar"),
        (lambda d: b"", "no whole tar"),
        (lambda d: b"no tar here " * 100, "no tar header at byte 0"),
        (lambda d: d[:512] + b"9" + d[513:], "a.cls must hold a whole number"),
        (lambda d: b"z" + d[1:], "no tar header at byte 0"),
        (lambda d: zlib.compress(d), "no tar header|no whole tar"),
    ],
)
def test_wds_damage_is_named(tmp_path, damage, message):
    path = tmp_path / "x.tar"
    write_tar(path, [("a.cls", b"1x"), ("a.png", encoded(pixels(30, 30)))])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as raised:
        wds(path)
    assert str(path) in str(raised.value)


def test_wds_needs_labels_and_samples(tmp_path):
    write_tar(tmp_path / "a.tar", [("k.png", encoded(pixels(4, 4)))])
    with pytest.raises(DataError, match=r"sample k has no label; expected k\.cls"):
        wds(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", [("k.txt", b"x")])
    with pytest.raises(DataError, match="no samples in 1 shards"):
        wds(tmp_path / "a.tar")


def with_size(data: bytes, at: int, field: bytes) -> bytes:
    """The archive with another size field in the header at byte `at`, the header's sum right."""
    header = bytearray(data[at : at + 512])
    header[124:136] = field
    total = sum(header) - sum(header[148:156]) + 256
    header[148:156] = b"%06o\0 " % total
    return data[:at] + bytes(header) + data[at + 512 :]


@pytest.mark.parametrize("field", [b"-0000002000\0", b"77777777777\0", b"\xff" * 12])
def test_wds_sizes_that_lead_backward_or_past_the_end_are_refused(tmp_path, field):
    write_tar(tmp_path / "x.tar", sample(1))
    data = with_size((tmp_path / "x.tar").read_bytes(), 1024, field)
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match="ends inside a member"):
        wds(tmp_path / "x.tar")


@pytest.mark.parametrize(
    "record",
    [b"0 path=x\n", b"-9 path=x\n", b"99 path=x\n", b"x path=x\n", b"7", b"14 size=-9999\n",
     b"15 size=999999\n"],
)  # fmt: skip
def test_wds_damaged_extended_headers_are_refused(tmp_path, record):
    info = tarfile.TarInfo("extended")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(DataError, match=r"damaged extended header|ends inside a member"):
        wds(tmp_path / "x.tar")


def test_wds_noise_in_headers_never_hangs(tmp_path):
    random.seed(1)
    path = tmp_path / "x.tar"
    write_tar(path, [m for i in range(4) for m in sample(i, "d/" * 60)], tarfile.PAX_FORMAT)
    whole, start = path.read_bytes(), time.perf_counter()
    for _ in range(200):
        at = 512 * random.randrange(len(whole) // 512)
        path.write_bytes(with_size(whole, at, random.randbytes(12)))
        with contextlib.suppress(DataError):
            wds(path)
    assert time.perf_counter() - start < 5


# --- Packed ---------------------------------------------------------------------------------------


@pytest.fixture
def packed(images, tmp_path):
    assert pack(f"folder:{images}", tmp_path / "packed") == {}
    return tmp_path / "packed"


def reseal(root: Path) -> None:
    """Makes every digest of a changed folder right again, as an attacker would."""
    about = json.loads((root / "pack.json").read_text())
    del about["sha256"]
    for name, entry in about["files"].items():
        if "sha256" in entry:
            entry["sha256"] = hashlib.sha256((root / name).read_bytes()).hexdigest()
    about["sha256"] = own_digest(about)
    (root / "pack.json").write_text(json.dumps(about))


def test_packed_gives_the_same_batches_as_what_it_was_made_of(images, packed):
    for split in ("train", "test"):
        original, copy = folder(images, split), open_source(f"packed:{packed}", split, 8)
        assert copy.classes == original.classes
        assert np.array_equal(copy.labels, original.labels)
        assert all(np.array_equal(copy.read(i), original.read(i)) for i in range(len(copy)))
    for step in (0, 13):
        options = {"augment": "random-resized-crop"}
        copy = loader(open_source(f"packed:{packed}", "train", 8), **options)
        assert same(copy.batch(step), loader(folder(images), **options).batch(step))


def test_pack_scales_refuses_and_leaves_out(images, tmp_path):
    Path(images / "bee/004.png").write_bytes(b"")
    bad = pack(f"folder:{images}", tmp_path / "small", max_side=10)
    assert bad == {str(images / "bee/004.png"): "is empty"}
    small = open_source(f"packed:{tmp_path}/small", "train", 8)
    assert len(small) == 53
    assert {min(small.read(i).shape[:2]) for i in range(53)} == {9, 10}
    with pytest.raises(DataError, match="is there already"):
        pack(f"folder:{images}", tmp_path / "small")
    for path in images.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="nothing was packed"):
        pack(f"folder:{images}", tmp_path / "none")
    assert {p.name for p in tmp_path.iterdir()} == {"set", "small"}


def test_a_note_travels_with_the_packed_images(tmp_path):
    data = [{"bytes": encoded(smooth(), "JPEG", quality=60)}] * 4
    write_parquet(tmp_path / "a.parquet", 4, image=data, label=[0, 1, 0, 1])
    pack(f"parquet:{tmp_path}/a.parquet", tmp_path / "out")
    assert open_source(f"packed:{tmp_path}/out", "test", 8).note.endswith("quality about 60.")


def read_all(root: Path) -> None:
    for split in ("train", "test"):
        source = open_source(f"packed:{root}", split, 8)
        for index in range(len(source)):
            source.read(index)


def test_packed_detects_every_flip_truncation_zeroed_page_and_missing_file(packed):
    random.seed(2)
    read_all(packed)
    files = sorted(path for path in packed.rglob("*") if path.is_file())
    assert len(files) == 13
    faults = ["flip"] * 12 + ["cut"] * 3 + ["zero"] * 3 + ["gone"]
    for path, fault in itertools.product(files, faults):
        whole = path.read_bytes()
        data, at = bytearray(whole), random.randrange(len(whole))
        if fault == "flip":
            data[at] ^= 1 << random.randrange(8)
        elif fault == "cut":
            del data[at:]
        elif fault == "zero":
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        path.unlink()
        if fault != "gone":
            path.write_bytes(data)
        if fault == "gone" or data != whole:
            with pytest.raises((DataError, BadImage)) as raised:
                read_all(packed)
            assert str(path) in str(raised.value), fault
        path.write_bytes(whole)
    read_all(packed)


def test_packed_file_cut_under_a_reader_is_a_bad_image(packed):
    source = open_source(f"packed:{packed}", "train", 8)
    os.truncate(packed / "train/images.bin", 600)
    with pytest.raises(BadImage, match=r"images.bin:53: does not match"):
        source.read(53)


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(Trap.path),)


def test_packed_runs_no_pickle(packed, tmp_path):
    Trap.path = tmp_path / "the trap went off"
    poisons = [pickle.dumps(Trap())]
    file = io.BytesIO()
    np.save(file, np.array([Trap()] * 54, object), allow_pickle=True)
    poisons.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, label=np.zeros(54, np.int64))
    poisons.append(file.getvalue())
    for poison in poisons:
        (packed / "train/label.npy").write_bytes(poison)
        reseal(packed)
        with pytest.raises(DataError, match=r"label\.npy is no"):
            open_source(f"packed:{packed}", "train", 8)
    assert not Trap.path.exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offset", lambda a: a + 1), ("offset", lambda a: a - 10**12), ("height", lambda a: -a),
        ("height", lambda a: a * 1000), ("width", lambda a: a * 0), ("label", lambda a: a + 1),
        ("label", lambda a: a - 1), ("crc32", lambda a: a[:-1]),
        ("label", lambda a: a.astype(np.int32)), ("label", lambda a: a[:, None]),
    ],
)  # fmt: skip
def test_packed_with_right_digests_but_wrong_values_is_refused(packed, name, change):
    path = packed / f"train/{name}.npy"
    np.save(path, change(np.load(path)))
    reseal(packed)
    with pytest.raises(DataError, match=r"does not fit|differ in length|is no one-dimensional"):
        open_source(f"packed:{packed}", "train", 8)


def test_packed_array_that_promises_too_much_is_refused(packed):
    path = packed / "train/label.npy"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(54,), }            ", b"(54000000000000,), }"))
    assert path.read_bytes() != data
    reseal(packed)
    with pytest.raises(DataError, match=r"label\.npy is no array of numbers"):
        open_source(f"packed:{packed}", "train", 8)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"sha256": 1}', '{"sha256": null, "format": 1}', "\udcff"],
)
def test_packed_with_a_strange_description_is_refused(packed, text):
    (packed / "pack.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"pack\.json"):
        open_source(f"packed:{packed}", "train", 8)
    for key in ("note", "classes", "files"):
        (packed / "pack.json").write_text(
            json.dumps({"format": 1, "sha256": own_digest({"format": 1, key: 3}), key: 3})
        )
        with pytest.raises(DataError, match="lacks what a packed data set needs"):
            open_source(f"packed:{packed}", "train", 8)


# --- Built-in sets --------------------------------------------------------------------------------


def built_in(spec: str, split: str = "train", size: int = 32) -> Source:
    try:
        return open_source(spec, split, size)
    except DataError as problem:
        if "could not be fetched" in str(problem):
            pytest.skip(str(problem))
        raise


def covered(source, photo: int) -> np.ndarray:
    """(H, W) bool: the pixels that some crop of this photograph shows."""
    mask = np.zeros(source.photos[photo].shape[:2], bool)
    for top, left in source.corners[source.labels == photo]:
        mask[top : top + source.size, left : left + source.size] = True
    return mask


@pytest.mark.parametrize("size", [32, 64])
def test_photos_have_27_classes_and_no_pixel_in_both_splits(size):
    train, test = built_in("photos", "train", size), built_in("photos", "test", size)
    assert len(train.classes) == 27
    assert train.classes == test.classes
    assert "not object recognition" in train.note
    assert set(train.labels) == set(test.labels) == set(range(27))
    for photo, array in enumerate(train.photos):
        assert min(array.shape[:2]) == 384
        here, there = covered(train, photo), covered(test, photo)
        assert not (here & there).any()
        middle = array.shape[1] // 2
        assert not here[:, middle:].any()
        assert not there[:, :middle].any()
        assert here[:, :middle].mean() > 0.7
        assert there.sum() == size**2 * (test.labels == photo).sum()  # no pixel twice
        assert np.array_equal(train.photos[photo], test.photos[photo])
    assert all(np.diff(np.unique(test.corners[test.labels == 3][:, 1])) == size)
    for source in (train, test):
        crop = source.read(len(source) - 1)
        assert crop.shape == (size, size, 3)
        assert crop.dtype == np.uint8
        assert not crop.flags.writeable


def test_photos_of_any_size_fit_into_their_halves():
    large = built_in("photos", "test", 256)  # a portrait's half must be that wide too
    assert set(large.labels) == set(range(27))
    assert large.read(0).shape == (256, 256, 3)
    with pytest.raises(DataError, match="up to 512 pixels"):
        built_in("photos", "train", 1024)


def test_fashion_mnist():
    train, test = built_in("fashion-mnist"), built_in("fashion-mnist", "test")
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    image = train.read(0)
    assert image.shape == (32, 32, 3)
    assert (image[..., 0] == image[..., 2]).all()
    assert not image[:2].any()
    assert image.any()
    assert train.classes[train.labels[0]] == "Ankle boot"


def test_cifar10_without_network_names_another_way(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"could not be downloaded.*parquet:PATH") as raised:
        open_source("cifar10", "train", 32, cache_dir=tmp_path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_cifar10_takes_only_the_published_archive(tmp_path):
    write_tar(tmp_path / "cifar-10-binary.tar.gz", [("cifar/data_batch_1.bin", b"x")])
    with pytest.raises(DataError, match="is not the published archive"):
        open_source("cifar10", "train", 32, cache_dir=tmp_path)
    assert not (tmp_path / "cifar-10").exists()


def test_cifar10_reads_the_binary_layout(tmp_path):
    records = np.zeros((10_000, 3073), np.uint8)
    records[:, 0] = np.arange(10_000) % 10
    image = pixels(32, 32)
    records[17, 1:] = image.transpose(2, 0, 1).reshape(-1)
    (tmp_path / "cifar-10").mkdir()
    records.tofile(tmp_path / "cifar-10" / "test_batch.bin")
    source = open_source("cifar10", "test", 32, cache_dir=tmp_path)
    assert len(source) == 10_000
    assert np.array_equal(source.read(17), image)
    assert source.classes[source.labels[17]] == "horse"
    assert source.describe(17) == "test_batch.bin:17"
