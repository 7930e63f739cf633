"""The parameters of chapters: what their cells declare, and what may stand there."""

import math

import jupytext
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak_lib.book import chapters, parameters, results
from gradleak_lib.book.chapters import UsageError

CELL = """
bins: int = 4  # bins of the imprint (2 or more)
rate: float = 0.1  # of the clients (above 0)
share: float = 0.5  # of all (0 to 1)
# Images, local batch size and epochs.
local: list[list[int]] = [[4, 2, 1]]  # of each setting (1 or more; 3 in each; at least 2 of them)
extra: list[str] = []  # other networks (one of ResNet-20, ResNet-18; may be empty)
device: str = "auto"  # (one of auto, cpu, cuda)
real: bool = True  # whether (in doubt, yes)
images: str = "photos"  # (a folder, or one of photos, places)
"""
THERE = parameters.read_cell(CELL.replace("[[4, 2, 1]]", "[[4, 2, 1], [1, 1, 1]]"))


def test_a_cell_says_names_types_defaults_and_limits():
    assert {name: one.default for name, one in THERE.items()} == {
        "bins": 4,
        "rate": 0.1,
        "share": 0.5,
        "local": [[4, 2, 1], [1, 1, 1]],
        "extra": [],
        "device": "auto",
        "real": True,
        "images": "photos",
    }
    assert THERE["bins"].limits == "2 or more"
    assert THERE["local"].kind == list[list[int]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"binz": 2}, "declares no parameter 'binz'; it declares: bins, rate"),
        ({"bins": "many"}, "'bins' is 'many'; it must be of type int"),
        ({"bins": 2.5}, "must be of type int"),
        ({"bins": True}, "must be of type int"),
        ({"bins": None}, "must be of type int"),
        ({"bins": 1}, "'bins' is 1; it must be 2 or more"),
        ({"rate": "fast"}, "must be of type float"),
        ({"rate": 0}, "'rate' is 0; it must be above 0"),
        ({"rate": math.nan}, "must be above 0"),
        ({"rate": math.inf}, "must be a finite number"),
        ({"share": 1.5}, "must be 0 to 1"),
        ({"local": 3}, "must be of type list"),
        ({"local": [[1, 2, 3]]}, "it must hold 2 or more"),
        ({"local": [[1, 2, 3], [0, 1, 1]]}, "it must hold 1 or more"),
        ({"local": [[1, 2, 3], [1, 1]]}, "it must hold lists of 3"),
        ({"local": [1, 2]}, r"must be of type list\[list\[int\]\]"),
        ({"extra": ["VGG"]}, "it must hold one of ResNet-20, ResNet-18"),
        ({"device": "tpu"}, "it must be one of auto, cpu, cuda"),
        ({"real": 1}, "must be of type bool"),
        ({"images": "digits"}, "'images' is 'digits'; it must be a folder, or one of photos, places"),
    ],
)
def test_what_cannot_stand_there_is_one_sentence(given, message):
    with pytest.raises(UsageError, match=message) as failure:
        parameters.checked("01-one", given, THERE)
    assert str(failure.value).startswith("01-one")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("value", ["places", "~/Pictures/holiday", "digits of mine"])
def test_pictures_may_be_in_a_folder(value):
    assert parameters.checked("01-one", {"images": value}, THERE) == {"images": value}


def test_words_of_a_command_line_become_numbers_and_lists():
    given = {"rate": "1e-3", "share": 1, "local": "[[1, 2, 3], [4, 5, 6]]", "extra": []}
    found = parameters.checked("01-one", given, THERE)
    assert found == {"rate": 0.001, "share": 1.0, "local": [[1, 2, 3], [4, 5, 6]], "extra": []}
    assert isinstance(found["share"], float)


@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(-5, 5))
def test_limits_are_kept(low, high, value):
    parameter = parameters.Parameter("x", int, 0, f"{low} to {high}")
    if low <= value <= high:
        assert parameter.check(value) == value
    else:
        with pytest.raises(UsageError):
            parameter.check(value)


@pytest.mark.parametrize(
    "line", ["n = 3", "n: int", "n: int = 0  # (1 or more)", "n: int = 2.5", "n: int = len('ab')"]
)
def test_a_cell_that_declares_nothing_clear_is_refused(line):
    with pytest.raises(ValueError, match=r"n|literal|node"):
        parameters.read_cell(line)


@pytest.mark.parametrize("source", chapters.chapter_sources(results.ROOT), ids=lambda source: source.stem)
def test_every_chapter_says_what_its_parameters_may_be(source):
    there = parameters.declared(source)
    # A page that draws studies has their sizes instead.
    assert ("size" if source.stem.endswith(chapters.REPLICATION) else "profile") in there
    for one in there.values():
        numbers = [entry for entry in parameters._entries(one.default) if type(entry) in (int, float)]
        assert not numbers or any(map(parameters._rule, one.limits.split("; "))), f"{one.name} has no limits"
    assert not any(type(one.default) is list and not one.limits for one in there.values())


@pytest.mark.parametrize("source", chapters.chapter_sources(results.ROOT), ids=lambda source: source.stem)
def test_code_cells_are_those_that_jupytext_reads(source):
    text = source.read_text(encoding="utf-8")
    cells = [cell for cell in jupytext.reads(text, fmt="md").cells if cell.cell_type == "code"]
    assert [cell.code for cell in chapters.code_cells(text)] == [cell.source.strip("\n") for cell in cells]
    tags = [tuple(cell.metadata.get("tags", ())) for cell in cells]
    assert [cell.tags for cell in chapters.code_cells(text)] == tags
