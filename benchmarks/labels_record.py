"""What `labels.py` measured: outcomes of single calls, and what they say about ours and the other library's."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, median

import comparisons
import environment

LLG, THEIR_LLG, THEIR_DEFAULT = "llg", "wainakh-simple", "bias-corrected"
COUNTING, SOLVING = "bias counts, dummies", "ilrg"
ENOUGH, FROM = 0.95, 8
# Ours and theirs, of which the table speaks: what needs the same, their default, and what we would use.
PAIRS = (
    (LLG, THEIR_LLG),
    (LLG, THEIR_DEFAULT),
    (COUNTING, THEIR_DEFAULT),
    (SOLVING, THEIR_DEFAULT),
)


@dataclass(frozen=True)
class Kind:
    """What batches have in common."""

    classes: int
    samples: int
    balanced: bool

    def __str__(self) -> str:
        return f"{self.classes} classes, B={self.samples}, {'' if self.balanced else 'un'}balanced"


@dataclass(frozen=True)
class Outcome:
    """One call: share of the labels found, CPU seconds, how many labels it gave, and what it raised, if it did."""

    rate: float
    seconds: float
    labels: int
    error: str = ""


Outcomes = dict[str, list[Outcome]]


@dataclass
class Record:
    """All that was measured.

    Parameters
    ----------
    outcomes
        By kind of batch and contestant.
    by_network
        By number of classes, network and contestant, of batches of the sizes that the second bar is about.
    probes
        CPU seconds by number of classes, probe and network.
    """

    outcomes: dict[Kind, Outcomes] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    by_network: dict[tuple[int, str], Outcomes] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    probes: dict[tuple[int, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def rate(self, kind: Kind, name: str) -> float:
        """Mean success rate over networks and batches; a call that failed found nothing."""
        return fmean(outcome.rate for outcome in self.outcomes[kind][name])

    def excess(self, kind: Kind, name: str) -> int:
        """Number of calls that gave more labels than there are samples."""
        return sum(outcome.labels > kind.samples for outcome in self.outcomes[kind].get(name, []))

    def milliseconds(self, classes: int, samples: int, name: str) -> str:
        """Median over the calls that did not fail, as it is printed."""
        seconds = [
            outcome.seconds
            for balanced in (True, False)
            for outcome in self.outcomes[Kind(classes, samples, balanced)].get(name, [])
            if not outcome.error
        ]
        return f"{1000 * median(seconds):.3f}" if seconds else "-"

    def names(self) -> list[str]:
        """Chance and the contestants, in the order in which they are printed; the first kind has them all."""
        return list(next(iter(self.outcomes.values())))


def never_below(record: Record, other: str) -> tuple[str, bool]:
    """Compare our LLG from gradients alone with one of theirs, in every kind of batch."""
    margins = {kind: record.rate(kind, LLG) - record.rate(kind, other) for kind in record.outcomes}
    closest = min(margins, key=lambda kind: margins[kind])
    text = f"our {LLG} never below breaching's {other} (closest: {margins[closest]:+.3f}, {closest})"
    return text, margins[closest] >= 0


def always_enough(record: Record, name: str) -> tuple[str, bool]:
    """Look for the kind of batch in which one of our methods finds least."""
    found = {kind: record.rate(kind, name) for kind in record.outcomes if kind.samples >= FROM}
    worst = min(found, key=lambda kind: found[kind])
    text = f"our {name} at least {ENOUGH} from B={FROM} up (least: {found[worst]:.3f}, {worst})"
    return text, found[worst] >= ENOUGH


def compared(
    record: Record, title: str, ours: str, theirs: str, kinds: list[Kind], bar: float | None = None
) -> comparisons.Row:
    """Mean shares of labels found in some kinds of batches."""
    shares = [fmean(record.rate(kind, name) for kind in kinds) for name in (theirs, ours)]
    about = "labels", title, "labels found", "share", "breaching", environment.BREACHING.version
    return comparisons.Row(*about, *shares, shares[1] / shares[0], bar=bar)


def rows(record: Record) -> Iterator[comparisons.Row]:
    """Shares of the labels found, and times, for each of `PAIRS`, over batches from `FROM` up.

    The first has a bar, which is about the kind of batch that suits ours least.
    """
    kinds = [kind for kind in record.outcomes if kind.samples >= FROM]
    worst = min(kinds, key=lambda kind: record.rate(kind, LLG) / record.rate(kind, THEIR_LLG))
    yield compared(
        record, f"{LLG} against {THEIR_LLG}, worst kind of batch", LLG, THEIR_LLG, [worst], bar=1.0
    )
    for (ours, theirs), classes in product(PAIRS, sorted({kind.classes for kind in kinds})):
        mine = [kind for kind in kinds if kind.classes == classes]
        title = f"{ours} against {theirs}, {classes} classes"
        yield compared(record, title, ours, theirs, mine)
        # Both read each update one after the other.
        seconds = (
            [outcome.seconds for kind in mine for outcome in record.outcomes[kind][name]]
            for name in (theirs, ours)
        )
        named = "labels", title, "CPU time, an update", "breaching", environment.BREACHING.version
        yield comparisons.timed(named, *seconds)
