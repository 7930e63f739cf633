"""Tables of costs: rows that say what was measured, formulas from where measurements end, numbers for people."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak_lib.book.results import ROOT
from gradleak_lib.experiments import costs_tables

VALUES = json.loads((ROOT / "results" / "cpu" / "costs.json").read_text(encoding="utf-8"))["values"]
LINK, READ = VALUES["linkability"], VALUES["imprint"]
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86400, "years": 31557600}
BYTES = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "EB": 1e18}


def parse(said: str, units: dict[str, float]) -> float:
    number, unit = said.split()
    digits = number.replace(",", "").replace(".", "").lstrip("0").rstrip("0")
    assert len(digits) <= 2
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


def test_extrapolation_starts_where_the_measurement_ends():
    run, last = LINK["simulation"], LINK["identify"][-1]
    at = costs_tables.crowd(LINK, run["users"])
    assert at["updates"] == run["updates"]
    assert at["last layers"] == LINK["feature_bytes"]
    assert at["to simulate"] == pytest.approx(run["seconds"])
    assert at["SVM"] == pytest.approx(last["svm"]["seconds"])
    assert at["network"] == pytest.approx(last["mlp"]["seconds"], rel=0.5)
    assert costs_tables.crowd(LINK, 10**6)["network"] > 50 * costs_tables.crowd(LINK, 10**5)["network"]
    trip, again = costs_tables.fishing(READ, [READ["fishing"]["samples"]]).itertuples(index=False)
    assert (trip.known, again.known) == ("measured", "extrapolated")
    assert trip[3:] == again[3:]
    assert trip.images == pytest.approx(again.images, rel=0.2)


@pytest.mark.parametrize(
    ("table", "measured"),
    [
        (costs_tables.simulations(LINK, [10**4, 10**5]), [True, False, False]),
        (costs_tables.recognition(LINK, [10**4]), [True] * 6 + [False]),
        (costs_tables.fishing(READ, [10**6]), [True, False]),
        (costs_tables.one_aggregate(READ), [True] * 3 + [False] * 4),
    ],
)
def test_rows_say_what_was_measured(table, measured):
    assert list(table.known == costs_tables.MEASURED) == measured
    assert list(table.known == costs_tables.EXTRAPOLATED) == [not known for known in measured]
    assert table.iloc[:, 0].is_monotonic_increasing
    assert table[~(table.known == costs_tables.MEASURED)].notna().all(axis=None)


def test_a_measured_row_holds_what_was_measured():
    rows = costs_tables.recognition(LINK, []).set_index("users")
    assert {
        row["users"]: row["mlp"]["seconds"] for row in LINK["identify"]
    } == rows.network.dropna().to_dict()
    assert costs_tables.simulations(LINK, []).loc[0, "to simulate"] == LINK["simulation"]["seconds"]
    near = {(row["samples"], row["precision"]): row["read"] / row["rounds"] for row in READ["near"]}
    for row in costs_tables.one_aggregate(READ).to_dict("records"):
        for precision in ("single", "double"):
            assert row[f"sparse row, {precision}"] == near[row["samples"], precision]


def test_a_billion_samples_cost_a_billion_times_as_much_as_one():
    one, many = (costs_tables.networks(READ, samples) for samples in (1, 10**9))
    assert list(many["all samples"]) == pytest.approx([1e9 * seconds for seconds in one["one sample"]])
    halves = costs_tables.by_aggregate(10**9, [10**4, 2 * 10**4])["images read"]
    assert halves[0] == pytest.approx(2 * halves[1], rel=1e-4)


def test_a_profile_that_nobody_has_run_is_not_known(tmp_path):
    names = ["smoke", "cpu", "paper"]
    table = costs_tables.profiles(tmp_path, {}, names, without="09-z")
    assert table[["all chapters", "largest process"]].isna().all(axis=None)
    assert set(table["known from"]) == {"nobody has run it"}
    folder = tmp_path / "cpu"
    folder.mkdir()
    runs = (
        ("01-a", 60.0, "2026-01-02", {"run_memory": 0.5}),
        ("02-b", 120.0, "2026-01-01", {"run_memory": 2.0}),
    )
    for name, took, date, numbers in (
        *runs,
        ("03-c", 1.0, "2026-01-01", {}),
        ("09-z", 9.0, "2026-01-09", {}),
    ):
        record = {"run": {"seconds": took, "date": date}, "numbers": numbers}
        (folder / f"{name}.json").write_text(json.dumps(record))
    (folder / "costs.json").write_text("{}")
    timed = {"smoke": {name: {"seconds": 30.0, "memory": None} for name in ("01-a", "09-z")}}
    smoke, cpu, paper = costs_tables.profiles(tmp_path, timed, names, without="09-z").to_dict("records")
    assert (smoke["all chapters"], smoke["known from"]) == (30.0, "the measurements of this page")
    assert (cpu["all chapters"], cpu["largest process"]) == (181.0, 2.0)
    assert cpu["known from"] == "recorded runs, the last of 2026-01-02"
    assert paper["known from"] == "nobody has run it"
