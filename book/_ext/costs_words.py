"""How the page on costs writes numbers."""

import math


def count(value: float) -> str:
    """A count in words that stay short: ``9,600``, ``10 million``, ``5.8 × 10¹⁸``."""
    if value < 10**6:
        return f"{value:,.0f}"
    for limit, unit in ((1e9, "million"), (1e12, "billion")):
        if value < limit:
            return f"{value / (limit / 1000):.3g} {unit}"
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.1f} × 10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def seconds(value: float) -> str:
    """A time with two digits and the unit that suits it."""
    units = (
        (1e-6, "µs"),
        (1e-3, "ms"),
        (1, "s"),
        (60, "min"),
        (3600, "h"),
        (86400, "days"),
        (31557600, "years"),
    )
    size, unit = next((pair for pair in reversed(units) if value >= pair[0]), units[0])
    return f"{_two(value / size)} {unit}"


def size(value: float) -> str:
    """Bytes with two digits, in decimal units."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(len(units) - 1, int(math.log10(max(value, 1)) // 3))
    return f"{_two(value / 1000**power)} {units[power]}"


def _two(value: float) -> str:
    """Two digits, never as a power of ten."""
    digits = max(0, 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{round(value, digits if value < 100 else -math.floor(math.log10(value)) + 1):,.{digits}f}"


def exact(number: int) -> str:
    """A round size as a power where it is large."""
    for base in (10, 2):
        power = round(math.log(number, base))
        if number == base**power and number > 10**3:
            return f"${base}^{{{power}}}$"
    return f"{number:,}"


def label(text: str, measured: bool) -> str:
    """First cell of a row, which says whether the row was measured."""
    return f"{text} *{'measured' if measured else 'extrapolated'}*"
