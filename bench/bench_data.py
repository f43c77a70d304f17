"""Images a second from files: JPEG decoders alone, the loader end to end, and what a step waits.

pytest bench/bench_data.py --benchmark-json=F [--seconds S]     python bench/bench_data.py F

The second command prints F as a table. The files are real: 500 x 375 parts of the photographs in
Debian's wallpaper packages, quality 90, made once into the cache. They come from memory, as all
that was read before does. "a core": images a second of processor time, whichever thread spent it.
A step is products of matrices on every thread, as many as last that long; every other one runs
while the loader, whose batches are ready, stands still: that is the step alone.
"""

import io
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import interleave
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from ldae_fast.data import DataError, Loader, cache_folder, open_source
from ldae_fast.data.packed import pack
from ldae_fast.data.photos import scaled_photos
from ldae_fast.data.prefetch import prefetch

pytestmark = pytest.mark.benchmark(timer=interleave.CLOCK, group="data")

HEIGHT, WIDTH, QUALITY, EACH, SHORT_SIDE = 375, 500, 90, 40, 750
SAMPLE = 54  # files that a decoder decodes in one call, two of each photograph
BATCH, BATCHES = 32, 4  # of the loader in one call
DRAWN_S = 12  # seconds of steps a row


def of_simplejpeg(times: int = 1):
    least = {"min_height": -(-HEIGHT // times), "min_width": -(-WIDTH // times)}
    return partial(simplejpeg.decode_jpeg, **(least if times > 1 else {}))


def of_pillow(times: int = 1):
    def decode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (WIDTH // times, HEIGHT // times))
            return np.asarray(image.convert("RGB"))

    return decode


def of_torchcodec():
    from torchcodec.decoders import decode_jpeg

    return lambda data: decode_jpeg(data).permute(1, 2, 0).numpy()


def of_spdl():
    import spdl.io

    rgb = spdl.io.get_video_filter_desc(pix_fmt="rgb24")
    return lambda data: spdl.io.to_numpy(spdl.io.load_image(data, filter_desc=rgb))


DECODERS = {
    "simplejpeg": of_simplejpeg,
    "simplejpeg, 1/2 a side": partial(of_simplejpeg, 2),
    "simplejpeg, 1/4 a side": partial(of_simplejpeg, 4),
    "Pillow": of_pillow,
    "Pillow, 1/2 a side (draft)": partial(of_pillow, 2),
    "Pillow, 1/4 a side (draft)": partial(of_pillow, 4),
    "torchcodec": of_torchcodec,
    "SPDL": of_spdl,
}
OPTIONAL = "torchcodec", "SPDL"
DECODE_ROWS = [(name, threads) for name in DECODERS for threads in (1, 2)]
LOADER_ROWS = [
    (kind, augment, size, workers)
    for kind, size in (("folder", 256), ("packed", 256), ("folder", 64))
    for augment in ("center", "random-resized-crop")
    for workers in (0, 1, 2)
]
# The CPU's steps in bench/records: `small` at 256 tokens (2026-11-24), the demo's (2026-11-23).
STEP_ROWS = [
    ("folder", "center", 256, 16, 0.95),
    ("folder", "random-resized-crop", 256, 16, 0.95),
    ("packed", "random-resized-crop", 256, 16, 0.95),
    ("folder", "random-resized-crop", 32, 128, 0.24),
]


@pytest.fixture(scope="session")
def files():
    """Specifications of the data sets: the folder of JPEGs, and the same packed."""
    try:
        folder = kept("jpegs", make_folder)
    except DataError as problem:
        pytest.skip(f"not measured: {problem}")
    made = kept("packed", lambda path: pack(f"folder:{folder}", path, max_side=288))
    return {"folder": f"folder:{folder}", "packed": f"packed:{made}"}


def kept(name: str, make) -> Path:
    """A folder of the cache, made beside it and renamed where it is not there yet."""
    path = cache_folder(None) / f"bench-{name}-{WIDTH}x{HEIGHT}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            make(Path(temporary) / "whole")
            os.rename(Path(temporary) / "whole", path)
    return path


def make_folder(folder: Path) -> None:
    for seed, (name, photo) in enumerate(scaled_photos(SHORT_SIDE, cache_folder(None)).items()):
        (folder / name).mkdir(parents=True)
        dice = np.random.default_rng(seed)
        tops = dice.integers(0, photo.shape[0] - HEIGHT, EACH)
        lefts = dice.integers(0, photo.shape[1] - WIDTH, EACH)
        for i, (top, left) in enumerate(zip(tops, lefts)):
            part = Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH])
            part.save(folder / name / f"{i:02}.jpg", quality=QUALITY)


@pytest.fixture(scope="session")
def decoding(files, request):
    """Times of every decoder on 1 and 2 threads, in turns; why others have none; what they read."""
    source = open_source(files["folder"], "train", WIDTH)
    data = [source.encoded(i) for i in range(0, len(source), len(source) // SAMPLE)][:SAMPLE]
    run, why, off = {}, {}, {}
    truth = of_pillow()(data[0]).astype(int)
    for name, make in DECODERS.items():
        try:
            run[name] = make()
            first = run[name](data[0])
        except (ImportError, OSError, RuntimeError) as problem:
            missing = isinstance(problem, ModuleNotFoundError)
            why[name] = "not installed" if missing else str(problem).splitlines()[0]
            continue
        off[name] = float(np.abs(first - truth).mean()) if first.shape == truth.shape else None
    with ThreadPoolExecutor(2) as pool:

        def call(name: str, threads: int):
            parts = [data[k::threads] for k in range(threads)]
            list(pool.map(lambda part: [run[name](d) for d in part] and None, parts))

        calls = {row: partial(call, *row) for row in DECODE_ROWS if row[0] not in why}
        times = metered(calls, request.config)
    return SimpleNamespace(times=times, why=why, off=off, kb=np.mean([len(d) for d in data]) / 1e3)


def metered(calls: dict, config) -> dict:
    """Row -> (times of its calls in turns, median processor time of one in seconds)."""
    spent = {row: [] for row in calls}

    def meter(row):
        began = time.process_time()
        calls[row]()
        spent[row].append(time.process_time() - began)

    seconds, threads = config.getoption("--seconds") * len(calls), torch.get_num_threads()
    torch.set_num_threads(1)  # or those that cleared the caches would spin into a call's time
    times = interleave.measure({row: partial(meter, row) for row in calls}, "cpu", seconds)
    torch.set_num_threads(threads)
    return {row: (times[row], float(np.median(spent[row]))) for row in calls}


@pytest.fixture(scope="session")
def loading(files, request):
    """Times of BATCHES batches of every row, in turns, each by threads that begin with it."""

    def caller(kind, augment, size, workers):
        source = open_source(files[kind], "train", size)
        loader = Loader(source, batch_size=BATCH, image_size=size, seed=0, augment=augment,
                        workers=workers, cache_mb=0)  # fmt: skip
        return lambda: list(prefetch(loader.batch, range(BATCHES), workers))

    return metered({row: caller(*row) for row in LOADER_ROWS}, request.config)


def note(benchmark, times, spent: float, images: int, **words) -> None:
    """Writes a row: images a second of the median call, of the slow and of the fast ones."""
    interleave.CLOCK.record(benchmark, times)
    slow, median, fast = (images / times.quantile(q) for q in (0.8, 0.5, 0.2))
    benchmark.extra_info |= words | {
        "images_s": median, "p20": slow, "p80": fast, "a_core": images / spent
    }  # fmt: skip


@pytest.mark.parametrize("entry", DECODE_ROWS, ids=str)
def test_decoder(entry, decoding, benchmark):
    name = entry[0]
    if name in decoding.why:
        pytest.skip(f"not measured: {decoding.why[name]}")
    note(benchmark, *decoding.times[entry], SAMPLE, row=entry, off=decoding.off[name],
         kb=decoding.kb)  # fmt: skip


@pytest.mark.parametrize("entry", LOADER_ROWS, ids=str)
def test_loader(entry, loading, benchmark):
    note(benchmark, *loading[entry], BATCH * BATCHES, row=entry)


@pytest.mark.parametrize("entry", STEP_ROWS, ids=str)
def test_step(entry, files, benchmark):
    kind, augment, size, batch, seconds = entry
    loader = Loader(open_source(files[kind], "train", size), batch_size=batch, image_size=size,
                    seed=0, augment=augment, workers=2, cache_mb=0)  # fmt: skip
    step, batches, samples, alone = step_of(seconds), loader.iterate(), [], []
    next(batches)
    waited, began = loader.wait_s, time.perf_counter()
    while time.perf_counter() - began < DRAWN_S:
        samples.append(clocked(lambda: (next(batches), step())))
        alone.append(clocked(step))
    share = (loader.wait_s - waited) / sum(samples)
    batches.close()
    interleave.CLOCK.record(benchmark, interleave.Times(samples))
    benchmark.extra_info |= {"row": entry, "wait": share, "step_s": float(np.median(samples)),
                             "alone_s": float(np.median(alone))}  # fmt: skip


def step_of(seconds: float):
    """A step of about so many seconds."""
    a, b = (torch.randn(768, 768) for _ in range(2))
    once = interleave.measure({"product": lambda: a @ b}, "cpu", 0.5)["product"].p50

    def step():
        for _ in range(max(1, round(seconds / once))):
            a @ b

    return step


def clocked(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def described(row, figures: dict) -> list[str]:
    """Name and figures of one row; `figures` is empty where it was not measured."""
    form = {2: "{}, {} thread(s)", 4: "{} {}, {} px, {} workers", 5: "{} {}, {} px, {} every {} s"}
    name = form[len(row)].format(*row)
    if not figures:
        return [name, "not measured" + (": not installed" if row[0] in OPTIONAL else "")]
    if "wait" in figures:
        return [name, f"{100 * figures['wait']:.2f} %",
                *(f"{figures[key]:.3f}" for key in ("step_s", "alone_s"))]  # fmt: skip
    numbers = [f"{figures[key]:,.0f}" for key in ("images_s", "p20", "p80", "a_core")]
    return [name, *numbers, *([f"{off:.2f}"] if (off := figures.get("off")) is not None else [])]


def table(record: dict) -> str:
    found = {tuple(info["row"]): info for b in record["benchmarks"]
             if "row" in (info := b["extra_info"])}  # fmt: skip
    rates = "images/s", "p20", "p80", "a core"
    lines = []
    for title, rows, heads in (
        ("decoder", DECODE_ROWS, (*rates, "off Pillow")),
        ("loader", LOADER_ROWS, rates),
        ("loader, 2 workers, and a step", STEP_ROWS, ("data_wait", "step s", "alone s")),
    ):
        lines += [[title, *heads], *(described(row, found.get(row, {})) for row in rows), [""]]
    return "\n".join(f"{head:<52}" + "".join(f"{c:>12}" for c in rest) for head, *rest in lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
