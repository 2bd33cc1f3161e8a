"""Numbers and names as people read them."""

from __future__ import annotations

import math

__all__ = ["amount", "change", "points", "printable", "rate", "share", "shortened"]


def amount(count: int) -> str:
    """A count: 2,113, 1.12 M, 361.8 M, 7.24 G."""
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if count >= size:
            value = count / size
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"
    return f"{count:,}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent: 0.31 %, 12.4 %, 100 %; never 0 % for something or 100 % for less than all."""
    if whole <= 0:
        return "0 %"
    value = 100 * part / whole
    if value in (0, 100):
        return f"{value:.0f} %"
    if value < 0.01:
        return "<0.01 %"
    if value > 99.9:
        return ">99.9 %"
    return f"{value:.2f} %" if value < 10 else f"{value:.1f} %"


def rate(value: float) -> str:
    """A ratio in [0, 1] in per cent with one decimal, two below one tenth of a per cent."""
    per_cent = 100 * value
    return f"{per_cent:.1f} %" if per_cent == 0 or abs(per_cent) >= 0.1 else f"{per_cent:.2g} %"


def points(difference: float) -> str:
    """A difference of two ratios in percentage points, with its sign."""
    value = 100 * difference
    if value == 0:
        return "±0.0 pt"
    return f"{value:+.1f} pt" if abs(value) >= 0.05 else f"{value:+.1g} pt"


def change(value: float | None) -> str:
    """A relative norm or a divergence: two significant digits, "∞", or "?" when unknown."""
    if value is None:
        return "?"
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    return f"{value:.2g}" if 1e-4 <= value < 100 else f"{value:.1e}"


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal or turn its direction written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters, the middle left out; its end says most."""
    if len(text) <= width:
        return text
    if width < 2:
        return text[:width]
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + (text[-tail:] if tail else "")
