"""The papers' claims, what we measured, and the verdict, which nobody types by hand."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import yaml

CLAIMS = Path(__file__).resolve().parents[1] / "book" / "claims.yaml"
VERDICTS = ("reproduced", "partly", "contradicted", "cited")


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
    claim
        The claim in our words.
    measured
        What we measure to check it.
    unit
        Unit of the paper's number and of ours.
    number
        The paper's own number; None where it gives none.
    holds
        Closed interval of measured values under which the claim holds, None for an open end; None as a whole for
        a claim that cannot be checked here and is only cited.
    """

    id: str
    paper: str
    where: str
    claim: str
    measured: str
    unit: str = ""
    number: float | None = None
    holds: tuple[float | None, float | None] | None = None


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
    """

    claim: Claim
    settings: Mapping[str, tuple[float, ...]]
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``reproduced`` if the claim holds in every setting, ``partly`` in some, ``contradicted`` in none."""
        if self.claim.holds is None:
            return "cited"
        low, high = self.claim.holds
        means = [float(np.mean(values)) for values in self.settings.values()]
        holds = [(low is None or mean >= low) and (high is None or mean <= high) for mean in means]
        return "reproduced" if all(holds) else "partly" if any(holds) else "contradicted"


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
            claim = Claim(**(entry | {"holds": tuple(entry["holds"]) if entry.get("holds") else None}))
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
    measured: float | Sequence[float] | Mapping[str, float | Sequence[float]],
    *,
    reason: str = "",
) -> Finding:
    """Put measured values beside a claim.

    Parameters
    ----------
    claim
        The claim.
    measured
        One value, several (seeds or batches), or either by setting, in the claim's unit.
    reason
        As in `Finding`.

    Raises
    ------
    ValueError
        If nothing was measured for a claim that can be checked, or a value is NaN.
    """
    by_setting = measured if isinstance(measured, Mapping) else {"": measured}
    settings = {name: tuple(float(v) for v in np.atleast_1d(values)) for name, values in by_setting.items()}
    values = [value for group in settings.values() for value in group]
    if claim.holds is not None and (not values or any(np.isnan(values))):
        raise ValueError(f"{claim.id}: expected measured numbers, got {measured}")
    return Finding(claim, MappingProxyType(settings), reason)


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row per claim: paper's number, ours with its spread, verdict, and the reason where there is one."""
    rows = [
        {
            "claim": f"{finding.claim.id}: {finding.claim.claim} ({finding.claim.where})",
            "verdict": finding.verdict,
            "paper": _number(finding.claim.number, finding.claim.unit),
            "ours": "; ".join(
                _ours(name, values, finding.claim.unit) for name, values in finding.settings.items()
            ),
            "what we measured, and why it differs": " ".join(
                filter(None, (finding.claim.measured, _rule(finding.claim), finding.reason))
            ),
        }
        for finding in findings
    ]
    return pd.DataFrame(rows)


def headline(findings: Iterable[Finding]) -> str:
    """``"29 claims: 15 reproduced, 5 partly, 8 contradicted, 1 cited"``."""
    verdicts = Counter(finding.verdict for finding in findings)
    parts = ", ".join(f"{verdicts[name]} {name}" for name in VERDICTS if verdicts[name])
    return f"{verdicts.total()} claims: {parts}"


def record(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the headline, and verdict and measured values by claim, as JSON holds them."""
    return {
        "headline": headline(findings),
        "claims": {
            finding.claim.id: {"verdict": finding.verdict, "settings": dict(finding.settings)}
            for finding in findings
        },
    }


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "no number"
    return f"{value:g} {unit}".strip()


def _rule(claim: Claim) -> str:
    """Which measured values count as reproduced, in words."""
    if claim.holds is None:
        return ""
    low, high = (None if end is None else _number(end, claim.unit) for end in claim.holds)
    if low is None or high is None:
        return f"Holds from {low} on." if high is None else f"Holds up to {high}."
    return f"Holds from {low} to {high}."


def _ours(name: str, values: Sequence[float], unit: str) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    text = f"{float(np.mean(values)):.4g}{spread} {unit}".strip()
    return f"{name}: {text}" if name else text
