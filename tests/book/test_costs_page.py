"""The page on costs: numbers for people, tables that say what was measured, sentences without a gap."""

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))
import costs_page  # noqa: E402
import costs_tables  # noqa: E402

PAGE = (ROOT / "book" / "costs.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "results" / "cpu" / "costs.json").read_text(encoding="utf-8"))
VALUES = RECORD["values"]
MEASURED = {"crowds": 1, "identification": 4, "catches": 1, "single": 3}
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86400, "years": 31557600}
BYTES = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "EB": 1e18}


def parse(said: str, units: dict[str, float]) -> float:
    number, unit = said.split()
    assert (
        len(number.replace(",", "").replace(".", "").lstrip("0").rstrip("0") or "0") <= 2 or "," not in number
    )
    return float(number.replace(",", "")) * units[unit]


@given(st.floats(1e-6, 1e13))
def test_times_keep_two_digits(value):
    assert parse(costs_tables.seconds(value), UNITS) == pytest.approx(value, rel=0.06)


@given(st.floats(1, 1e20))
def test_bytes_keep_two_digits(value):
    assert parse(costs_tables.size(value), BYTES) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (9600, "9,600"),
        (12e6, "12 million"),
        (1e9, "1 billion"),
        (5.75e9, "5.75 billion"),
        (7.2e13, "7.2 × 10¹³"),
        (0.4, "0"),
    ],
)
def test_counts(value, said):
    assert costs_tables.count(value) == said


def test_sizes():
    assert [costs_tables.exact(n) for n in (50, 1000, 10**6, 2**14)] == [
        "50",
        "1,000",
        "$10^{6}$",
        "$2^{14}$",
    ]


def test_every_number_and_table_that_the_page_asks_for_is_there():
    facts = costs_page.facts(ROOT)
    asked = set(re.findall(r"\{cost\}`([^`]*)`", PAGE))
    assert len(asked) > 40
    assert asked == set(facts)
    assert all(facts.values())
    assert not any(set("$*`") & set(said) for said in facts.values())  # a role shows it as it stands
    tables = set(re.findall(r"```\{costs\} (\S+)", PAGE))
    assert tables == {*costs_page.OF_RECORDS, "profiles", "work"}


@pytest.mark.parametrize("name", costs_page.OF_RECORDS)
def test_tables_are_whole_and_say_what_was_measured(name):
    head, *rows = costs_page.OF_RECORDS[name](VALUES)
    assert len(rows) >= 3
    assert len(head) <= 5  # what a phone has room for
    assert {len(row) for row in rows} == {len(head)}
    assert all(cell and cell[0] not in ">#" for row in rows for cell in row)  # no quotation, no heading
    said = ["*measured*" in row[0] for row in rows]
    if name in MEASURED:
        assert said == [number < MEASURED[name] for number in range(len(rows))]
        assert all(("*extrapolated*" in row[0]) != known for row, known in zip(rows, said, strict=True))


def test_extrapolation_starts_where_the_measurement_ends():
    link = VALUES["linkability"]
    run, last = link["simulation"], link["identify"][-1]
    at = costs_tables.crowd(link, run["users"])
    assert at["updates"] == run["updates"]
    assert at["features"] == link["feature_bytes"]
    assert at["simulation"] == pytest.approx(run["seconds"])
    assert at["svm"] == pytest.approx(last["svm"]["seconds"])
    assert at["mlp"] == pytest.approx(last["mlp"]["seconds"], rel=0.5)
    assert costs_tables.crowd(link, 10**6)["mlp"] > 50 * costs_tables.crowd(link, 10**5)["mlp"]


def test_work_at_the_papers_sizes_is_more():
    _, *rows = costs_tables.work(ROOT)
    assert all(float(row[2].replace(",", "")) > 1 for row in rows)
    assert {row[0] for row in rows} == {f"[](chapters/{chapter}.ipynb)" for chapter in costs_tables.WORK}


def test_a_profile_that_nobody_has_run_is_not_known(tmp_path):
    _, *rows = costs_tables.profiles(tmp_path, {})
    assert [row[1:3] for row in rows] == [["not known"] * 2] * 3
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    for name, took, memory in (("01-a", 60.0, 0.5), ("02-b", 120.0, 2.0)):
        record = {"run": {"seconds": took}, "numbers": {"run_memory": memory}}
        (folder / f"{name}.json").write_text(json.dumps(record))
    timed = {"chapters": {"smoke": {"01-a": {"seconds": 30.0, "memory": None}}}}
    _, *rows = costs_tables.profiles(tmp_path, timed)
    assert [row[1:3] for row in rows] == [["30 s", "not known"], ["3.0 min", "2.0 GiB"], ["not known"] * 2]
