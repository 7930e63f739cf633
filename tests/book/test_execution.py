import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import papermill
import pytest

from gradleak_lib.book import chapters, claims, execution, planning, results

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""


def write_chapter(root: Path, name: str, *cells: str, parameters: str = "") -> Path:
    blocks = [":tags: [parameters]\n\n" + parameters] if parameters else []
    text = "# A chapter\n\n"
    for cell in [*blocks, *(textwrap.dedent(cell) for cell in cells)]:
        text += "```{code-cell} ipython3\n" + cell.strip() + "\n```\n\n"
    source = root / "notebooks" / f"{name}.md"
    source.write_text(HEADER + text, encoding="utf-8")
    return source


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty book, in a folder with a space in its name."""
    root = tmp_path / "a book"
    (root / "notebooks" / "params" / "smoke").mkdir(parents=True)
    (root / "_toc.yml").write_text("")
    monkeypatch.setenv("GRADLEAK_DATA", str(tmp_path / "data"))
    return root


def plan(root: Path, *names: str, **options) -> list[planning.Run]:
    parameters = options.pop("parameters", {})
    return planning.plan(names, parameters, root=root, **options)


def outputs(run: planning.Run) -> str:
    notebook = json.loads(run.target.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "".join("".join(output.get("text", [])) for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("name", ["04", "04-fed", "notebooks/04-fed.md"])
def test_chapters_are_found_by_number_name_and_path(root, monkeypatch, name):
    source = write_chapter(root, "04-fed")
    write_chapter(root, "05-other")
    monkeypatch.chdir(root)
    assert chapters.find_chapter(name, root) == source


def test_unknown_chapter_names_those_that_exist(root):
    write_chapter(root, "04-fed")
    with pytest.raises(chapters.UsageError, match="no chapter '07'; there are: 04-fed"):
        plan(root, "07")


def test_bad_parameters_stop_everything_before_it_starts(root):
    write_chapter(root, "01-one", parameters="bins: int = 1  # (1 or more)\ndataset: str = 'photos'")
    for given, message in (
        ({"binz": 2}, "01-one declares no parameter 'binz'; it declares: bins, dataset"),
        ({"bins": 0}, "01-one: parameter 'bins' is 0; it must be 1 or more"),
        ({"dataset": "nowhere"}, r"'dataset': .*there is no folder nowhere"),
    ):
        with pytest.raises(chapters.UsageError, match=message):
            plan(root, parameters=given)
    assert not (root / "book").exists()


def test_a_folder_of_images_is_relative_to_where_it_was_typed(root, tmp_path, monkeypatch):
    write_chapter(root, "01-one", parameters="dataset: str = 'photos'\nn: int = -1")
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(chapters.UsageError, match=r"'dataset': .*there is no image in this folder"):
        plan(root, parameters={"dataset": "holiday"})
    (tmp_path / "holiday" / "beach.jpg").touch()
    [run] = plan(root, parameters={"dataset": "holiday", "n": -2})
    assert run.parameters == {"dataset": str((tmp_path / "holiday").resolve()), "n": -2}
    [run] = plan(root, parameters={"dataset": "digits"})
    assert run.parameters["dataset"] == "digits"


def test_profiles(root):
    write_chapter(root, "01-one", parameters="n: int = 9\nm: int = 9\nprofile: str = 'cpu'")
    params = root / "notebooks" / "params" / "smoke" / "01-one.yaml"
    params.write_text("n: 1\nm: 1\n")
    [run] = plan(root, profile="smoke", parameters={"m": 2})
    assert run.parameters == {"n": 1, "m": 2, "profile": "smoke"}
    assert run.command == "gradleak run 01-one --profile smoke -p m 2"
    [run] = plan(root)
    assert run.parameters == {}
    with pytest.raises(chapters.UsageError, match="profile is 'fast'; it must be one of: smoke, cpu, paper"):
        plan(root, profile="fast")
    with pytest.raises(chapters.UsageError, match="choose a profile with --profile"):
        plan(root, parameters={"profile": "smoke"})
    with pytest.raises(chapters.UsageError, match="cannot read parameters"):
        plan(root, profile="paper")
    params.write_text("- n\n")
    with pytest.raises(chapters.UsageError, match="not a list"):
        plan(root, profile="smoke")


def test_data_that_a_profile_needs_is_looked_for_first(root):
    for number in (1, 2, 3):
        write_chapter(root, f"0{number}-x", parameters="few: str = 'digits'")
        (root / "notebooks" / "params" / "smoke" / f"0{number}-x.yaml").write_text("few: photos\n")
    needs = root / "notebooks" / "params" / "smoke" / "needs.yaml"
    needs.write_text("01-x: [mnist, blogs]\n02-x: [qmnist, places, no/where]\n03-x: [mnist]\n")
    with pytest.raises(chapters.UsageError) as failure:
        plan(root, profile="smoke")
    lines = str(failure.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "for 01, 03",
        "for 01",
        "for 02",
        "for 02",
    ]
    for line, said in zip(
        lines, ("gradleak data mnist", "blogs", "mnist", "no folder no/where"), strict=True
    ):
        assert said in line
    needs.write_text("01-x: [mnist]\n")
    assert plan(root, "03", profile="smoke")
    assert len(plan(root)) == 3  # of this profile nothing is said
    with pytest.raises(
        chapters.UsageError, match=r"03-x: parameter 'few': mnist: .* run `gradleak data mnist`"
    ):
        plan(root, "03", parameters={"few": "mnist"})


def test_a_run_and_what_its_notebook_carries(root):
    write_chapter(
        root,
        "01-one",
        """
        import os, sys
        from pathlib import Path
        print(n, Path.cwd().name, os.environ["GRADLEAK_RECORD"])
        print(os.environ["OMP_NUM_THREADS"], os.environ["GRADLEAK_COMMAND"])
        """,
        "import ipywidgets\nipywidgets.VBox([ipywidgets.IntSlider()])",
        parameters="n: int = 1  # a number",
    )
    [run] = plan(root, parameters={"n": 5}, record=True)
    seen = []
    [outcome] = execution.run_all([run], on_progress=lambda *state: seen.append(state))
    assert outcome.error == ""
    assert outputs(run).splitlines()[0] == "5 notebooks 1"
    assert outputs(run).splitlines()[1].endswith("gradleak run 01-one -p n 5 --record")
    assert seen[-1][1:] == (5, 5)

    notebook = json.loads(run.target.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell["id"] for cell in notebook["cells"]] == [f"01-one-{number}" for number in range(5)]
    injected = [
        cell for cell in notebook["cells"] if "injected-parameters" in cell["metadata"].get("tags", [])
    ]
    assert "hide-input" in injected[0]["metadata"]["tags"]
    record = chapters.provenance_of(run.target)
    assert record["parameters"] == {"n": 5}
    assert set(record) == {"date", "seconds", "commit", "device", "versions", "parameters", "command", "key"}
    models = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert set(models) == {f"{number:032x}" for number in range(len(models))}
    assert "IPY_MODEL_" + f"{0:032x}"[:-3] in run.target.read_text()

    first = json.loads(run.target.read_text())
    execution.run_all([run])
    second = json.loads(run.target.read_text())
    for one in (first, second):
        del one["metadata"]["gradleak"]
    assert first == second


def test_a_run_is_skipped_until_something_that_matters_changes(root):
    source = write_chapter(root, "01-one", "print(n)", parameters="n: int = 1")
    [run] = plan(root)
    assert not run.up_to_date
    execution.run_all([run])
    assert plan(root)[0].up_to_date
    assert not plan(root, parameters={"n": 2})[0].up_to_date
    source.write_text(source.read_text().replace("print(n)", "print(n + 1)"))
    assert not plan(root)[0].up_to_date


def test_new_words_go_into_what_was_executed(root):
    source = write_chapter(root, "01-one", "print(n)  # a comment", "1 + 1", parameters="n: int = 1")
    execution.run_all(plan(root, parameters={"n": 5}))
    [run] = plan(root, parameters={"n": 5})
    assert run.up_to_date
    assert not execution.refresh(run)
    text = source.read_text()
    text = (
        text.replace("# A chapter", "# A better title")
        .replace("# a comment", "# another")
        .replace("1 + 1", ":tags: [hide-input]\n\n1 + 1")
    )
    source.write_text(text)
    [run] = plan(root, parameters={"n": 5})
    assert run.up_to_date
    assert execution.refresh(run)
    assert not execution.refresh(run)
    notebook = json.loads(run.target.read_text())
    assert "".join(notebook["cells"][0]["source"]) == "# A better title"
    assert outputs(run).strip() == "5"
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert "print(n)  # another" in sources
    assert "n = 5" in sources[sources.index("n: int = 1") + 1]
    assert notebook["cells"][-1]["metadata"]["tags"] == ["hide-input"]
    assert chapters.provenance_of(run.target)["parameters"] == {"n": 5}


def test_a_table_of_claims_follows_its_rules(root, monkeypatch):
    entry = claims.Claim(id="x-01", paper="p", where="w", claim="c", measured="m.", holds=(1.0, 2.0))
    finding = claims.judge(entry, 1.5)
    cells = [
        f"display({{}}, raw=True, metadata={{'{claims.KEY}': {claims.as_json([finding])!r}}})",
        f"from myst_nb import glue\nglue('{claims.HEADLINE}', 'old', display=False)\n"
        f"display({{'text/html': 'old'}}, raw=True, metadata={{'{claims.TABLE}': True}})",
    ]
    write_chapter(root, "01-one", *cells)
    runs = plan(root)
    execution.run_all(runs)
    for holds, verdict in (((1.0, 2.0), "reproduced"), ((3.0, None), "contradicted")):
        monkeypatch.setattr(claims, "load_claims", lambda holds=holds: {"x-01": replace(entry, holds=holds)})
        assert execution.refresh(runs[0])
        said, table = json.loads(runs[0].target.read_text())["cells"][-1]["outputs"]
        assert said["data"] == {results.GLUED: f"'1 claims: 1 {verdict}'"}
        assert f"<td>{verdict}</td>" in table["data"]["text/html"]


def test_papermill_over_an_executed_chapter_is_another_run(root):
    write_chapter(root, "01-one", "print(n)", parameters="n: int = 1")
    [run] = plan(root)
    execution.run_all([run])
    papermill.execute_notebook(run.target, run.target, parameters={"n": 3}, progress_bar=False)
    facts = chapters.provenance_of(run.target)
    assert facts["parameters"] == {"n": 3}
    assert facts["command"].startswith("papermill")
    assert not run.up_to_date


def test_a_failure_stops_no_other_chapter_and_shows_in_its_notebook(root):
    write_chapter(root, "01-bad", "print('before')", "1 / 0", "print('after')")
    write_chapter(root, "02-good", "print('fine')")
    write_chapter(root, "03-dead", "import os\nos._exit(3)")
    runs = plan(root)
    runs[0].target.parent.mkdir(parents=True)
    runs[0].target.write_text("executed before")
    bad, good, dead = execution.run_all(runs, jobs=2)
    assert bad.error == "ZeroDivisionError: division by zero"
    assert good.error == ""
    assert "DeadKernel" in dead.error
    assert "fine" in outputs(runs[1])
    assert runs[0].target.read_text() == "executed before"
    text = runs[0].failed.read_text()
    assert "before" in text
    assert "ZeroDivisionError" in text
    assert "An Exception was encountered" in text
    assert "This run stopped" in runs[2].failed.read_text()
    assert not runs[2].target.exists()
    assert [run.up_to_date for run in plan(root)] == [False, True, False]
    assert not list(runs[0].target.parent.glob(".*"))
    write_chapter(root, "01-bad", "print('mended')")
    execution.run_all(plan(root, "01"))
    assert "mended" in outputs(runs[0])
    assert not runs[0].failed.exists()


def test_chapters_side_by_side_share_the_cores(root, monkeypatch):
    monkeypatch.setattr(execution, "cores", lambda: 6)
    cell = "import os, threading\nprint(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    for number in (1, 2):
        write_chapter(root, f"0{number}-x", cell)
    before = dict(os.environ)
    runs = plan(root)
    execution.run_all(runs, jobs=9)
    assert [outputs(run).split() for run in runs] == [["3", "3"], ["3", "3"]]
    assert dict(os.environ) == before
    with pytest.raises(chapters.UsageError, match="jobs is 0; it must be 1 or more"):
        execution.run_all(runs, jobs=0)


def test_side_by_side_the_longest_chapters_start_first(root):
    for number in (1, 2, 3, 4):
        write_chapter(root, f"0{number}-x", "1")
    runs = plan(root)
    (root / "results" / "cpu").mkdir(parents=True)
    for name, seconds in {"01-x": 1, "02-x": 2, "04-x": 5}.items():
        record = json.dumps({"run": {"seconds": seconds}})
        (root / "results" / "cpu" / f"{name}.json").write_text(record)
    runs[1].target.parent.mkdir(parents=True)
    runs[1].target.write_text(json.dumps({"metadata": {"gradleak": {"seconds": 60}}}))
    seen = []
    outcomes = execution.run_all(runs, jobs=2, on_progress=lambda chapter, *_: seen.append(chapter))
    assert set(list(dict.fromkeys(seen))[:2]) == {"02-x", "04-x"}
    assert [outcome.name for outcome in outcomes] == [run.name for run in runs]


@pytest.mark.skipif(os.name != "posix", reason="needs Unix sockets")
@pytest.mark.parametrize("deep", [0, 90])
def test_a_kernel_waits_on_no_port_that_another_process_may_take(root, tmp_path, monkeypatch, deep):
    folder = tmp_path / ("a" * deep)
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder) if deep else None)
    cell = "import ipykernel.kernelapp as app\nprint(app.IPKernelApp.instance().transport)"
    write_chapter(root, "01-one", cell)
    runs = plan(root)
    assert not execution.run_all(runs)[0].error
    assert outputs(runs[0]).strip() == ("tcp" if deep else "ipc")  # a socket's name is 100 characters at most
    assert not list(folder.glob("gradleak-*"))


def test_a_backend_set_outside_hides_no_figure(root, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    write_chapter(root, "01-one", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    [run] = plan(root)
    execution.run_all([run])
    assert '"image/png"' in run.target.read_text()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupt_ends_the_kernel_and_leaves_nothing_half_written(root, tmp_path):
    marker = tmp_path / "kernel.pid"
    write_chapter(
        root,
        "01-long",
        f"""
        import os, pathlib, time
        pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))
        time.sleep(600)
        """,
    )
    script = (
        "import signal, sys, pathlib; from gradleak_lib.book import execution, planning;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background job ignores it
        "execution.run_all(planning.plan([], {}, root=pathlib.Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], stderr=subprocess.PIPE)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        while not (marker.exists() and marker.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        kernel = int(marker.read_text())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    finally:
        timer.cancel()
    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    folder = root / "book" / "chapters"
    assert not folder.exists() or not list(folder.iterdir())


def test_there_must_be_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(
        chapters, "__file__", str(tmp_path / "site-packages" / "gradleak_lib" / "book" / "chapters.py")
    )
    with pytest.raises(chapters.UsageError, match="clone the repository"):
        chapters.project_root()
