"""What a person sees of a run: progress line, metrics.jsonl, pictures, tables, report.html."""

import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldae_fast.config import to_json
from ldae_fast.recipes import build_config
from ldae_fast.report import pictures
from ldae_fast.report.canvas import LARGEST, TILE, Sheet, as_pixels, resize
from ldae_fast.report.format import duration, number, percent, points, span
from ldae_fast.report.metrics import MetricsLog, read_metrics
from ldae_fast.report.page import write_page
from ldae_fast.report.progress import Progress
from ldae_fast.report.tables import markdown_table, result_table

RESULT = {
    "recipe": "demo",
    "data": "cifar10",
    "steps": 5000,
    "images": 640000,
    "seconds": 754.2,
    "linear_top1": 0.583,
    "knn_top1": 0.491,
    "baselines": {"untrained": 0.363, "raw_pixels": 0.391, "pca": 0.402},
    "effective_rank": 38.25,
    "chance": 0.1,
    "verdict": "The encoder learned.",
    "note": "One seed.",
    "command": "ldae train demo --data cifar10 --out runs/demo",
}
HOSTILE = "<script>alert(1)</script>\"'&</title><img src=x onerror=y>"


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Tags(HTMLParser):
    """Names of the tags on a page, what they load or link, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.text += data + "\n"


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- numbers in words


@pytest.mark.parametrize(
    ("value", "words"),
    [(1234567, "1,234,567"), (np.int64(5000), "5,000"), (0.12341, "0.1234"), (1179.6, "1,180"),
     (12.3456, "12.35"), (3e-4, "0.0003"), (1.25e-5, "1.25e-05"), (0.0, "0"),
     (float("nan"), "nan"), (-0.5, "-0.5000"), ("a\x1b[2J\nb", "a [2J b"),
     (np.float32(2), "2.000")],
)  # fmt: skip
def test_number(value, words):
    assert number(value) == words


def test_durations_shares_and_differences():
    assert [duration(s) for s in (0, 201, 7384, 183_900)] == [
        "0:00", "3:21", "2:03:04", "2 d 03:05 h",
    ]  # fmt: skip
    assert [span(s) for s in (8.26, 754.2, 7384)] == ["8.26 s", "12 min 34 s", "2 h 3 min"]
    assert percent(0.5834) == "58.3 %"
    assert percent(None) == percent(math.nan) == "not measured"
    assert points(0.192) == "+19.2 points"
    assert points(-0.00001) == "+0.0 points"


# --- progress


def test_plain_progress_writes_the_first_line_then_one_per_interval_then_the_last():
    stream, clock = io.StringIO(), Clock()
    with Progress("train", stream, every_s=10, clock=clock) as line:
        for step in range(31):
            clock.now = float(step)
            fields = {"step": f"{step}/30", "loss": 0.5, "images/s": 1180.2}
            line.update(step / 30, fields)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train  step 0/30  loss 0.5000  1,180 images/s",
        "train  step 10/30  loss 0.5000  1,180 images/s  0:20 left",
        "train  step 20/30  loss 0.5000  1,180 images/s  0:10 left",
        "train  step 30/30  loss 0.5000  1,180 images/s  0:00 left",
        "train  step 30/30  loss 0.5000  1,180 images/s  in 0:30",
    ]
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_time_left_of_a_resumed_run_counts_only_what_this_process_did():
    stream, clock = io.StringIO(), Clock()
    line = Progress("train", stream, every_s=0, clock=clock)
    line.update(0.90, {})
    clock.now = 10.0
    line.update(0.95, {})
    assert stream.getvalue().splitlines()[-1] == "train  0:10 left"


def test_without_a_known_end_the_line_says_how_long_it_has_run():
    stream, clock = io.StringIO(), Clock()
    line = Progress("fit", stream, clock=clock)
    clock.now = 65.0
    line.update(None, {"patches": 12000})
    assert stream.getvalue() == "fit  patches 12,000  1:05 elapsed\n"


def test_an_error_leaves_the_state_and_passes_on():
    stream = io.StringIO()
    line = Progress("train", stream, clock=Clock())
    line.update(0.5, {"step": 3})
    with pytest.raises(KeyError), line:
        raise KeyError
    assert stream.getvalue().splitlines()[-1] == "train  step 3  stopped after 0:00"


def test_a_closed_stream_does_not_end_the_work():
    stream = io.StringIO()
    line = Progress("train", stream, every_s=0)
    stream.close()
    line.update(0.1, {})
    line.update(0.2, {})
    line.close()


def on_terminal(columns: int, updates: list, monkeypatch, term="xterm") -> str:
    """What a Progress writes to a real pseudo-terminal that is `columns` wide."""
    monkeypatch.setenv("TERM", term)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    clock = Clock()
    with (
        open(slave, "w", encoding="utf-8") as stream,
        Progress("train", stream, clock=clock) as line,
    ):
        for seconds, fraction, fields in updates:
            clock.now = seconds
            line.update(fraction, fields)
    written = b"".join(iter(lambda: read_some(master), b""))
    os.close(master)
    return written.decode().replace("\r\n", "\n")


def read_some(master: int) -> bytes:
    """What a terminal has to give; b"" once its other end is closed and everything is read."""
    try:
        return os.read(master, 1 << 16)
    except OSError:  # Linux says EIO where a pipe would say end of file
        return b""


def test_live_progress_rewrites_one_line_at_most_ten_times_a_second(monkeypatch):
    updates = [(i / 100, i / 200, {"step": i}) for i in range(101)]
    written = on_terminal(80, updates, monkeypatch)
    redraws = written.split("\r\x1b[K")
    assert redraws[0] == ""
    assert 9 <= len(redraws) - 2 <= 11  # one second of updates; the final state comes on top
    assert redraws[-1] == "train  step 100  in 0:01\n"
    assert written.count("\n") == 1


def test_live_progress_drops_last_fields_first_and_never_wraps(monkeypatch):
    fields = {"step": "1,234/5,000", "loss": 0.1234, "data_wait": "0.3 %"}
    written = on_terminal(40, [(0, 0.1, fields), (9, 0.2, fields)], monkeypatch)
    shown = [line.rstrip("\n") for line in written.split("\r\x1b[K")[1:]]
    assert shown[1] == "train  step 1,234/5,000  1:12 left"
    assert max(map(len, shown)) < 40
    tiny = on_terminal(4, [(0, 0.1, fields)], monkeypatch)
    assert tiny.split("\r\x1b[K")[1] == "tra"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    assert on_terminal(80, [(0, 0.5, {})], monkeypatch, term="dumb") == "train\ntrain  in 0:00\n"


# --- metrics.jsonl


def test_metrics_survive_a_kill_and_resume_without_duplicate_steps(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"step": 10, "loss": 0.5})
        assert path.read_text() == '{"step": 10, "loss": 0.5}\n'  # there before close
        log.append({"step": 20, "loss": 0.4})
        log.append({"step": 30, "loss": 0.3})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    assert [r["step"] for r in read_metrics(path)] == [10, 20, 30]
    with MetricsLog(path, keep_until_step=20) as log:
        log.append({"step": 30, "loss": 0.31})
    assert read_metrics(path) == [
        {"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.4}, {"step": 30, "loss": 0.31},
    ]  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_opening_again_without_a_step_keeps_all_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with MetricsLog(path) as log:
        log.append({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_numbers_that_are_not_finite_stay_valid_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = {"loss": math.nan, "grad": np.float32("inf"), "n": np.int64(3), "deep": [-math.inf]}
    with MetricsLog(path) as log:
        log.append({"step": 1, "nested": record})
        log.append({"step": 2, "loss": -math.inf})

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    first = json.loads(path.read_text().splitlines()[0], parse_constant=refuse)
    assert first["nested"] == {"loss": "NaN", "grad": "Infinity", "n": 3, "deep": ["-Infinity"]}
    back = read_metrics(path)
    assert math.isnan(back[0]["nested"]["loss"])
    assert back[0]["nested"]["grad"] == math.inf
    assert back[1]["loss"] == -math.inf


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object; mend"):
        read_metrics(path)


# --- pictures


def test_tiles_are_enlarged_by_repetition_and_reduced_by_averaging():
    small = as_pixels(np.arange(2 * 2 * 3).reshape(1, 2, 2, 3) / 11)
    big = resize(small)
    assert big.shape == (1, TILE, TILE, 3)
    assert np.array_equal(big[:, :: TILE // 2, :: TILE // 2], small)
    assert len(np.unique(big)) == len(np.unique(small))
    large = np.zeros((700, 500, 3), np.uint8)
    large[::3] = 90
    reduced = resize(large)
    assert reduced.shape == (233, 166, 3)
    assert max(reduced.shape) <= LARGEST
    assert np.all(reduced == 30)
    assert resize(np.zeros((2, 28, 40, 3), np.uint8)).shape == (2, 112, 160, 3)


def test_pixels_are_clipped_and_grey_becomes_rgb():
    pixels = as_pixels(np.array([-1.0, 0.5, 2.0, np.nan]).reshape(2, 2, 1))
    assert pixels[..., 0].tolist() == [[0, 128], [255, 0]]
    assert pixels.shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        as_pixels(np.zeros((4, 4)))


def test_denoising_grid_holds_every_tile_in_its_place(tmp_path, rng):
    clean = rng.random((3, 32, 32, 3))
    noisy, denoised = rng.random((2, 2, 3, 32, 32, 3))
    arguments = (clean, noisy, denoised, [100, 500], [0.14, 0.71])
    path = pictures.denoising_grid(tmp_path / "a" / "denoising.png", *arguments)
    assert path == tmp_path / "a" / "denoising.png"
    sheet = load(path)
    assert sheet.shape == (100 + 3 * 168 - 8 + 40, 40 * 4 + 5 * 160 + 2 * 8, 3)
    lefts = [40, 240, 408, 608, 776]
    columns = [clean, noisy[0], denoised[0], noisy[1], denoised[1]]
    for left, column in zip(lefts, columns):
        for row, image in enumerate(column):
            top = 100 + row * 168
            tile = sheet[top : top + 160 : 5, left : left + 160 : 5]
            assert np.array_equal(tile, np.rint(image.astype(np.float32) * 255))
    assert sheet[:60].min() < 120  # words above the tiles

    again = pictures.denoising_grid(tmp_path / "b.png", *arguments)
    assert again.read_bytes() == path.read_bytes()
    denoised[1, 2] = 0.5
    assert not np.array_equal(load(pictures.denoising_grid(path, *arguments)), sheet)
    assert [p.name for p in path.parent.iterdir()] == ["denoising.png"]  # no temporary left


def test_denoising_grid_names_each_column_above_its_tiles(tmp_path, monkeypatch):
    words, write = {}, Sheet.write

    def spy(self, x, y, text, *args, **kwargs):
        words.setdefault(text, []).append(x)
        write(self, x, y, text, *args, **kwargs)

    monkeypatch.setattr(Sheet, "write", spy)
    clean, noisy = np.zeros((1, 32, 32, 3)), np.zeros((2, 1, 32, 32, 3))
    pictures.denoising_grid(tmp_path / "d.png", clean, noisy, noisy, [100, 500], [0.14, 0.71])
    assert words["clean"] == [40 + 80]
    assert words["noisy"] == [240 + 80, 608 + 80]
    assert words["denoised"] == [408 + 80, 776 + 80]
    assert words["t = 100   σ = 0.14"] == [(320 + 488) / 2]


def test_denoising_grid_refuses_shapes_that_do_not_belong_together(tmp_path):
    clean, noisy = np.zeros((3, 8, 8, 3)), np.zeros((2, 3, 8, 8, 3))
    with pytest.raises(ValueError, match="noisy and denoised"):
        pictures.denoising_grid(tmp_path / "x.png", clean, noisy, noisy[:, :2], [1, 2], [0.1, 0.2])
    assert not (tmp_path / "x.png").exists()


def test_noise_levels_takes_uint8_and_one_channel(tmp_path, rng):
    images = rng.integers(0, 256, (3, 2, 28, 28, 1), dtype=np.uint8)
    sheet = load(pictures.noise_levels(tmp_path / "n.png", images, [0.0, 0.5, 1.4]))
    assert np.array_equal(sheet[60 : 60 + 168 : 6, 40 : 40 + 168 : 6, 1], images[0, 0, ..., 0])
    assert sheet.shape[1] == 2 * 40 + 3 * 168 + 2 * 8


@pytest.mark.parametrize(("count", "side"), [(16, 32), (4, 64), (9, 28), (100, 32), (7, 256)])
def test_samples_are_as_wide_as_their_title(tmp_path, count, side):
    """Beside the margin of 40 no more than a sixth of the sheet is white."""
    black, words = np.zeros((count, side, side, 3)), "ldae, trained weights, 100 steps, eta 1"
    sheet = load(pictures.sample_grid(tmp_path / "s.png", black, words))
    inked = (sheet[100:] == 0).all(-1).any(0).nonzero()[0]
    assert inked[0] == 40
    assert sheet.shape[1] - 40 - inked[-1] < sheet.shape[1] / 6


@pytest.mark.parametrize("kept", [1, 5, 48, 80])
def test_pca_filters_are_scaled_about_grey(tmp_path, rng, kept):
    filters = rng.standard_normal((kept, 4, 4, 3)) * 1e-3
    variance = np.sort(rng.random(max(kept, 48)))[::-1]
    path = tmp_path / "pca.png"
    sheet = load(pictures.pca_filters(path, filters, variance))
    first = sheet[100:220:30, 40:160:30] / 255
    assert np.allclose(first, 0.5 + filters[0] / (2 * np.abs(filters[0]).max()), atol=1 / 255)
    assert not np.array_equal(load(pictures.pca_filters(path, filters, variance**4)), sheet)
    pictures.pca_filters(path, filters * 0, variance * 0)


def history(steps: int) -> list[dict]:
    return [
        {"step": i, "loss": math.exp(-i / steps * 4) + 0.01, "lr": 1e-3 * i / steps}
        | ({"knn_top1": 0.3 + 0.1 * i / steps, "effective_rank": 12.5} if i % 50 == 0 else {})
        for i in range(1, steps + 1)
    ]


def test_curves_follow_the_metrics(tmp_path):
    path = tmp_path / "curves.png"
    full = load(pictures.curves(path, history(400)))
    assert full.shape == (1000, 1640, 3)
    assert not np.array_equal(load(pictures.curves(path, history(300))), full)
    only_loss = [{"step": r["step"], "loss": r["loss"]} for r in history(5)]
    assert load(pictures.curves(path, only_loss)).shape == (560, 1640, 3)
    diverged = load(pictures.curves(path, [*history(400), {"step": 401, "loss": math.nan}]))
    assert not np.array_equal(diverged[:110], full[:110])  # the corner says so


def test_curves_say_when_and_on_what_a_probe_was_taken(tmp_path, monkeypatch):
    """Its last value is neither of the last step nor of the final evaluation's images."""
    words = []
    monkeypatch.setattr(Sheet, "write", lambda self, x, y, text, *_, **__: words.append(text))
    probe = {"step": 3, "knn_top1": 0.247, "effective_rank": 9.5, "knn_top1_images": 1000,
             "effective_rank_images": 4000}  # fmt: skip
    pictures.curves(tmp_path / "c.png", [probe, *({"step": i, "loss": 0.5} for i in range(1, 7))])
    assert {"at step 3, of 1,000 images", "at step 3, of 4,000 images"} <= set(words)
    assert not [text for text in words if text.startswith("at step 6")]
    words.clear()
    pictures.curves(tmp_path / "c.png", [{"step": 12, "held_out_top1": 0.4}])
    assert "at step 12" in words


