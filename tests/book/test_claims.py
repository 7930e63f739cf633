"""Claims and verdicts."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradleak_lib.book import claims, studies


def claim(**changes):
    fields = {
        "id": "x-01",
        "paper": "p",
        "where": "Fig. 1",
        "claim": "c",
        "measured": "m.",
        "holds": (1.0, 2.0),
    }
    return claims.Claim(**(fields | changes))


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (1.0, "reproduced"),
        ([0.5, 1.9], "reproduced"),
        (2.1, "contradicted"),
        ({"a": 1.5, "b": [3.0, 4.0]}, "reproduced in trend"),
        ({"a": 1.5, "b": 3.0, "c": 3.0}, "not reproduced"),
        ([0.5, 1.3, 0.6], "not reproduced"),  # the mean is outside, and its interval reaches in
        ([0.5, 0.51, 0.5], "contradicted"),
        ({"a": 0.0, "b": 3.0}, "contradicted"),
    ],
)
def test_the_verdict_follows_from_the_numbers(measured, verdict):
    assert claims.judge(claim(), measured).verdict == verdict


values = st.floats(-10, 10, allow_subnormal=False)
settings = st.dictionaries(st.text("abc", max_size=2), st.lists(values, min_size=1, max_size=4), min_size=1)


@given(settings)
def test_every_finding_has_one_verdict_and_survives_json(measured):
    entry = claim(holds=(-1.0, 1.0))
    finding = claims.judge(entry, measured, reason="r", data="d")
    means = [np.mean(found) for found in measured.values()]
    held = sum(-1 <= mean <= 1 for mean in means)
    assert finding.held == held
    assert (finding.verdict == "reproduced") == (held == len(means))
    assert (finding.verdict == "reproduced in trend") == (len(means) / 2 <= held < len(means))
    if finding.verdict == "contradicted":
        assert not held
    saved = json.loads(json.dumps(claims.as_json([finding])))
    assert claims.from_json(saved, {entry.id: entry}) == [finding]


@given(st.lists(values, min_size=1, max_size=5))
def test_a_changed_number_changes_its_verdict(found):
    """Moved far enough, whatever was measured is contradicted, and reproduced once it is moved back."""
    entry = claim(holds=(-100.0, 100.0))
    assert claims.judge(entry, found).verdict == "reproduced"
    assert claims.judge(entry, [value + 1000 for value in found]).verdict == "contradicted"


def test_the_interval_is_students():
    measured = [1.0, 2.0, 4.0, 4.0, 5.0]
    expected = stats.t.interval(0.95, 4, np.mean(measured), stats.sem(measured))
    assert claims.interval(measured) == pytest.approx(expected)
    assert claims.interval([3.0]) == (3.0, 3.0)


def test_open_intervals_and_claims_that_cannot_be_tested():
    assert claims.judge(claim(holds=(None, 2.0)), -1e9).verdict == "reproduced"
    assert claims.judge(claim(holds=(1.0, None)), 1e9).verdict == "reproduced"
    assert claims.judge(claim(holds=None), {}).verdict == "not testable here"
    with pytest.raises(ValueError, match="x-01 cannot be checked"):
        claim(holds=None).admits(0.0, 1.0)


def test_a_finding_for_no_claim_is_refused():
    with pytest.raises(ValueError, match="no known claim: x-09"):
        claims.from_json({"x-09": {"settings": {}, "reason": "", "data": ""}}, {"x-01": claim()})


@pytest.mark.parametrize("measured", [{}, [], float("nan"), [1.0, float("nan")], {"a": []}])
def test_nothing_measured_is_said(measured):
    assert claims.judge(claim(), measured).verdict == "not measured in this run"
    assert claims.judge(claim(holds=None), measured).verdict == "not testable here"


def test_a_setting_that_was_not_measured_does_not_count():
    finding = claims.judge(claim(), {"a": 1.5, "b": float("nan"), "c": []})
    assert dict(finding.settings) == {"a": (1.5,)}
    assert finding.verdict == "reproduced"


def test_each_claim_of_robbing_the_fed_has_a_study():
    paper = claims.load_claims("fowl2022robbing")
    assert list(paper) == [f"rtf-{number:02d}" for number in range(1, 33)]
    decided = {name for study in studies.load_studies(["rtf"]) for name in study.claims}
    assert set(paper) - decided == {"rtf-15"}
    # Their rules stand in the studies and nowhere else.
    assert not any(entry.holds or entry.measured for entry in paper.values() if entry.id in decided)


def test_a_rule_that_was_changed_says_what_it_was():
    changed = {name: entry.amended for name, entry in claims.load_claims().items() if entry.amended}
    assert {"llg-10", "llg-16", "llg-17", "lnk-21", "lnk-22", "ig-11"} <= set(changed)
    for amendments in changed.values():
        for one in amendments:
            assert one["why"]
            assert one["before"]["rule"]
            assert one["before"]["verdict"] in claims.VERDICTS


def test_table_and_headline():
    findings = [
        claims.judge(claim(number=1.5, unit="dB"), [1.0, 2.0]),
        claims.judge(claim(id="x-02", holds=None), {}),
    ]
    table = claims.table(findings)
    assert table["paper"].tolist() == ["1.5 dB", "no number"]
    assert table["ours"][0] == "1.5 ± 0.71 dB"
    assert claims.headline(findings) == "2 claims: 1 reproduced, 1 not testable here"


def test_a_broken_list_says_where(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("- {id: a, paper: p, where: w, claim: c, measured: m, colour: red}\n")
    with pytest.raises(ValueError, match=r"claims.yaml: a: .*colour"):
        claims.load_claims(path=path)
    path.write_text("- {id: a, paper: p, where: w, claim: c, measured: m}\n" * 2)
    with pytest.raises(ValueError, match="a stands there twice"):
        claims.load_claims(path=path)
    path.write_text("- {id: a, paper: p, where: w, claim: c, measured: m}\n")
    with pytest.raises(ValueError, match="no claim of 'q'"):
        claims.load_claims("q", path=path)
