"""Numbers with units, as a person reads them."""

from __future__ import annotations

__all__ = ["count", "duration", "percent", "size"]


def count(number: int, noun: str) -> str:
    """``1 rank``, ``4 ranks``, ``12,345 spans``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(duration_ms: float) -> str:
    """``0.012 ms``, ``0.8 ms``, ``42 ms``, ``1.3 s``, ``15.8 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if duration_ms < 9.95:
        return f"{duration_ms:.1f} ms" if duration_ms >= 0.095 else f"{duration_ms:.2g} ms"
    if duration_ms < 999.5:
        return f"{duration_ms:.0f} ms"
    duration_s = duration_ms / 1000
    if duration_s < 99.95:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(duration_s / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """``71 %``, ``0.1 %``: one decimal below one percent, where it matters."""
    return f"{share * 100:.0f} %" if share >= 0.0095 else f"{share * 100:.1f} %"


def size(num_bytes: int) -> str:
    """``512 B``, ``4.2 MB``: decimal multiples, as disks and networks count."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 9.95 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
