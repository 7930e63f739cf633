"""The scorecard, from executed chapters."""

import json

import nbformat
import pytest
from typer.testing import CliRunner

from gradleak_lib.book import chapters, claims, cli, scorecard

CLAIMS = {
    name: claims.Claim(id=name, paper=paper, where="Fig. 1", claim="c", measured="m.", holds=(1.0, 2.0))
    for name, paper in {"x-01": "p", "x-02": "p", "y-01": "q"}.items()
}


def chapter(folder, name, found, *, known=CLAIMS):
    """An executed chapter that checks each claim in a section of its own."""
    cells = [nbformat.v4.new_markdown_cell(f"# The title of {name}\n\n## Method")]
    for key, values in found.items():
        finding = claims.judge(known[key], values, data=name)
        output = nbformat.v4.new_output("display_data", metadata={claims.KEY: claims.as_json([finding])})
        cells.append(nbformat.v4.new_markdown_cell(f"Text.\n\n## Section of {key}\n\nMore text."))
        cells.append(nbformat.v4.new_code_cell("page.check(...)", outputs=[output]))
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    return path


def test_one_row_a_claim_with_its_section(tmp_path):
    notebooks = [
        chapter(tmp_path, "01-x", {"x-01": 1.5, "x-02": 3.0}),
        chapter(tmp_path, "02-y", {"y-01": {"a": 1.0, "b": 9.0}, "x-02": 1.5}),
    ]
    rows = scorecard.read(notebooks, CLAIMS)
    assert [row.finding.claim.id for row in rows] == list(CLAIMS)
    assert [row.finding.verdict for row in rows] == [
        "reproduced",
        "reproduced in trend",
        "reproduced in trend",
    ]
    assert rows[0].sections == (scorecard.Section("01-x", "The title of 01-x", "Section of x-01"),)
    assert [section.chapter for section in rows[1].sections] == ["01-x", "02-y"]
    assert rows[1].finding.settings == {"The title of 01-x": (3.0,), "The title of 02-y": (1.5,)}
    assert rows[1].finding.data == "01-x, 02-y"
    assert {paper: len(some) for paper, some in scorecard.by_paper(rows).items()} == {"p": 2, "q": 1}


def test_a_changed_number_in_a_chapter_changes_the_verdict(tmp_path):
    path = chapter(tmp_path, "01-x", {"x-01": 1.5, "x-02": 1.5, "y-01": 1.5})
    assert scorecard.read([path], CLAIMS)[0].finding.verdict == "reproduced"
    path.write_text(path.read_text(encoding="utf-8").replace("1.5", "2.5"), encoding="utf-8")
    assert scorecard.read([path], CLAIMS)[0].finding.verdict == "contradicted"


def test_a_claim_without_a_finding_is_an_error(tmp_path):
    path = chapter(tmp_path, "01-x", {"x-01": 1.5, "y-01": 1.5})
    with pytest.raises(ValueError, match="no executed chapter has a finding for x-02; type `gradleak run`"):
        scorecard.read([path], CLAIMS)
    with pytest.raises(ValueError, match="for x-01, x-02, y-01"):
        scorecard.read([], CLAIMS)


def test_many_settings_become_a_range(tmp_path):
    few = claims.judge(CLAIMS["x-01"], {"a": 1.0, "b": 3.0})
    many = claims.judge(CLAIMS["x-01"], {str(n): n / 2 for n in range(6)})
    assert scorecard.ours(few) == "a: 1; b: 3"
    assert scorecard.ours(many) == "0 to 2.5, as claimed in 3 of 6 settings"


def test_the_record_holds_everything_behind_a_row(tmp_path):
    path = chapter(tmp_path, "01-x", {"x-01": [1.0, 2.0], "x-02": 3.0, "y-01": 1.5})
    record = json.loads(
        json.dumps(scorecard.as_json(scorecard.read([path], CLAIMS), {"01-x": {"seconds": 1}}))
    )
    assert record["headline"] == "3 claims: 2 reproduced, 1 contradicted"
    assert record["claims"]["x-01"]["settings"] == {"": [1.0, 2.0]}
    assert record["claims"]["x-01"]["sections"] == ["01-x: Section of x-01"]
    assert record["claims"]["x-02"]["verdict"] == "contradicted"
    assert record["runs"] == {"01-x": {"seconds": 1}}


def test_the_command_prints_every_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "project_root", lambda: tmp_path)
    known = claims.load_claims()
    measured = {name: {} if claim.holds is None else 1.0 for name, claim in known.items()}
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01-x.md").touch()
    executed = tmp_path / "book" / "chapters"
    executed.mkdir(parents=True)

    def call(*words):
        return CliRunner().invoke(cli.app, ["scorecard", *words])

    assert call().exit_code == 1
    assert "01-x is not executed; type `gradleak run`" in call().stderr
    chapter(executed, "01-x", measured, known=known)
    record = json.loads(call("--json").stdout)
    assert set(record["claims"]) == set(known)
    printed = call()
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()  # nobody looks: a line each, for other programs
    assert [line.split("\t")[:2] for line in lines] == [
        [name, record["claims"][name]["verdict"]] for name in known
    ]
    assert len(call("rtf").stdout.splitlines()) == sum(name.startswith("rtf") for name in known)
    assert call("llg-04", "lnk-03").stdout.split("\t")[0] == "llg-04"
    assert call("not testable here").stdout.count("not testable here") == len(
        call("not testable here").stdout.splitlines()
    )
    assert "no claim is called 'xyz'" in call("xyz").stderr
    measured.pop("rtf-03")
    chapter(executed, "01-x", measured, known=known)
    assert call().exit_code == 1
    assert "no executed chapter has a finding for rtf-03" in call().stderr
