"""How numbers and foreign text are written, the same in HTML, Markdown and chart tooltips."""

import math
import re


def percent(share: float) -> str:
    """A share as a percentage: `0 %`, `0.031 %`, `3.12 %`, `50.0 %`."""
    return f"{_digits(100 * share)}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, always signed: `+2.40 points`."""
    return f"{100 * difference:+.2f}\N{NO-BREAK SPACE}points"


def added(share: float) -> str:
    """A share that is added, always signed: `+1.80 %`."""
    return f"{100 * share:+.2f}\N{NO-BREAK SPACE}%"


def interval(low: float, high: float) -> str:
    """An interval of shares: `[1.90, 5.10]`, in percent."""
    return f"[{_digits(100 * low)}, {_digits(100 * high)}]"


def point_interval(low: float, high: float) -> str:
    """An interval of differences of shares: `[+0.30, +4.50]`, in points."""
    return f"[{100 * low:+.2f}, {100 * high:+.2f}]"


def rate(estimate: float, low: float, high: float) -> str:
    """A share with its interval: `3.12 % [1.90, 5.10]`."""
    return f"{percent(estimate)} {interval(low, high)}"


def number(value: float | None) -> str:
    """A value of any size in four digits; NaN and infinities by name, a missing one as a dash."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def _digits(value: float) -> str:
    if abs(value) < 1e-9:
        return "0"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text with its control characters, direction overrides and lone surrogates written out as `\\u202e`.

    Line feeds and tabs stay. A model's output can hold anything; none of it may act on the page it is shown in.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def split_at_difference(golden: str, faulty: str) -> tuple[str, str, str]:
    """The common beginning of two texts, and what follows it in each."""
    pairs = enumerate(zip(golden, faulty, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(golden), len(faulty)))
    return golden[:length], golden[length:], faulty[length:]
