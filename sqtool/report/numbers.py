"""Numbers as people read them. Shown only: nothing is compared after rounding."""

from __future__ import annotations

import math


def percent(share: float, digits: int = 2) -> str:
    """0.9731 as `97.31 %`."""
    return f"{100 * share:.{digits}f} %"


def signed_points(difference: float, digits: int = 2) -> str:
    """-0.0123 as `-1.23`; a difference that rounds to nothing has no sign."""
    text = f"{100 * difference:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def value(number: float | None, digits: int = 3) -> str:
    """A number with so many significant digits (more before the point if it has them); `-` for none."""
    if number is None or not math.isfinite(number):
        return "-"
    if abs(number) < 1:
        return f"{number:.{digits}g}"
    decimals = max(0, digits - len(str(int(abs(number)))))
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def milliseconds(number: float | None) -> str:
    """Milliseconds with what digits matter; `-` for none."""
    if number is None:
        return "-"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def size(nbytes: float) -> str:
    """Bytes in decimal units: 31400000 as `31.4 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def span(seconds: float | None) -> str:
    """Seconds as `8.2 s`, `3 min 05 s` or `2 h 10 min`; empty for none."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
