"""What re-runs a chapter, and what does not."""

import ast
import os

import pytest

from gradleak_lib.book import chapters, keys, results

SOURCE = """# Title

Prose.

```{code-cell} ipython3
:tags: [hide-input]

from gradleak_lib.experiments import one

one.run()  # a comment
```
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A clone with two experiments, one of which the chapter calls, which calls a third."""
    files = {
        "gradleak_lib/attacks/a.py": 'def f(x):\n    """What it does."""\n    return x\n',
        "gradleak_lib/models.py": "x = 1\n",
        "gradleak_lib/book/page.py": "x = 1\n",
        "gradleak_lib/experiments/one/__init__.py": "from gradleak_lib.experiments import deep\n",
        "gradleak_lib/experiments/deep.py": "x = 1\n",
        "gradleak_lib/experiments/other.py": "x = 1\n",
        "book/claims.yaml": "[]\n",
        "results/cpu/one-cifar10.json": "{}\n",
        "results/cpu/01-one.json": "{}\n",
        "constraints.txt": "# pins\ntorch==1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("GRADLEAK_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gradleak_lib/book/page.py", "x = 2\n"),
        (
            "gradleak_lib/attacks/a.py",
            '# New.\ndef f(x):\n    """Other words."""\n    return x  # as it is\n',
        ),
        ("gradleak_lib/experiments/other.py", "x = 2\n"),
        ("book/claims.yaml", "[other]\n"),
        ("results/cpu/01-one.json", '{"what": "this very run measured"}'),
        ("constraints.txt", "# other words\ntorch==1\n"),
    ],
)
def test_what_re_runs_nothing(root, name, text):
    before = keys.decides(SOURCE, root)
    (root / name).write_text(text)
    assert keys.decides(SOURCE, root) == before


def test_prose_and_comments_of_the_chapter_re_run_nothing(root):
    new = (
        SOURCE.replace("Prose.", "Better prose.")
        .replace("a comment", "another")
        .replace("hide-input", "hide-cell")
    )
    assert keys.decides(new, root) == keys.decides(SOURCE, root)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("gradleak_lib/attacks/a.py", "def f(x):\n    return x + 1\n", "science"),
        ("gradleak_lib/attacks/new.py", "", "science"),
        ("gradleak_lib/models.py", "x = 2\n", "science"),
        ("gradleak_lib/experiments/one/__init__.py", "y = 2\n", "experiments"),
        ("gradleak_lib/experiments/deep.py", "x = 2\n", "experiments"),
        ("constraints.txt", "torch==2\n", "packages"),
        ("data/cifar-10/test_batch", "bytes", "data sets"),
    ],
)
def test_what_does(root, name, text, part):
    before = keys.decides(SOURCE, root)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    after = keys.decides(SOURCE, root)
    assert [name for name in before if before[name] != after[name]] == [part]


def test_the_chapters_own_code_and_the_results_that_it_names(root):
    before = keys.decides(SOURCE, root)
    assert keys.decides(SOURCE.replace("one.run()", "one.run(1)"), root)["chapter"] != before["chapter"]
    # A semicolon keeps the value of a cell from being shown.
    assert keys.decides(SOURCE.replace("  # a comment", ";"), root)["chapter"] != before["chapter"]


@pytest.mark.parametrize("how", ["'one-cifar10'", "f'one-{name}'", "open('one-cifar10.json')"])
def test_a_recorded_result_counts_where_the_code_names_it(root, how):
    source = SOURCE.replace("one.run()", f"one.run({how})")
    in_prose = SOURCE + "\nRecorded as one-cifar10.\n"
    named, unnamed = keys.decides(source, root), keys.decides(in_prose, root)
    assert unnamed == keys.decides(SOURCE, root)
    (root / "results" / "cpu" / "one-cifar10.json").write_text("[]")
    assert keys.decides(source, root)["results"] != named["results"]
    assert keys.decides(in_prose, root) == unnamed


def test_every_recorded_result_is_named_by_a_chapter():
    kept = {"verdicts-before-studies"}  # for the page on what changed
    for path in (results.ROOT / "results").rglob("[!0-9]*.json"):
        sources = [source.read_text(encoding="utf-8") for source in chapters.chapter_sources(results.ROOT)]
        cells = [cell.code for source in sources for cell in chapters.code_cells(source)]
        assert path.stem in kept or any(keys._names([ast.parse(code)], path.stem) for code in cells), path


def test_code_that_is_no_python_stands_for_itself():
    assert keys.meaning("%matplotlib inline  # x") != keys.meaning("%matplotlib inline  # y")
    assert keys.meaning("x = 1  # x") == keys.meaning("x = 1")


def test_a_shell_command_stands_in_nobodys_way(root):
    with_magic = SOURCE.replace("one.run()", "%matplotlib inline")
    assert keys.decides(with_magic, root)["chapter"] != keys.decides(SOURCE, root)["chapter"]
    other = SOURCE + "\n```{code-cell} ipython3\n!ls\n```\n"
    assert keys.decides(other, root)["experiments"] == keys.decides(SOURCE, root)["experiments"]


def test_the_data_folder_is_the_one_that_is_named(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "mnist").mkdir()
    assert keys.decides(SOURCE, root)["data sets"] != keys.decides(SOURCE, root, other)["data sets"]
    assert os.environ["GRADLEAK_DATA"]
