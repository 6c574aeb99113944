"""How the report writes numbers: one function, so that page, Markdown and plots say the same."""

from __future__ import annotations

import math

MINUS, MISSING = "\N{MINUS SIGN}", "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
# Units of the columns of results.csv that are costs.
COLUMN_UNITS = {
    "multiply_adds": "count",
    "parameters": "count",
    "seconds_per_iteration": "seconds",
    "peak_memory_bytes": "bytes",
}
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def format_number(value: float, unit: str = "", sign: bool = False, decimals: int = 0) -> str:
    """A number for people.

    Args:
        value: Any number.
        unit: ``''`` (a metric from 0 to 1), ``'%'``, ``'count'``, ``'seconds'``, ``'bytes'``, ``'ratio'`` or ``'p'``
            (of a test). Metrics are written without their unit, which the column names.
        sign: Whether a plus is written as well.
        decimals: Of a metric, where more are wanted than the usual ones.

    Raises:
        ValueError: Unknown unit.
    """
    if not math.isfinite(value):
        return MISSING if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    lead = MINUS if value < 0 else "+" if sign else ""
    value = abs(value)
    if unit in _DECIMALS:
        text = f"{value:.{max(_DECIMALS[unit], decimals)}f}"
        return text if float(text) == 0 else lead + text  # no sign before a zero
    if unit in ("count", "bytes"):
        scale, prefix = next((pair for pair in _PREFIXES if value >= 0.9995 * pair[0]), _PREFIXES[-1])
        letter = "B" if unit == "bytes" else ""
        return f"{lead}{_digits(value / scale)} {prefix}{letter}".rstrip()
    if unit == "seconds":
        return f"{lead}{_digits(value * 1e3)} ms" if value < 0.9995 else f"{lead}{_digits(value)} s"
    if unit == "ratio":
        return f"{lead}{TIMES}{_digits(value)}"
    if unit == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    raise ValueError(f"unit must be one of '', '%', 'count', 'seconds', 'bytes', 'ratio', 'p', got {unit!r}")


_DECIMALS = {"": 3, "%": 2}


def _digits(value: float) -> str:
    """Three significant digits, without an exponent; whole numbers up to 999 as they are."""
    if value == int(value) and value < 1000:
        return str(int(value))
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """For people: ``'45 s'``, ``'12 min'``, ``'3 h 20 min'``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
