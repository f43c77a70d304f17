"""How numbers, times and names read to a person, the same in every table, line and picture."""

import math
from numbers import Integral

SPELLED = {"pca": "PCA", "knn": "kNN", "vae": "VAE", "ae": "AE", "lr": "learning rate"}


def finite(value: object) -> float | None:
    """`value` as a float, or None where it is missing, not a number, or not finite."""
    try:
        value = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def number(value: object) -> str:
    """Four or so significant digits, thousands separated; strings pass through on one line."""
    if isinstance(value, (str, bool)) or value is None:
        return one_line(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    value = float(value)  # type: ignore[arg-type]
    size = abs(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if size < 0.01 or size >= 1e15:
        return f"{value:.3g}"
    decimals = 4 if size < 1 else max(0, 3 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def percent(fraction: object) -> str:
    """0.583 -> '58.3 %'; what is no finite number reads 'not measured'."""
    value = finite(fraction)
    return "not measured" if value is None else f"{100 * value:.1f} %"


def points(difference: float | None) -> str:
    """A difference of two fractions in percentage points: 0.192 -> '+19.2 points'."""
    if difference is None:
        return ""
    return f"{round(100 * difference, 1) + 0.0:+.1f} points"  # + 0.0 turns -0.0 into 0.0


def duration(seconds: float) -> str:
    """201 -> '3:21', 7384 -> '2:03:04', and days as '2 d 03:04 h'."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minute:02} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def span(seconds: float) -> str:
    """754 -> '12 min 34 s', for reading rather than for watching."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {second} s" if minutes else f"{seconds:.3g} s"


def spoken(name: object) -> str:
    """'raw_pixels' -> 'raw pixels', with abbreviations as they are written."""
    words = one_line(name).replace("_", " ").split(" ")
    return " ".join(SPELLED.get(word, word) for word in words)


def one_line(value: object) -> str:
    """Text without control characters, which could break a line or drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(value))
