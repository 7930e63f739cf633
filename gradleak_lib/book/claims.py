"""The papers' claims, what we measured, and the verdict, which nobody types by hand.

`gradleak_lib.book.scorecard` gathers what the chapters found.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml
from IPython.display import display
from scipy import stats

CLAIMS = Path(__file__).resolve().parents[2] / "book" / "claims.yaml"
KEY = "gradleak-findings"  # of a finding, in the metadata of the hidden output with which a chapter checks it
HEADLINE = "headline"  # name under which a chapter says how many of its claims have which verdict
TABLE = "gradleak-claims"  # marks the output that shows a chapter's findings
Measured = float | Sequence[float] | Mapping[str, float | Sequence[float]]
NOT_MEASURED = "not measured in this run"
# Each verdict with its rule; the first that fits counts. A claim holds in a setting if the mean of what was measured
# there lies in the claim's interval; one without an interval cannot be tested. These are the grades of claims that
# the build judges; those that a study decides have `gradleak_lib.book.estimates.GRADES`.
VERDICTS = {
    "reproduced": "it holds in every setting that was tried",
    "reproduced in trend": "it holds in at least half of the settings",
    "not reproduced": "it holds in fewer; or in none, but our measurements do not exclude it: in some setting "
    "the 95 % interval of their mean (Student's t) reaches into the claim's interval",
    "contradicted": "it holds in no setting, and our measurements exclude it",
    "undecided": "the 95 % interval of a study lies across the border, or its control failed",
    NOT_MEASURED: "its section needs data, or parameters, that this run had not",
    "not testable here": "it needs data or machines that this build has not; its number is the paper's own",
}


@dataclass(frozen=True)
class Claim:
    """One claim of one paper.

    Parameters
    ----------
    id
        ``"rtf-03"``.
    paper
        Key in ``book/references.bib``.
    where
        Place in the paper.
    data
        What the paper measured it on; empty where it needs no data, or does not say.
    claim
        The claim in our words.
    measured
        What we measure to check it; empty where a study decides, which says so itself.
    unit
        Unit of the paper's number and of ours.
    number
        The paper's own number; None where it gives none.
    holds
        Closed interval of measured values under which the claim holds, None for an open end; None as a whole for
        a claim that cannot be checked here and is only cited, or that a study decides.
    amended
        How the rule was changed after a number was known, the first change first: ``date``, ``why``, and ``before``,
        the rule that stood there, with its ``verdict`` where it is known.
    """

    id: str
    paper: str
    where: str
    claim: str
    measured: str = ""
    data: str = ""
    unit: str = ""
    number: float | None = None
    holds: tuple[float | None, float | None] | None = None
    amended: tuple[Mapping[str, Any], ...] = ()

    def admits(self, low: float, high: float) -> bool:
        """Whether some value from ``low`` to ``high`` is one under which the claim holds."""
        if self.holds is None:
            raise ValueError(f"{self.id} cannot be checked here")
        least, most = self.holds
        return (least is None or high >= least) and (most is None or low <= most)


@dataclass(frozen=True)
class Finding:
    """What we measured for one claim.

    Parameters
    ----------
    claim
        The claim.
    settings
        Measured values (one per seed or batch) by setting; one setting named ``""`` where there is only one.
    reason
        Why ours differs from the paper's, or what the reader should know.
    data
        What we measured it on; empty where it needs no data.
    """

    claim: Claim
    settings: Mapping[str, tuple[float, ...]]
    reason: str = ""
    data: str = ""

    @property
    def held(self) -> int:
        """In how many settings the claim holds."""
        means = [float(np.mean(values)) for values in self.settings.values()]
        return sum(self.claim.admits(mean, mean) for mean in means)

    @property
    def verdict(self) -> str:
        """The first of `VERDICTS` whose rule fits."""
        if self.claim.holds is None:
            return "not testable here"
        if not self.settings:
            return NOT_MEASURED
        if self.held == len(self.settings):
            return "reproduced"
        if 2 * self.held >= len(self.settings):
            return "reproduced in trend"
        if self.held or any(self.claim.admits(*interval(values)) for values in self.settings.values()):
            return "not reproduced"
        return "contradicted"


def interval(values: Sequence[float] | pd.Series) -> tuple[float, float]:
    """95% interval of the mean of a few independent measurements, by Student's t; a point where there is only one."""
    mean = float(np.mean(values))
    error = float(stats.sem(values)) if len(values) > 1 else 0.0
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def load_claims(paper: str | None = None, *, path: Path = CLAIMS) -> dict[str, Claim]:
    """Claims by id, of one paper or of all.

    Raises
    ------
    ValueError
        If the file holds an entry that is not a claim, an id twice, or no claim of that paper.
    """
    claims: dict[str, Claim] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        try:
            holds = tuple(entry["holds"]) if entry.get("holds") else None
            claim = Claim(**(entry | {"holds": holds, "amended": tuple(entry.get("amended", ()))}))
        except TypeError as error:
            raise ValueError(f"{path.name}: {entry.get('id', entry)}: {error}") from error
        if claim.id in claims:
            raise ValueError(f"{path.name}: {claim.id} stands there twice")
        if paper in (None, claim.paper):
            claims[claim.id] = claim
    if not claims:
        raise ValueError(f"{path.name} has no claim of {paper!r}")
    return claims