@pytest.mark.parametrize(
    "metrics", [[], [{"step": 1}], [{"step": 1, "loss": None}], [{"step": 1, "knn_top1": 0.2}],
                [{"step": 7, "loss": 0.0, "lr": 0.0}]],
)  # fmt: skip
def test_curves_of_nearly_nothing(tmp_path, metrics):
    assert load(pictures.curves(tmp_path / "c.png", metrics)).std() > 1


def test_bars_are_as_long_as_the_accuracies(tmp_path):
    sheet = load(pictures.bars(tmp_path / "bars.png", RESULT | {"chance": None}))
    blue = np.array([0x2F, 0x5F, 0xD0])
    own = (sheet == blue).all(-1).any(0).sum()
    grey = (sheet[110:] == np.array([0xC3, 0xCA, 0xD3])).all(-1)
    lengths = sorted({int(row.sum()) for row in grey if row.sum() > 50}, reverse=True)
    longest = lengths[0] / own
    assert longest == pytest.approx(0.402 / 0.583, abs=0.01)
    with_chance = load(pictures.bars(tmp_path / "bars.png", RESULT))
    assert not np.array_equal(with_chance, sheet)


@pytest.mark.parametrize("result", [{}, {"linear_top1": None, "baselines": {"pca": 0.2}}])
def test_bars_of_an_unfinished_result(tmp_path, result):
    load(pictures.bars(tmp_path / "bars.png", result))


