"""Papermill by habit: chapters by name, from any folder, and executed notebooks as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from papermill.iorw import papermill_io

from gradleak_lib.book import chapters, results
from gradleak_lib.book import papermill_io as ours

ROOT = results.ROOT


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


@pytest.fixture
def strange_kernel(tmp_path: Path) -> Path:
    """A data folder of Jupyter in which ``python3`` is a kernel that never comes up."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}))
    return tmp_path / "jupyter"


def test_a_chapter_runs_from_another_folder_with_this_python(tmp_path, strange_kernel):
    done = call(
        tmp_path,
        *("gradleak://09-what-it-costs", "out.ipynb", "-p", "profile", "smoke"),
        JUPYTER_DATA_DIR=str(strange_kernel),
    )
    assert done.returncode == 0, done.stderr
    assert "not specified with any extension" not in done.stderr
    facts = chapters.provenance_of(tmp_path / "out.ipynb")
    assert facts["parameters"] == {"profile": "smoke"}
    assert facts["commit"] == results.commit()
    assert results.read_glued(tmp_path / "out.ipynb")["run_seconds"] > 0
    # What came out is papermill's input as it is, from Python, too.
    again = tmp_path / "again.ipynb"
    papermill.execute_notebook(
        tmp_path / "out.ipynb", again, parameters={"profile": "cpu"}, progress_bar=False
    )
    assert chapters.provenance_of(again)["parameters"] == {"profile": "cpu"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "images", "many"), "parameter 'images' is 'many'; it must be of type int"),
        (("-p", "images", "0"), "parameter 'images' is 0; it must be 1 to 256"),
        (
            ("-p", "pictures", "3"),
            "declares no parameter 'pictures'; it declares: profile, device, seed, folder",
        ),
    ],
)
def test_what_cannot_stand_there_is_one_sentence_before_a_kernel_starts(
    tmp_path, strange_kernel, words, message
):
    done = call(tmp_path, "gradleak://06", "out.ipynb", *words, JUPYTER_DATA_DIR=str(strange_kernel))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: 06-your-own-pictures")
    assert message in last
    assert "Traceback" not in done.stderr


def test_parameters_are_listed_with_their_types(tmp_path):
    listed = call(tmp_path, "--help-notebook", "gradleak://02-llg").stdout
    assert "batches: int (default 12)" in listed
    assert "sizes: list[int] (default [1, 2, 4" in listed
    assert "Unknown type" not in listed


def test_a_list_on_the_command_line_becomes_one():
    notebook = papermill.execute_notebook(
        "gradleak://02-llg", None, parameters={"sizes": "[1, 8]"}, prepare_only=True, progress_bar=False
    )
    [engine] = [papermill.engines.papermill_engines.get_engine(None)]
    assert engine.__name__ == "ChapterEngine"
    assert notebook.metadata.papermill.parameters == {"sizes": "[1, 8]"}  # the engine makes it a list


def test_an_unknown_chapter_names_those_that_exist():
    with pytest.raises(chapters.UsageError, match="no chapter '99'; there are: 01-linkability"):
        papermill_io.read("gradleak://99")
    assert "gradleak://02-llg" in papermill_io.listdir("gradleak://")
    with pytest.raises(ValueError, match="is a chapter's source"):
        papermill_io.write("{}", "gradleak://02-llg")


def test_this_python_comes_before_every_other_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for _ in range(2):
        ours.use_own_kernel()
        first, *others = os.environ["JUPYTER_PATH"].split(os.pathsep)
        assert (Path(first) / "kernels" / "python3" / "kernel.json").is_file()
        assert others == [str(tmp_path)]
