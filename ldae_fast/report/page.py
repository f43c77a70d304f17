"""report.html: one run on one page that needs no network, no script and no other file."""

import base64
import json
import re
import shlex
import struct
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

from ldae_fast.config import SettingError, parse, to_json
from ldae_fast.recipes import recipe_config
from ldae_fast.report.atomic import replace_bytes
from ldae_fast.report.format import number, percent, points, spoken
from ldae_fast.report.metrics import read_metrics
from ldae_fast.report.style import PAGE
from ldae_fast.report.tables import AHEAD, TRAINED, facts, probe_rows

# Heading and caption by the start of a picture's name, in the order of the page.
PICTURES = {
    "bars": ("", "A linear classifier on frozen features, beside features that need no training."),
    "denoising": ("Denoising", "What the network is given, and what it makes of it."),
    "masking": ("Masking", "What the encoder is shown, and what the decoder makes of the hidden "
                "patches. Where the loss is of normalised patches, each has the mean and the "
                "contrast of the original."),
    "samples": ("Samples", "What the network draws from noise, by what the line above them says."),
    "curves": ("Training", "Over steps; the figure at the right is the last value. kNN and rank "
               "are of training images here, at the step that stands with them; the run's result "
               "is of the test images."),
    "noise": ("Noise levels", "The same images under rising noise."),
    "reconstructions": ("Tokenizer", "Test images, and what the tokenizer makes of their latents."),
    "pca": ("Patch components", "The directions in which image patches vary most, and the share of "
            "variance that each holds."),
}  # fmt: skip
SHOWN_APART = ("command",)


def write_page(run_dir: str | Path) -> Path:
    """Writes `report.html` into a run's folder from what is there, finished or not."""
    run = Path(run_dir)
    problems: list[str] = []
    config, result = (_load(run / name, problems) for name in ("config.json", "result.json"))
    try:
        metrics = read_metrics(run / "metrics.jsonl")
    except FileNotFoundError:
        metrics = []
    except (OSError, ValueError) as error:
        metrics, _ = [], problems.append(str(error))
    body = [
        _heading(run, config, result),
        _outcome(result) if result else _so_far(metrics),
        *(f'<p class="quiet">{escape(problem)}</p>' for problem in problems),
        _scores(result) if result.get("linear_top1") is not None else "",
        "".join(map(_figure, sorted((run / "pictures").glob("*.png"), key=_order))),
        reproduce(result.get("command") or config.get("command")),
        _settings({k: v for k, v in config.items() if k not in SHOWN_APART}),
    ]
    return replace_bytes(run / "report.html", document(_title(run, config, result), body))


def document(title: str, body: Iterable[str]) -> bytes:
    """A whole page that needs no other file, of parts that are HTML already."""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    return html.encode("utf-8", "replace")