def test_words_with_dollars_are_not_formulas(tmp_path):
    result = RESULT | {"baselines": {"$\\frac{": 0.2}}
    load(pictures.bars(tmp_path / "bars.png", result))


# --- tables


def test_result_table_shows_each_lead_in_points():
    text = result_table(RESULT | {"baselines": RESULT["baselines"] | {"better": 0.6, "lost": None}})
    rows = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    assert ["trained encoder", "58.3 %"] in rows
    assert ["better", "60.0 %", "-1.7 points"] in rows
    assert ["PCA", "40.2 %", "+18.1 points"] in rows
    assert ["lost", "not measured"] in rows
    assert ["chance", "10.0 %", "+48.3 points"] in rows
    assert ["time", "12 min 34 s"] in rows
    assert text.index("better") < text.index("PCA") < text.index("untrained") < text.index("lost")
    assert text.endswith("The encoder learned.\n\nOne seed.")


def test_result_table_of_little_and_of_hostile_names():
    assert "not measured" in result_table({})
    text = result_table({"recipe": "a\x1b[31m\nb", "linear_top1": math.nan, "seconds": None})
    assert "\x1b" not in text
    assert "recipe  a [31m b" in text


def test_markdown_table():
    rows = [["row 0", 57.5, "61.0 %"], ["a|b\nc", None, "9.5 %"], ["n", 62, ""]]
    assert markdown_table(rows, ["row", "acc", "ours"]).splitlines() == [
        "| row    |  acc |   ours |",
        "| ------ | ---: | -----: |",
        "| row 0  | 57.5 | 61.0 % |",
        "| a\\|b c |      |  9.5 % |",
        "| n      |   62 |        |",
    ]
    assert markdown_table([], ["a"]).splitlines()[0] == "| a   |"
    waiting = [["a", "51.0"], ["b", "waiting"], ["c", "49.2"]]
    assert markdown_table(waiting, ["row", "top-1"]).splitlines()[1] == "| --- | ------: |"


