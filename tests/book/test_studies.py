"""Studies: registered rules, records, what is run and what is not run again."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_cli import gradleak  # noqa: F401
from test_execution import root  # noqa: F401

from gradleak_lib.book import chapters, cluster, scorecard, studies, study_run
from gradleak_lib.book.chapters import UsageError
from gradleak_lib.book.claims import load_claims

ROOT = chapters.project_root()
REGISTERED = studies.load_studies(root=ROOT)
STUDY = {
    "question": "Does it work on a table?",
    "paper": "fowl2022robbing",
    "where": "Sec. 4.3",
    "chapter": "04-robbing-the-fed",
    "experiment": "imprint.other_data",
    "needs": {"minutes": 1, "memory": 1},
    "sizes": {
        "smoke": {"kind": "breast-cancer", "batch": "0..1"},
        "cpu": {"kind": "breast-cancer", "batch": "0..1"},
        "paper": {"kind": "breast-cancer", "batch": "0..29"},
    },
    "claims": {
        "rtf-28": {
            "estimands": {"rows": {"value": "100 * exact / alone", "unit": "batch", "holds": [99, 100]}},
            "why": "It is exact.",
            "setup": "faithful",
        }
    },
}


@pytest.fixture
def clone(tmp_path):
    """A folder with one study, and a way to write it anew."""

    def write(**changes):
        folder = tmp_path / "studies" / "x-table"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
        return studies.load_study(folder)

    return write


def record(study, size="paper", exact=20, **changes):
    """A record of made-up rows, 20 alone in each batch."""
    points = study.points(size)
    rows = pd.DataFrame(
        {studies.POINT: key, **point, "alone": 20, "exact": exact} for key, point in points.items()
    )
    folder = study.results(size)
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "rows.csv", index=False)
    content = {
        "size": size,
        "rules": study.rules,
        "runs": [{"code": ""}],
        "seconds": dict.fromkeys(points, 1.0),
    }
    (folder / "record.json").write_text(json.dumps(content | changes))
    return studies.read_record(study, size)


def changed(holds):
    claims = json.loads(json.dumps(STUDY["claims"]))
    claims["rtf-28"]["estimands"]["rows"]["holds"] = holds
    return claims


# --- the studies of this book ---


@pytest.mark.parametrize("study", REGISTERED, ids=lambda study: study.name)
def test_each_study_is_whole(study):
    """Its claims are known, its points are those that its experiment takes, and its record is under its rules."""
    assert set(study.claims) <= set(load_claims(study.paper))
    assert (ROOT / "notebooks" / f"{study.chapter}.md").is_file()
    for size in studies.SIZES:
        assert study.points(size)
    read = studies.read_record(study)
    for claim in study.claims:
        if read.complete:
            assert read.verdict(claim).grade in ("reproduced", "contradicted", "not reproduced", "undecided")
    for path in study.folder.iterdir():
        assert path.stat().st_size < (2_000_000 if path.suffix == ".webp" else 1_000_000)


@pytest.mark.parametrize("study", REGISTERED, ids=lambda study: study.name)
def test_a_recorded_point_can_be_repeated(study):
    """A cheap one; those whose data is not here are left out."""
    if missing := study_run.check_data([study], "paper"):
        pytest.skip(missing[study.name])
    read = studies.read_record(study)
    cheap = [seconds for seconds in read.seconds.values() if seconds <= 4]
    if not cheap:
        pytest.skip("no recorded point of a few seconds")
    assert study_run.check(study, 2, longest=4, seed=0) == []


def test_one_claim_has_one_study(clone, tmp_path):
    clone()
    other = tmp_path / "studies" / "y-table"
    other.mkdir()
    (other / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.raises(UsageError, match="one claim, one verdict"):
        studies.load_studies(root=tmp_path)


# --- registered rules ---


def test_a_changed_rule_fails_and_says_what_to_do(clone):
    record(clone())
    with pytest.raises(UsageError, match=r"Put the registered rule back, or.* `amended`"):
        studies.read_record(clone(claims=changed([90, 100])))
    with pytest.raises(UsageError, match="registered rule"):
        studies.read_record(
            clone(sizes=STUDY["sizes"] | {"paper": {"kind": "breast-cancer", "batch": "0..9"}})
        )
    # Words that decide nothing may change.
    assert studies.read_record(clone(question="Another?", remarks={"rtf-28": "So."})).complete


def test_an_amendment_gives_both_verdicts_and_must_tell_the_truth(clone):
    record(clone(), exact=19)
    change = {
        "date": "2026-11-29",
        "claim": "rtf-28",
        "why": "Too strict.",
        "before": STUDY["claims"]["rtf-28"],
    }
    amended = clone(claims=changed([90, 100]), amended=[change])
    read = studies.read_record(amended)
    assert read.verdict("rtf-28").grade == "reproduced"
    [(said, before)] = studies.amended_verdicts(read, "rtf-28")
    assert (said.why, before.grade) == ("Too strict.", "contradicted")
    [decision] = scorecard.decide(load_claims(), [read]).values()
    assert decision.reason == "By an earlier rule: contradicted."
    false = change | {"before": changed([95, 100])["rtf-28"]}
    with pytest.raises(UsageError, match="registered rule"):
        studies.read_record(clone(claims=changed([90, 100]), amended=[false]))


def test_a_rule_that_stood_before_the_registration_is_judged_too(clone):
    """The record was made under the rules as they are now; what the build had asked is told beside them."""
    before = changed([0, 50])["rtf-28"]
    earlier = {"date": "2026-11-21", "claim": "rtf-28", "why": "The build asked less.", "before": before}
    read = record(clone(amended=[earlier]))
    assert read.rules == read.study.rules
    assert read.verdict("rtf-28").grade == "reproduced"
    [(_, verdict)] = studies.amended_verdicts(read, "rtf-28")
    assert verdict.grade == "contradicted"
    # A change that nobody tells of still fails.
    with pytest.raises(UsageError, match="registered rule"):
        studies.read_record(clone(claims=changed([90, 100]), amended=[earlier]))


@pytest.mark.parametrize(
    ("device", "said"), [("CPU (x86_64)", "30 min on two cores"), ("NVIDIA H200", "60 min")]
)
def test_the_cost_is_that_of_two_cores_or_of_one_card(clone, device, said):
    study = clone()
    seconds = dict.fromkeys(study.points("paper"), 120.0)
    assert record(study, runs=[{"code": "", "device": device}], seconds=seconds).cost == said


def test_a_record_of_another_size_is_refused(clone):
    study = clone()
    record(study)
    with pytest.raises(UsageError, match="of size paper, and not smoke"):
        studies.read_record(study, "smoke", study.folder)


def test_a_claim_that_was_added_and_points_that_were(clone):
    record(clone())
    more = STUDY["claims"] | {"rtf-99": STUDY["claims"]["rtf-28"]}
    added = {"date": "2026-11-29", "claim": "rtf-99", "why": "Asked later.", "before": None}
    assert studies.read_record(clone(claims=more, amended=[added])).complete
    points = {"kind": "breast-cancer", "batch": "0..39"}
    wider = {"date": "2026-11-29", "why": "To decide.", "before": STUDY["sizes"]["paper"]}
    read = studies.read_record(clone(sizes=STUDY["sizes"] | {"paper": points}, amended=[wider]))
    assert len(read.missing) == 10


def test_a_changed_row_changes_its_verdict(clone):
    read = record(clone())
    assert read.verdict("rtf-28").grade == "reproduced"
    path = read.study.folder / "rows.csv"
    path.write_text(path.read_text().replace(",20,20", ",20,2"))
    assert studies.read_record(read.study).verdict("rtf-28").grade == "contradicted"


@pytest.mark.parametrize(
    "wrong",
    [
        {"experiment": "imprint.no_such"},
        {"experiment": "nothing"},
        {"sizes": {"smoke": {"kind": "x"}}},
        {"claims": {"rtf-28": {"estimands": {}, "why": "w"}}},
        {"claims": {"rtf-28": STUDY["claims"]["rtf-28"] | {"setup": "small"}}},
        {"needs": {}},
        {"surprise": 1},
        {"amended": [{"why": "no date"}]},
    ],
)
def test_files_that_cannot_be(clone, wrong):
    with pytest.raises(UsageError, match=r"study.yaml|gradleak_lib.experiments has no"):
        clone(**wrong).points("smoke")


def test_points_keep_their_keys_when_a_study_varies_more(clone):
    before = list(clone().points("paper"))
    more = {"kind": "breast-cancer", "batch": "0..29", "count": 32}
    study = clone(sizes=STUDY["sizes"] | {"paper": more})
    assert list(study.points("paper")) == before
    assert next(iter(study.points("paper").values()))["count"] == 32


def test_points_are_those_of_the_code_whatever_documentation_makes_of_it(clone, monkeypatch):
    """Sphinx puts text in the place of defaults in the signatures of what it documents."""
    study = clone()
    before = study.points("paper")
    monkeypatch.setattr(study.function, "__signature__", inspect.Signature(), raising=False)
    assert study.points("paper") == before


# --- running ---


def test_what_is_missing_runs_once_and_gives_the_same_rows(clone):
    study, ended = clone(), []
    [first] = study_run.run([study], size="smoke", on_end=ended.append)
    assert first.complete
    assert [one.error for one in ended] == ["", ""]
    path = study.results("smoke") / "rows.csv"
    rows = path.read_bytes()
    [again] = study_run.run([study], size="smoke", on_end=ended.append)
    assert len(ended) == 2
    assert again.rows.equals(first.rows)
    (path.parent / "record.json").unlink()
    study_run.run([study], size="smoke", jobs=2)
    assert path.read_bytes() == rows
    assert study_run.check(study, 1, size="smoke") == []
    path.write_text(re.sub(r"breast-cancer,(\d)", r"breast-cancer,1\1", path.read_text()))
    assert re.search("alone was .* and is", " ".join(study_run.check(study, 2, size="smoke")))


def test_a_point_that_fails_costs_nobody_else(clone):
    sizes = STUDY["sizes"] | {"smoke": [{"kind": ["no-such-table", "breast-cancer"], "batch": 0}]}
    ended = []
    [read] = study_run.run([clone(sizes=sizes)], size="smoke", on_end=ended.append)
    assert {one.point["kind"]: bool(one.error) for one in ended} == {
        "no-such-table": True,
        "breast-cancer": False,
    }
    assert len(read.missing) == 1


def test_pictures_are_drawn_once(clone):
    """They belong to the paper's size, of which one point is enough here."""
    picture = {"experiment": "imprint_pictures.batch", "data": "photos", "images": 8, "host": "lenet"}
    sizes = STUDY["sizes"] | {"paper": {"kind": "breast-cancer", "batch": 0}}
    study = clone(sizes=sizes, pictures={"figure": picture | {"batch": 0, "bins": 32}})
    ended = []
    [read] = study_run.run([study], on_end=ended.append)
    assert len(ended) == 2
    assert list(read.pictures["figure"]) == ["private", "recovered"]
    for file in read.pictures["figure"].values():
        assert (study.folder / file).read_bytes().startswith(b"RIFF")
    study_run.run([study], on_end=ended.append)
    assert len(ended) == 2


