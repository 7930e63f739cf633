"""What the benchmarks compared: rows of one table, as they are written, read, and said to people."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

UNITS = ("ms", "s", "share", "images", "dB")


@dataclass(frozen=True)
class Row:
    """One comparison with another library.

    Parameters
    ----------
    attack, case, measure
        What is attacked or computed, in which setting, and what is counted.
    unit
        Of the two values, one of `UNITS`.
    peer, version
        Whom ours is compared with.
    theirs, ours
        The two values, medians or means.
    ratio
        How many times better ours is, be it less time or more found; of decibels, which are logarithms, how many
        more. Of times, the median over neighbouring calls, which is not quite the ratio of the two medians.
    low, high
        Middle half of the ratios of neighbouring calls; None where calls are not compared one by one.
    bar
        What the ratio has to be at least; None: no bar.
    """

    attack: str
    case: str
    measure: str
    unit: str
    peer: str
    version: str
    theirs: float
    ours: float
    ratio: float
    low: float | None = None
    high: float | None = None
    bar: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None without one."""
        return None if self.bar is None else self.ratio >= self.bar

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same from run to run."""
        return self.attack, self.case, self.measure, self.peer

    @property
    def said(self) -> dict[str, str]:
        """The row as people read it, by the heading of its columns."""
        decibels = " dB" if self.unit == "dB" else ""
        return {
            "attack": self.attack,
            "case": self.case,
            "measure": self.measure,
            "peer": f"{self.peer} {self.version}",
            "peer's": value(self.theirs, self.unit),
            "ours": value(self.ours, self.unit),
            "times better": f"{self.ratio:+.2f} dB" if decibels else rounded(self.ratio),
            "middle half": ""
            if self.low is None or self.high is None
            else f"{rounded(self.low)} to {rounded(self.high)}",
            "bar": "" if self.bar is None else f"{self.bar:g}{decibels}",
            "holds": {None: "", True: "holds", False: "fails"}[self.holds],
        }


def rounded(number: float) -> str:
    """Three digits, or more where there are more before the point."""
    digits = 2 - math.floor(math.log10(abs(number))) if number else 0
    return f"{number:,.{max(digits, 0)}f}"


def value(number: float, unit: str) -> str:
    """A value with its unit; shares and counts need none."""
    if unit in ("ms", "s"):
        return f"{rounded(number)} {unit}"
    return {"share": f"{number:.3f}", "images": f"{number:.0f}", "dB": f"{number:.2f} dB"}[unit]


def timed(
    named: tuple[str, str, str, str, str],
    theirs: list[float],
    ours: list[float],
    *,
    unit: str = "ms",
    bar: float | None = None,
) -> Row:
    """A comparison of seconds, of calls in turn; ``named`` is attack, case, measure, peer and its version."""
    attack, case, measure, peer, version = named
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, high = (None, None) if len(ratios) < 3 else quantiles(ratios, n=4)[::2]
    scale = {"ms": 1000, "s": 1}[unit]
    values = scale * median(theirs), scale * median(ours)
    return Row(attack, case, measure, unit, peer, version, *values, median(ratios), low, high, bar)


def write(path: Path, rows: list[Row], checks: dict[str, bool]) -> None:
    """Write rows, and bars that compare with nobody, by their text."""
    # torch comes with it, and is not needed to read rows.
    from gradleak_lib.files import write_whole

    content = {"rows": [asdict(row) for row in rows], "checks": checks}
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def finish(path: Path | None, rows: list[Row], checks: dict[str, bool]) -> int:
    """Write the comparisons if a file is named; the exit code is 0 where every bar holds, else 1."""
    if path is not None:
        write(path, rows, checks)
    return 0 if all(row.holds is not False for row in rows) and all(checks.values()) else 1


def read(path: Path) -> tuple[list[Row], dict[str, bool]]:
    """Rows and further bars of one benchmark."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]], content["checks"]