# --- the page


def a_run(folder: Path, result: dict | None = None, config: dict | None = None) -> Path:
    for name, content in (("result.json", result), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def test_page_is_whole_and_loads_nothing(tmp_path):
    a_run(tmp_path, RESULT, {"seed": 3, "model": {"depth": 12, "mlp": {"ratio": 4.0}}})
    pictures.bars(tmp_path / "pictures" / "bars.png", RESULT)
    path = write_page(tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text("utf-8")
    page = Tags(html)
    without_images = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in without_images
    assert "url(" not in without_images
    assert "@import" not in without_images
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == 1
    assert not {"script", "link", "iframe"} & set(page.tags)
    expected = ("demo", "trained on cifar10", "The encoder learned.", "58.3 %", "+18.1 points",
                "mlp.ratio", "12 min 34 s", RESULT["command"])  # fmt: skip
    for words in expected:
        assert words in page.text
    assert "prefers-color-scheme: dark" in html


def settings_of(folder: Path, config: dict) -> tuple[str, str]:
    """The words of the page's settings: in the open, and folded away."""
    html = write_page(a_run(folder, None, config)).read_text("utf-8")
    shown, *folded = html[html.index("<h2>Settings") :].split("<details>")
    return Tags(shown).text, Tags("".join(folded)).text


def test_settings_that_are_the_recipes_own_are_folded_away(tmp_path):
    made = build_config("mae", 64, "", {"evaluate.epochs": "7", "objective.mask_ratio": "0.5"})
    config = json.loads(to_json(made)) | {"launch": {"steps": 3}}
    shown, folded = settings_of(tmp_path, config)
    assert "These differ from what recipe mae has." in shown
    for name, value in (("epochs", "7"), ("mask_ratio", "0.5")):
        assert re.search(rf"{name}\W+{value}", shown)
        assert name not in folded
    for name in ("width", "mask_norm", "image_size", "workers", "launch"):
        assert name not in shown
        assert name in folded
    assert folded.strip().startswith("All others")


def test_settings_of_an_unknown_recipe_are_all_in_the_open(tmp_path):
    config = json.loads(to_json(build_config("mae", 32)))
    shown, folded = settings_of(tmp_path, config)
    assert "None differs from what recipe mae has." in shown
    assert "width" in folded
    assert folded.strip().startswith("All settings")
    _, folded = settings_of(tmp_path, {"recipe": "mine", "launch": {"steps": 3}})
    assert folded.strip().startswith("How it was launched")
    for change in ({"recipe": "mine"}, {"recipe": ["mae"]}, {"data": {"image_size": "wide"}}):
        shown, folded = settings_of(tmp_path, config | change)
        assert "width" in shown
        assert (folded, "differ" in shown) == ("", False)


def test_page_escapes_everything(tmp_path):
    keys = ("recipe", "data", "verdict", "note", "command")
    result = RESULT | dict.fromkeys(keys, HOSTILE) | {"baselines": {HOSTILE: 0.5}}
    a_run(tmp_path, result, {"recipe": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "x": [HOSTILE]})
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / '<b onload=z>&".png').write_bytes(b"no picture")
    html = write_page(tmp_path).read_text("utf-8")
    page = Tags(html)
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert page.tags.count("title") == 1
    assert "alert(1)" in page.text


def test_page_of_a_run_in_progress(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1200, "loss": 0.25, "images_per_s": 1180.4})
        log.append({"step": 1250, "knn_top1": 0.41})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1300, "l')
    text = Tags(write_page(tmp_path).read_text("utf-8")).text
    for words in ("no result yet", "1,250", "0.2500", "1,180", "41.0 %"):
        assert words in text


def test_page_of_an_empty_or_damaged_folder(tmp_path):
    assert "no result yet" in write_page(tmp_path).read_text("utf-8")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("[]\n{}\n")
    (tmp_path / "result.json").write_text("[1]")
    text = Tags(write_page(tmp_path).read_text("utf-8")).text
    assert "config.json could not be read" in text
    assert "metrics.jsonl, line 1" in text


def test_pictures_come_in_the_order_of_the_story(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("other-10", "other-9", "pca_filters", "curves", "samples", "denoising"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(b"")
    html = write_page(tmp_path).read_text("utf-8")
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        "Denoising", "Samples", "Training", "Patch components", "other-9", "other-10",
    ]  # fmt: skip


def test_the_package_needs_neither_torch_nor_pyplot(tmp_path):
    program = (
        "import sys; import ldae_fast.report.pictures as p, ldae_fast.report.page, "
        "ldae_fast.report.progress; assert 'matplotlib' not in sys.modules; "
        f"p.bars({str(tmp_path / 'b.png')!r}, {{'linear_top1': .5}}); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
