"""metrics.jsonl: one JSON object a log step, whole lines only, valid JSON whatever the numbers."""

import json
import math
from pathlib import Path

from ldae_fast.report.atomic import replace_bytes

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsError(ValueError):
    """A file of metrics with something else in it, as one sentence."""


class MetricsLog:
    """Appends records to `path`, a line each, handed to the system at once.

    Opening repairs what a killed run left: a torn last line goes, and with `keep_until_step` also
    every record of a later step, which the resumed run will write again.
    """

    def __init__(self, path: str | Path, keep_until_step: int | None = None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._repair(math.inf if keep_until_step is None else keep_until_step)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open until close()

    def append(self, record: dict) -> None:
        """Writes one record; NaN and infinities become the strings that `read_metrics` restores."""
        self.file.write(encode(record))
        self.file.flush()

    def close(self) -> None:
        """Closes the file; the log can be opened again to go on."""
        self.file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def _repair(self, last_step: float) -> None:
        if not self.path.exists():
            return
        kept = [r for r in read_metrics(self.path) if r.get("step", -1) <= last_step]
        content = "".join(map(encode, kept)).encode()
        if content != self.path.read_bytes():
            replace_bytes(self.path, content)


def read_metrics(path: str | Path) -> list[dict]:
    """Every whole record of the file, in order; a last line cut short by a crash is left out.

    Any other line that is no JSON object raises MetricsError with its place.
    """
    lines = Path(path).read_bytes().split(b"\n")
    records = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_hook=_restore)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif index < len(lines) - 1:
            raise MetricsError(
                f"{path}, line {index + 1}: not a JSON object; mend that line or take it out"
            )
    return records


def encode(record: dict) -> str:
    """One line of strict JSON, numpy and torch scalars included."""
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or type(value) in (str, bool, int, float):
        return value
    return _plain(value.item()) if hasattr(value, "item") else value


def _restore(pairs: dict) -> dict:
    return {k: NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in pairs.items()}