def test_when_the_time_is_over_nothing_begins(clone):
    [read] = study_run.run([clone()], size="smoke", minutes=0)
    assert len(read.missing) == 2


def test_missing_data_is_said_before_anything_runs(clone, tmp_path):
    study = clone(needs={"data": ["cifar10"], "minutes": 1, "memory": 1})
    with pytest.raises(UsageError, match=r"x-table: cifar10: .* is missing"):
        study_run.run([study], data=tmp_path / "nowhere")


KILLED = """
import sys
from pathlib import Path
from gradleak_lib.book import studies, study_run
if __name__ == "__main__":
    [study] = studies.load_studies(root=Path(sys.argv[1]))
    study_run.run([study], on_end=lambda one: print(one.point["batch"], flush=True))
"""


def test_after_kill_9_no_finished_point_is_repeated(clone, tmp_path):
    study = clone()
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as killed:
        before = [int(killed.stdout.readline()) for _ in range(3)]
        os.kill(killed.pid, signal.SIGKILL)
        before += [int(line) for line in killed.stdout.read().split()]
    finished = set(studies.read_record(study).seconds)
    assert set(before) <= {study.points("paper")[key]["batch"] for key in finished}
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = list(map(int, done.stdout.split()))
    assert len(after) == 30 - len(finished)
    rows = (study.folder / "rows.csv").read_text()
    (study.folder / "record.json").unlink()
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (study.folder / "rows.csv").read_text() == rows


