"""Claims and verdicts."""

import pytest

from gradleak_lib import claims


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
        ({"a": 1.5, "b": [3.0, 4.0]}, "partly"),
        ({"a": 0.0, "b": 3.0}, "contradicted"),
    ],
)
def test_the_verdict_follows_from_the_numbers(measured, verdict):
    assert claims.judge(claim(), measured).verdict == verdict


def test_open_intervals_and_citations():
    assert claims.judge(claim(holds=(None, 2.0)), -1e9).verdict == "reproduced"
    assert claims.judge(claim(holds=(1.0, None)), 1e9).verdict == "reproduced"
    assert claims.judge(claim(holds=None), {}).verdict == "cited"


@pytest.mark.parametrize("measured", [{}, [], float("nan"), [1.0, float("nan")]])
def test_nothing_measured_is_no_finding(measured):
    with pytest.raises(ValueError, match="x-01: expected measured numbers"):
        claims.judge(claim(), measured)


def test_the_robbing_the_fed_list_is_complete():
    paper = claims.load_claims("fowl2022robbing")
    assert list(paper) == [f"rtf-{number:02d}" for number in range(1, 30)]
    for entry in paper.values():
        assert entry.holds is not None or entry.id == "rtf-15"
        if entry.holds is not None and entry.number is not None and entry.id != "rtf-06":
            low, high = entry.holds
            assert low is None or low <= entry.number, entry.id
            assert high is None or entry.number <= high, entry.id


def test_table_and_headline():
    findings = [
        claims.judge(claim(number=1.5, unit="dB"), [1.0, 2.0]),
        claims.judge(claim(id="x-02", holds=None), {}),
    ]
    table = claims.table(findings)
    assert table["paper"].tolist() == ["1.5 dB", "no number"]
    assert table["ours"][0] == "1.5 ± 0.71 dB"
    assert claims.headline(findings) == "2 claims: 1 reproduced, 1 cited"


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
