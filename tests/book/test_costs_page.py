"""The page on costs, executed: its numbers are those of the record, and it says which of them were measured."""

import json
import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_sources import prose

from gradleak_lib.book import execution, planning, results, scorecard
from gradleak_lib.experiments import costs_tables

NAME = "09-what-it-costs"
SOURCE = results.ROOT / "notebooks" / f"{NAME}.md"
TEXT = SOURCE.read_text(encoding="utf-8")
VALUES = json.loads((results.ROOT / "results" / "cpu" / "costs.json").read_text(encoding="utf-8"))["values"]
# A formula is no number of ours, and neither is the name of a network, a chapter, or a kind of image.
NAMES = re.compile(r"ResNet-18|\b[Cc]hapter\s+\d|Fig\.\s+\d|\b8 bits|(?<=\s)1/")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The executed notebook, at a place of its own."""
    [run] = planning.plan([NAME], {}, profile="smoke")
    outcome, text = execution.execute(run, TEXT, folder=SOURCE.parent, threads=1, kernels=execution.Kernels())
    assert outcome.error == ""
    path = tmp_path_factory.mktemp("costs") / f"{NAME}.ipynb"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def glued(executed):
    """What the notebook gives to its text, by name, as it is written there without a format."""
    found = {}
    for output in outputs(executed):
        if name := output.get("metadata", {}).get("scrapbook", {}).get("name"):
            found[name] = "".join(output["data"][results.GLUED]).strip("'")
    return found


@pytest.fixture(scope="module")
def tables(executed):
    """The tables that it shows, by caption."""
    found = {}
    for output in outputs(executed):
        page = BeautifulSoup("".join(output.get("data", {}).get("text/html", "")), "html.parser")
        if page.caption:
            head, *rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")]
            found[page.caption.text] = pd.DataFrame(rows, columns=head)
    return found


def outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_every_number_of_the_prose_is_glued(glued):
    asked = {
        name.partition(":")[0] for name in re.findall(r"\{glue:text\}`([^`]*)`", TEXT) if "::" not in name
    }
    assert len(asked) > 60
    assert asked <= set(glued)
    assert all(name.startswith(("million ", "run_")) for name in set(glued) - asked)
    assert re.findall(r".*\d.*", NAMES.sub("", prose(TEXT))) == []


def test_what_is_glued_from_another_chapter_is_there():
    others = re.findall(r"\{glue:text\}`(\S+)\.ipynb::(\w+)", TEXT)
    assert len(others) == 10
    for chapter, name in others:
        assert (
            name in json.loads((results.ROOT / "results" / "cpu" / f"{chapter}.json").read_text())["numbers"]
        )


def test_the_text_says_what_was_measured(glued):
    link, read = VALUES["linkability"], VALUES["imprint"]
    assert float(glued["fish_read"]) == read["fishing"]["read"]
    assert float(glued["ap_mlp"]) == 100 * link["identify"][-1]["mlp"]["ap"]
    assert glued["update"] == costs_tables.seconds(
        link["simulation"]["seconds"] / link["simulation"]["updates"]
    )
    assert glued["million network"] == costs_tables.seconds(costs_tables.crowd(link, 10**6)["network"])
    factors = ("link_updates", "link_images", "llg_gradients", "ig_steps", "ig_deep_steps")
    assert all(float(glued[name]) > 1 for name in (*factors, "mit_updates", "mit_steps"))


@pytest.mark.parametrize(
    ("caption", "measured", "extrapolated"),
    [
        ("Making the updates of a crowd, and keeping them", 1, 3),
        ("Recognising the users of a crowd", 6, 3),
        ("Fishing in aggregates of 64", 1, 2),
        ("One aggregate that grows", 3, 4),
    ],
)
def test_tables_say_what_was_measured(tables, caption, measured, extrapolated):
    table = tables[caption]
    assert len(table.columns) <= 5  # what a phone has room for
    assert (table != "").all(axis=None)
    said = [cell.split()[-1] for cell in table.iloc[:, 0]]
    assert said == ["measured"] * measured + ["extrapolated"] * extrapolated


def test_all_other_tables_say_it_in_their_caption(tables):
    known = [name for name, table in tables.items() if "measured" not in str(table.iloc[0, 0])]
    assert known.pop(0) == "All chapters at each profile"
    assert len(known) == 2
    assert all("extrapolated" in name for name in known)


def test_tables_hold_what_the_record_says(tables):
    crowd = tables["Recognising the users of a crowd"].set_index("Users")
    link = VALUES["linkability"]
    for row in link["identify"]:
        shown = crowd.loc[f"{row['users']} measured"]
        assert shown["Network"] == costs_tables.seconds(row["mlp"]["seconds"])
        assert shown["SVM"] == costs_tables.seconds(row["svm"]["seconds"])
    svm = costs_tables.crowd(link, 10**6)["SVM"]
    assert crowd.loc["1 million extrapolated", "SVM"] == f"over {costs_tables.seconds(svm)}"
    assert list(crowd.loc["800 measured", ["Network", "SVM"]]) == ["–", "–"]


def test_it_checks_no_claim_and_shows_two_figures(executed):
    assert scorecard.read_chapter(executed, {}) == []
    assert sum("image/png" in output.get("data", {}) for output in outputs(executed)) == 2