def test_workers_keep_freed_memory():
    """What dask would have them give back is faulted in again by the next tensor."""
    with cluster.connect(None, 1, processes=True) as client:
        found = {name: client.submit(os.environ.get, name).result() for name in cluster.MEMORY}
    assert found == {name: str(value) for name, value in cluster.MEMORY.items()}


# --- the command, and the scorecard ---


def test_the_command_lists_runs_and_checks(gradleak, clone, tmp_path, monkeypatch):
    clone()
    monkeypatch.setattr(chapters, "project_root", lambda: tmp_path)
    assert "x-table: 0 of 30 points" in gradleak("study", "--list").output
    dry = gradleak("study", "x", "--size", "smoke", "--dry-run")
    assert "0 of 2 points finished" in dry.output
    assert not (tmp_path / "_build").exists()
    assert (
        "2 points and pictures computed, 0 left"
        in gradleak("study", "x-table", "--size", "smoke", "--jobs", "1").output
    )
    assert "1 points as recorded" in gradleak("study", "--size", "smoke", "--check", "1").output
    unknown = gradleak("study", "nothing")
    assert unknown.exit_code == 2
    assert "no study 'nothing'; there are: x-table" in unknown.stderr


def test_a_check_notes_the_commit_that_agreed(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(study_run.results, "commit", lambda: "0123456789ab-dirty")
    study = clone()
    study_run.run([study], size="smoke")
    monkeypatch.setattr(study_run.results, "commit", lambda: "0123456789ab")
    assert study_run.check(study, 1, size="smoke", note=True) == []
    found = studies.read_record(study, "smoke")
    assert found.runs[0]["commit"] == "0123456789ab-dirty"
    assert found.checked["commit"] == "0123456789ab"
    table = study.results("smoke") / "rows.csv"
    table.write_text(re.sub(r"(?m)^(.*),[0-9.]+$", r"\1,-1", table.read_text()))
    assert study_run.check(study, 1, size="smoke", note=True)


def test_the_scorecard_takes_the_study_and_says_what_is_from_the_build(clone, tmp_path):
    claims = {name: one for name, one in load_claims().items() if name in ("rtf-15", "rtf-28")}
    [decision] = scorecard.decide(claims, [record(clone())]).values()
    assert decision.verdict == "reproduced"
    assert decision.ours == ["rows: 100 [100, 100], 30 batches (holds from 99 to 100)"]
    assert decision.reason == ""
    assert scorecard.table(decision.judged).iloc[0].tolist() == [
        "rows",
        "100 [100, 100], 30 batches",
        "from 99 to 100",
    ]
    row = scorecard.Row(decision, ())
    assert row.study == "x-table"
    said = scorecard.as_json([row], {})["claims"]["rtf-28"]
    assert said["decided by"] == "x-table"
    assert said["estimates"]["rows"]["units"] == 30
    with pytest.raises(ValueError, match="no known claim"):
        scorecard.decide({}, [record(clone())])


def test_no_claim_of_this_book_is_decided_by_few(monkeypatch):
    """Fewer than 20 units decide nothing, and say what it would take."""
    for one in studies.recorded():
        for claim in one.study.claims if one.complete else ():
            verdict = one.verdict(claim)
            units = [estimate.units for estimate in verdict.estimates.values()]
            assert all(count >= 20 or count == 0 for count in units) or verdict.grade == "undecided"
            assert (verdict.grade != "undecided") or verdict.would_decide


def test_each_record_has_its_provenance():
    seen = 0
    for one in studies.recorded():
        for run in one.runs:
            seen += 1
            assert {"date", "commit", "device", "versions", "data", "code", "points"} <= set(run)
            if run["commit"].endswith("-dirty"):
                # What had changed was no code that decides: a commit has the very same, and its points agreed.
                assert one.checked["code"] == run["code"], one.study.name
                assert not one.checked["commit"].endswith("-dirty"), one.study.name
    assert seen or not any(Path(ROOT, "studies").glob("*/rows.csv"))
