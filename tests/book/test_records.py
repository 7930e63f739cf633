"""Recorded runs: written from executed chapters, read back, and compared."""

import json

import pytest
from test_execution import HEADER
from test_scorecard import CLAIMS, chapter
from typer.testing import CliRunner

from gradleak_lib.book import chapters, claims, cli, records, results

SOURCE = """```{code-cell} ipython3
:tags: [parameters]

profile: str = 'cpu'
n: int = 3
dataset: str = 'photos'
```
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A clone with one chapter, and a call that puts its executed notebook there."""
    (tmp_path / "notebooks" / "params" / "paper").mkdir(parents=True)
    (tmp_path / "notebooks" / "01-x.md").write_text(HEADER + SOURCE, encoding="utf-8")
    (tmp_path / "notebooks" / "params" / "paper" / "01-x.yaml").write_text(
        "profile: paper\nn: 9\ndataset: imagenet/val\n"
    )
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    monkeypatch.setattr(chapters, "project_root", lambda: tmp_path)
    monkeypatch.setattr(claims, "load_claims", lambda: CLAIMS)

    def execute(found, glued, **parameters):
        path = chapter(tmp_path / "book" / "chapters", "01-x", found)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for name, value in glued.items():
            output = {
                "output_type": "display_data",
                "metadata": {"scrapbook": {"name": name}},
                "data": {results.GLUED: repr(value)},
            }
            notebook["cells"].append({"cell_type": "code", "source": "", "metadata": {}, "outputs": [output]})
        notebook["metadata"]["gradleak"] = {
            "date": "2026-01-02T03:04:05+00:00",
            "seconds": 6.0,
            "commit": "abc",
            "device": "CPU",
            "versions": {},
            "command": "gradleak run 01-x",
            "parameters": {"profile": "cpu", "n": 3, "dataset": "photos", **parameters},
            "key": "k",
        }
        path.write_text(json.dumps(notebook), encoding="utf-8")
        return path

    return tmp_path, execute


def call(*words):
    return CliRunner().invoke(cli.app, ["record", *map(str, words)])


def test_a_record_holds_what_the_chapter_measured(book):
    root, execute = book
    path = execute({"x-01": {"a": [1.0, 2.0]}, "x-02": 3.0}, {"best": 0.1, "run_seconds": 5.0})
    result = call()
    assert result.exit_code == 0, result.output
    written = root / "results" / "cpu" / "01-x.json"
    assert str(written) in result.output.replace("\n", "")
    content = json.loads(written.read_text())
    assert content["run"]["commit"] == "abc"
    assert "key" not in content["run"]
    assert content["numbers"] == {"best": 0.1, "run_seconds": 5.0}
    record = records.read(written, CLAIMS)
    assert record == records.from_notebook(path, CLAIMS)
    assert record.rows[0].finding.verdict == "reproduced"
    assert record.rows[0].sections[0].heading == "Section of x-01"
    assert records.read_all(written.parent, CLAIMS) == [record]
    assert records.read_all(root / "results" / "paper", CLAIMS) == []


def test_a_changed_digit_is_found_and_a_changed_time_is_not(book):
    root, execute = book
    execute({"x-01": {"a": [1.0, 2.0]}}, {"best": 0.1, "run_seconds": 5.0})
    assert call("--check").exit_code == 2  # nothing is recorded yet
    call()
    execute({"x-01": {"a": [1.0, 2.0]}}, {"best": 0.1, "run_seconds": 7.0})
    result = call("--check")
    assert result.exit_code == 0
    assert "01-x: every number as recorded" in result.output
    execute({"x-01": {"a": [1.0, 2.0000000001]}}, {"best": 0.1 + 1e-16, "new": 3})
    result = call("1", "--check")
    assert result.exit_code == 1
    for line in (
        "01-x: best is 0.1 and 0.1000000000000001",
        "01-x: x-01, a is [1.0, 2.0] and [1.0, 2.0000000001]",
        "01-x: new is missing and 3",
        "3 numbers differ",
    ):
        assert line in result.output
    assert json.loads((root / "results" / "cpu" / "01-x.json").read_text())["numbers"]["best"] == 0.1
    execute({"x-01": {"a": [1.0, 2.0]}}, {"best": 0.1}, n=4, dataset="/elsewhere/photos")
    assert call("--check").output.splitlines()[0] == "01-x: parameter n is 3 and 4"
    (root / "results" / "cpu" / "01-x.json").write_text("{")
    assert "is no record that `gradleak record` wrote" in call("--check").stderr


def test_a_record_stands_for_its_profile(book):
    root, execute = book
    path = execute({"x-01": 1.5}, {}, n=4)
    result = call()
    assert result.exit_code == 2
    assert "01-x ran with another n than its profile 'cpu' has" in result.stderr
    assert not (root / "results").exists()
    execute({"x-01": 1.5}, {}, profile="paper", n=9, dataset="/somewhere/imagenet/val")
    assert call(path).exit_code == 0  # by its path, as if it came from another machine
    assert (root / "results" / "paper" / "01-x.json").exists()


def test_only_what_ran_to_its_end_is_recorded(book):
    root, execute = book
    assert "01-x is not executed; type `gradleak run`" in call().stderr
    path = execute({"x-01": 1.5}, {})
    text = path.read_text()
    path.write_text(text.replace('"key": "k"', '"error": "E"'))
    assert "is no chapter that `gradleak run` executed to its end" in call().stderr
    path.write_text("{}")
    assert call().exit_code == 2
    assert "is no chapter" in call(root / "nowhere.ipynb").stderr
    for metadata in ('"gradleak": [1]', '"gradleak": {"key": "k"}'):
        path.write_text(f'{{"cells": [], "metadata": {{{metadata}}}}}')
        assert "is no chapter" in call().stderr
    path.write_text(text)
    assert "is called like no chapter" in call(path.rename(path.with_name("a-hash.ipynb"))).stderr
    assert not (root / "results").exists()


def test_the_records_of_the_repository():
    found = {
        record.chapter: record
        for record in records.read_all(results.ROOT / "results" / "cpu", claims.load_claims())
    }
    sources = [source.stem for source in chapters.chapter_sources(results.ROOT)]
    assert list(found) == [name for name in sources if not name.endswith(chapters.REPLICATION)]
    for record in found.values():
        assert {"date", "commit", "device", "versions", "parameters", "seconds", "command"} <= set(record.run)
        assert record.profile == "cpu"
        assert record.numbers
