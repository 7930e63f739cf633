"""Every parameter of every chapter, changed by itself: it runs, or one sentence refuses it before a kernel starts.

All changes are planned in each run, and some of them executed at smoke size: others after each commit. With
``GRADLEAK_PARAMETERS=all`` all are, or those of some chapters with ``GRADLEAK_PARAMETERS=02,04``, which takes hours.
"""

import functools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradleak_lib.book import chapters, execution, keys, parameters, planning, results

ROOT = results.ROOT
DRAWN = 1


def others(value: Any) -> Iterator[Any]:
    """A smaller, a larger and some odd values in place of one."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (type(value)(value / 2), 2 * value, 1, 0, -1)
    elif isinstance(value, str):
        yield from ("nonsense", "")
    elif value and isinstance(value[0], list):
        yield from (value[:1], [[2 * entry for entry in part] for part in value], [[0] * len(value[0])], [])
    else:
        yield from (value[:1], value[1:], [*value, *value], [])
        if value and not isinstance(value[0], str):
            yield from ([2 * entry for entry in value], [1], [0], [-1])


def allowed(parameter: parameters.Parameter) -> Iterator[Any]:
    """What a parameter's limits name: its words, or the least number; not the machine, of which there is one."""
    if parameter.name == "device":
        return
    if parameter.kind is str and (words := re.search("one of ([^;]+)", parameter.limits)):
        yield from words[1].split(", ")
    if parameter.kind in (int, float) and (
        least := re.match("(-?[0-9.e-]+) (or more|to )", parameter.limits)
    ):
        yield parameter.kind(float(least[1]))


def changes() -> Iterator[tuple[str, str, Any]]:
    for source in chapters.chapter_sources(ROOT):
        smoke = planning.profile_parameters("smoke", source, ROOT)
        for name, parameter in parameters.declared(source).items():
            tried = [smoke.get(name, parameter.default)]
            for value in [*allowed(parameter), *others(tried[0])]:
                if value not in tried:
                    tried.append(value)
                    yield source.stem, name, value


CHANGES = list(changes())


@functools.cache
def depends(source: Path) -> dict[str, str]:
    return keys.decides(source.read_text(encoding="utf-8"), ROOT)


def planned(chapter: str, name: str, value: Any) -> planning.Run | None:
    """The run with one parameter changed; None where a sentence refuses it."""
    source = ROOT / "notebooks" / f"{chapter}.md"
    try:
        run = planning.plan_one(
            source, {name: value}, profile="smoke", root=ROOT, data=None, depends=depends(source)
        )
    except chapters.UsageError as error:
        said = str(error)
    else:
        return run
    assert "\n" not in said
    assert name in said
    return None


def chosen() -> list[tuple[str, str, Any]]:
    """Changes to execute, of those that are not refused: after each commit others."""
    wanted = os.environ.get("GRADLEAK_PARAMETERS", "")
    some = [change for change in CHANGES if wanted in ("", "all") or change[0][:2] in wanted.split(",")]
    random.Random(results.commit().removesuffix("-dirty")).shuffle(some)
    return some


def test_every_change_is_planned_or_refused():
    refused = sum(planned(*change) is None for change in CHANGES)
    assert len(CHANGES) > 200
    assert 0 < refused < len(CHANGES)


def test_some_that_are_not_refused_run(tmp_path: Path):
    ran, failed = 0, []
    for change in chosen():
        run = planned(*change)
        if run is None:
            continue
        source = run.source.read_text(encoding="utf-8")
        kernels = execution.Kernels()
        outcome, text = execution.execute(run, source, folder=tmp_path, threads=1, kernels=kernels)
        if outcome.error or not text:
            failed.append(f"{change}: {outcome.error}")
        ran += 1
        if ran == DRAWN and not os.environ.get("GRADLEAK_PARAMETERS"):
            break
    assert not failed, "\n".join(failed)
    assert ran
