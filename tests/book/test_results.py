"""Recorded results and their provenance."""

import json
import subprocess

import pytest

from gradleak_lib.book import results
from gradleak_lib.files import write_whole


def section(tmp_path, available, values=None):
    return results.compute_or_recall(
        "a-section",
        lambda: values,
        data="cifar10",
        available=available,
        chapter="04-robbing-the-fed",
        device="cpu",
        seed=7,
        folder=tmp_path,
    )


def test_computed_where_the_data_is_and_recalled_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADLEAK_RECORD", raising=False)
    fresh = section(tmp_path, True, {"exact": [39, 40]})
    assert fresh.fresh
    assert "Computed in this run on cifar10" in fresh.line()
    assert fresh.label == "cifar10"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("GRADLEAK_RECORD", "1")
    section(tmp_path, True, {"exact": [39, 40]})
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")] == [
        "cpu/a-section.json"
    ]
    monkeypatch.setenv("GRADLEAK_PROFILE", "smoke")
    recalled = section(tmp_path, False)
    assert recalled.values == {"exact": [39, 40]}
    assert not recalled.fresh
    assert recalled.label == f"cifar10 (recorded {recalled.provenance['date'][:10]})"
    section(tmp_path, True, {"exact": [1]})  # a rough run does not overwrite the record of another profile
    monkeypatch.delenv("GRADLEAK_PROFILE")
    assert section(tmp_path, False).values == {"exact": [39, 40]}
    for fact in ("cifar10 was not found", "gradleak data cifar10 && gradleak run 04", "seed 7"):
        assert fact in recalled.line()
    assert recalled.provenance["date"][:10] in recalled.line()


def test_nothing_recorded_says_what_to_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="run gradleak data cifar10 && gradleak run 04-robbing-the-fed"
    ):
        section(tmp_path, False)
    with pytest.raises(ValueError, match="small letters"):
        results.compute_or_recall(
            "../x", dict, data="d", available=True, chapter="c", device="cpu", seed=0, folder=tmp_path
        )


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_records_in_the_repository_are_complete():
    folder = results.ROOT / "results" / "cpu"
    records = set(folder.glob("[!0-9]*.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text())
        assert record["values"], path
        assert not record["fresh"], path
        facts = {"date", "commit", "device", "versions", "seed", "data", "command"}
        assert facts <= set(record["provenance"]), path


def test_numbers_that_a_notebook_glued(tmp_path):
    texts = {"a": "3", "b": "0.25", "c": "1e-07", "d": "nan", "title": "'text'", "best": "True"}
    outputs = [
        {"metadata": {"scrapbook": {"name": name}}, "data": {results.GLUED: text}}
        for name, text in texts.items()
    ]
    outputs.append({"metadata": {"scrapbook": {"name": "shown"}}, "data": {"text/plain": ["7"]}})
    outputs.append({"metadata": {}, "data": {"text/plain": "8"}})
    outputs.append({"output_type": "stream", "text": "9"})
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": [{}, {"outputs": outputs}]}))
    found = results.read_glued(path)
    assert str(found) == "{'a': 3, 'b': 0.25, 'c': 1e-07, 'd': nan, 'shown': 7}"


def test_provenance_names_the_commit_and_the_versions():
    source = results.provenance(device="cpu")
    assert source["device"].startswith("CPU")
    assert source["commit"]
    assert f"torch {source['versions']['torch']}" in results.as_text(source["versions"])


def test_the_commit_is_marked_where_files_but_records_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit.__wrapped__() == "unknown"
    files = [tmp_path / "code.py", tmp_path / "studies" / "one" / "rows.csv"]
    files[1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("first")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = results.commit.__wrapped__()
    assert len(clean) == 12
    files[1].write_text("second")  # as a study does while the next one waits
    assert results.commit.__wrapped__() == clean
    files[0].write_text("second")
    assert results.commit.__wrapped__() == f"{clean}-dirty"


def test_a_recalled_result_says_how_to_repeat_it_today(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLEAK_RECORD", "1")
    options = {"data": "blogs", "chapter": "01", "device": "cpu", "seed": 0, "folder": tmp_path}
    results.compute_or_recall("people", lambda: {"x": 1}, available=True, **options)
    recalled = results.compute_or_recall(
        "people", lambda: {}, available=False, get="export GRADLEAK_DATA=FOLDER", **options
    )
    assert recalled.values == {"x": 1}
    assert "`export GRADLEAK_DATA=FOLDER && gradleak run 01`" in recalled.line()
