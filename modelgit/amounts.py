"""How amounts read in a sentence: counts with their noun, sizes with their unit."""

from __future__ import annotations

__all__ = ["counted", "size_text"]


def counted(number: int, noun: str) -> str:
    """A count and what is counted: `1 tensor`, `2,113 values`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size_bytes: int) -> str:
    """A size in binary units: `134 bytes`, `3.1 MiB`."""
    if abs(size_bytes) < 1024:
        return counted(size_bytes, "byte")
    value, units = size_bytes / 1024, ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1023.95 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.1f} {units[0]}"