def judge(
    claim: Claim,
    measured: Measured,
    *,
    reason: str = "",
    data: str = "",
) -> Finding:
    """Put measured values beside a claim.

    Parameters
    ----------
    claim
        The claim.
    measured
        One value, several (seeds or batches), or either by setting, in the claim's unit. A setting without values,
        or with NaN among them, was not measured.
    reason, data
        As in `Finding`.
    """
    by_setting = measured if isinstance(measured, Mapping) else {"": measured}
    settings = {name: tuple(float(v) for v in np.atleast_1d(values)) for name, values in by_setting.items()}
    settings = {name: values for name, values in settings.items() if values and not np.isnan(values).any()}
    return Finding(claim, MappingProxyType(settings), reason, data)


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row per claim: paper's number, ours with its spread, verdict, and the reason where there is one."""
    rows = [
        {
            "claim": f"{finding.claim.id}: {finding.claim.claim} ({finding.claim.where})",
            "verdict": finding.verdict,
            "paper": number(finding.claim),
            "ours": "; ".join(each_setting(finding)),
            "what we measured, and why it differs": " ".join(
                filter(None, (finding.claim.measured, rule(finding.claim), finding.reason))
            ),
        }
        for finding in findings
    ]
    return pd.DataFrame(rows)


def show(findings: Sequence[Finding]) -> None:
    """Display the table of a chapter's findings."""
    display(bundle(findings), raw=True, metadata={TABLE: True})


def bundle(findings: Sequence[Finding]) -> dict[str, str]:
    """Return that table as Jupyter shows it."""
    rows = table(findings).to_html(index=False, border=0, classes="claims")
    return {"text/html": rows, "text/plain": headline(findings)}


class Judged(Protocol):
    """What has a verdict: a finding of the build, or the decision of a study."""

    @property
    def verdict(self) -> str:
        """The grade."""
        ...


def headline(findings: Iterable[Judged]) -> str:
    """``"29 claims: 15 reproduced, 5 reproduced in trend, 8 contradicted, 1 not testable here"``."""
    verdicts = Counter(finding.verdict for finding in findings)
    parts = ", ".join(f"{verdicts[name]} {name}" for name in VERDICTS if verdicts[name])
    return f"{verdicts.total()} claims: {parts}"


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return what was measured by claim, as JSON holds it; `from_json` reads it."""
    return {
        finding.claim.id: {
            "settings": {name: list(values) for name, values in finding.settings.items()},
            "reason": finding.reason,
            "data": finding.data,
        }
        for finding in findings
    }


def from_json(measured: Mapping[str, Any], claims: Mapping[str, Claim]) -> list[Finding]:
    """Return the findings behind what `as_json` gave; the verdicts follow from the claims as they are now.

    Raises
    ------
    ValueError
        If something was measured for a claim that is not among ``claims``.
    """
    unknown = set(measured) - set(claims)
    if unknown:
        raise ValueError(f"measured for no known claim: {', '.join(sorted(unknown))}")
    return [
        judge(claims[name], found["settings"], reason=found["reason"], data=found["data"])
        for name, found in measured.items()
    ]


def number(claim: Claim) -> str:
    """The paper's own number with its unit, in words where it gives none."""
    return "no number" if claim.number is None else _with_unit(claim.number, claim.unit)


def rule(claim: Claim) -> str:
    """Under which measured values the claim holds, as a sentence."""
    if claim.holds is None:
        return ""
    low, high = (None if end is None else _with_unit(end, claim.unit) for end in claim.holds)
    if low is None or high is None:
        return f"Holds from {low} on." if high is None else f"Holds up to {high}."
    return f"Holds from {low} to {high}."


def each_setting(finding: Finding) -> list[str]:
    """What was measured in each setting: the mean, with the standard deviation where there are several values."""
    return [_ours(name, values, finding.claim.unit) for name, values in finding.settings.items()]


def _with_unit(value: float, unit: str) -> str:
    return f"{value:g} {unit}".strip()


def _ours(name: str, values: Sequence[float], unit: str) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    text = f"{float(np.mean(values)):.4g}{spread} {unit}".strip()
    return f"{name}: {text}" if name else text
