"""Examples in docstrings run as they stand there."""

import doctest
import importlib
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "gradleak_lib"
MODULES = sorted(
    ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
    for path in LIBRARY.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert found
    for test in found:
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_the_main_entry_points_have_one():
    wanted = {
        "attacks": ["analytic", "imprint", "inversion", "labels", "linkability", "spear"],
        "metrics": ["labels", "reconstruction"],
    }
    assert {f"gradleak_lib.{room}.{name}" for room, names in wanted.items() for name in names} <= set(MODULES)