def _load(path: Path, problems: list[str]) -> dict:
    """The JSON object at `path`; {} where there is none, and a remark where it cannot be read."""
    try:
        value = json.loads(path.read_text("utf-8"))
        return value if isinstance(value, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return {}


def _title(run: Path, config: Mapping, result: Mapping) -> str:
    recipe = result.get("recipe") or config.get("recipe") or run.resolve().name
    return recipe if isinstance(recipe, str) else run.resolve().name


def _heading(run: Path, config: Mapping, result: Mapping) -> str:
    data = result.get("data") or config.get("data")
    data = data.get("spec") if isinstance(data, Mapping) else data
    trained_on = f"<p>trained on {escape(str(data))}</p>" if data else ""
    return f"<h1>{escape(_title(run, config, result))}</h1>{trained_on}"


def _outcome(result: Mapping) -> str:
    """The verdict, a remark, and the figures of the run."""
    verdict, note = result.get("verdict"), result.get("note")
    parts = [f'<p class="verdict">{escape(str(verdict))}</p>' if verdict else ""]
    parts += [fact_list([f for f in facts(result) if f[0] not in ("recipe", "data")])]
    parts += [f'<p class="quiet">{escape(str(note))}</p>' if note else ""]
    return "".join(parts)


def _so_far(metrics: list[dict]) -> str:
    """For a run without a result: the last value of each quantity that was logged."""
    last: dict = {}
    for record in metrics:
        last |= record
    shown = {"step": number, "loss": number, "images_per_s": number, "knn_top1": percent,
             "effective_rank": number}  # fmt: skip
    rows = [(spoken(k), words(last[k])) for k, words in shown.items() if last.get(k) is not None]
    return f'<p class="verdict">This run has no result yet.</p>{fact_list(rows)}'


def fact_list(rows: list[tuple[str, str]]) -> str:
    """Labels, each above its words."""
    cells = (f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in rows)
    return f'<dl class="facts">{"".join(cells)}</dl>' if rows else ""


def _scores(result: Mapping) -> str:
    """Linear probe of the trained encoder and of each baseline, with its lead over each."""
    lines = [
        f"<tr{' class=own' if name == TRAINED else ''}><td>{escape(name)}</td>"
        f"<td>{percent(top1)}</td><td>{points(lead)}</td></tr>"
        for name, top1, lead in probe_rows(result)
    ]
    head = f"<tr><th></th><th>top-1</th><th>{AHEAD}</th></tr>"
    return f'<h2>Linear probe</h2><table class="scores">{head}{"".join(lines)}</table>'


def _order(picture: Path) -> tuple:
    """The order of PICTURES, then by name with numbers as numbers."""
    kinds = [index for index, kind in enumerate(PICTURES) if picture.name.startswith(kind)]
    numbers = re.sub(r"\d+", lambda digits: digits[0].zfill(12), picture.name)
    return (kinds[0] if kinds else len(PICTURES), numbers)


def _figure(picture: Path) -> str:
    named = (words for kind, words in PICTURES.items() if picture.name.startswith(kind))
    return figure(picture, *next(named, (spoken(picture.stem), "")))


def figure(picture: Path, heading: str, caption: str) -> str:
    """The PNG itself in the page, under its heading, above its caption."""
    content = picture.read_bytes()
    size = ""
    if content[12:16] == b"IHDR":  # drawn at twice the pixels that it takes on the page
        width, height = (side // 2 for side in struct.unpack(">II", content[16:24]))
        wide = ' class="wide"' if width > 600 else ""  # its words stay legible: phones scroll it
        size = f' width="{width}" height="{height}"{wide}'
    source = base64.b64encode(content).decode()
    return (
        f"{f'<h2>{escape(heading)}</h2>' if heading else ''}<figure><div>"
        f'<img alt="{escape(caption or heading)}"{size} src="data:image/png;base64,{source}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def reproduce(command: object) -> str:
    """The command that makes it again, '' where none is known."""
    if not command:
        return ""
    words = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    return f"<h2>Run it again</h2><pre>{escape(words)}</pre>"


def _settings(config: Mapping) -> str:
    """Those that are not the recipe's own; the others, and how it was launched, folded away."""
    rows, usual = list(_rows(config)), _usual(config)
    own = [row for row in rows if row not in usual and row[0] != "launch"]
    others = [row for row in rows if row not in own]
    page = "<h2>Settings</h2>" if rows else ""
    if usual:
        said = "These differ" if own else "None differs"
        recipe = escape(str(config["recipe"]))
        page += f'<p class="quiet">{said} from what recipe {recipe} has.</p>'
    page += _tables(own)
    if others:
        only = {group for group, *_ in others} == {"launch"}
        name = "How it was launched" if only else "All others" if own else "All settings"
        page += f"<details><summary>{name}</summary>{_tables(others)}</details>"
    return page


def _usual(config: Mapping) -> list[tuple[str, str, object]]:
    """The settings that its recipe has at its image size, [] where there is no such recipe."""
    try:
        side = parse("data.image_size", int, config["data"]["image_size"])
        return list(_rows(json.loads(to_json(recipe_config(str(config["recipe"]), side)))))
    except (KeyError, TypeError, SettingError):
        return []


def _rows(config: Mapping) -> Iterator[tuple[str, str, object]]:
    """(group, name in it, value) of each setting; what stands outside any group comes first."""
    for name, value in config.items():
        if not isinstance(value, Mapping):
            yield "run", name, value
    for group, values in config.items():
        if isinstance(values, Mapping):
            yield from ((group, name, value) for name, value in _leaves(values))


def _leaves(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tables(rows: list[tuple[str, str, object]]) -> str:
    """One small table a group of settings, '' where there is none."""
    tables: dict[str, str] = {}
    for group, name, value in rows:
        words = value if isinstance(value, str) else json.dumps(value)
        line = f"<tr><td><code>{escape(name)}</code></td><td>{escape(words)}</td></tr>"
        tables[group] = tables.get(group, "") + line
    sections = "".join(
        f"<section><h3>{escape(spoken(group))}</h3><table>{lines}</table></section>"
        for group, lines in tables.items()
    )
    return f'<div class="settings">{sections}</div>' if rows else ""
