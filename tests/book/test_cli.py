import pytest
from test_execution import root, write_chapter  # noqa: F401
from typer.testing import CliRunner

import gradleak_lib
from gradleak_lib import data
from gradleak_lib.book import chapters, cli


@pytest.fixture
def gradleak(root, monkeypatch):
    """The command, in a book of its own."""
    monkeypatch.setattr(chapters, "project_root", lambda: root)

    def call(*words):
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
        return result

    return call


def test_version(gradleak):
    assert gradleak("--version").output.strip() == f"gradleak {gradleak_lib.__version__}"


def test_run_executes_once(gradleak, root):
    write_chapter(root, "01-one", "print(n, name)", parameters="n: int = 1\nname: str = 'a'")
    values = root / "values.yaml"
    values.write_text("n: 7\nname: c\n")
    words = ("run", "01", "-f", values, "-p", "name", "b=c d")
    result = gradleak(*words)
    assert result.exit_code == 0, result.output
    assert "01-one: done in" in result.output
    assert "7 b=c d" in (root / "book" / "chapters" / "01-one.ipynb").read_text()
    assert "01-one: up to date" in gradleak(*words).output
    assert "01-one: done in" in gradleak(*words, "--force").output


def test_a_failed_chapter_gives_exit_code_1(gradleak, root):
    write_chapter(root, "01-one", "raise RuntimeError('no [bold]luck[/bold]')")
    result = gradleak("run")
    assert result.exit_code == 1
    assert "01-one: failed after" in result.stderr
    assert "RuntimeError: no [bold]luck[/bold]" in result.stderr
    assert str(root / "_build" / "failed" / "01-one.ipynb") in "".join(result.stderr.split("\n"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "07"], "no chapter '07'"),
        (["run", "-p", "binz", "3"], "declares no parameter 'binz'"),
        (["run", "-p", "n", "[1"], "is no YAML value"),
        (["run", "-p", "n"], "give a name and a value"),
        (["run", "-p", "2n", "1"], "give a name and a value"),
        (["run", "-f", "nowhere.yaml"], "cannot read parameters from nowhere.yaml"),
        (["run", "--profile", "fast"], "it must be one of"),
        (["run", "--jobs", "0"], "--jobs is 0"),
        (["data", "mnits"], "mnits"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_code_2(gradleak, root, words, message):
    write_chapter(root, "01-one", "print(n)", parameters="n: int = 1")
    result = gradleak(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (root / "book").exists()


def test_negative_values_and_several_parameters(gradleak, root):
    write_chapter(root, "01-one", "print(n, m)", parameters="n: int = -1\nm: float = 0.5")
    assert gradleak("run", "-p", "n", "-3", "--parameter", "m", "1e-3").exit_code == 0
    assert "-3 0.001" in (root / "book" / "chapters" / "01-one.ipynb").read_text()


def test_data_fetches_into_the_folder(gradleak, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(data, "fetch", lambda name, *, root=None: asked.append((name, root)))
    result = gradleak("data", "cifar10", "--data", tmp_path)
    assert result.exit_code == 0
    assert asked == [("cifar10", tmp_path)]
    assert str(tmp_path) in result.output.replace("\n", "")


def test_a_failed_download_gives_exit_code_1(gradleak, monkeypatch):
    def fail(name, *, root=None):
        raise data.MissingData(f"{name}: the download failed")

    monkeypatch.setattr(data, "fetch", fail)
    result = gradleak("data", "cifar10")
    assert result.exit_code == 1
    assert result.stderr.strip() == "gradleak: cifar10: the download failed"
