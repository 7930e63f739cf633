import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def paper():
    spec = importlib.util.spec_from_file_location("paper", ROOT / "book" / "_ext" / "paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("make") or "make", "pdf", *arguments]
    environment = os.environ | variables
    for inherited in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of a make that runs the tests
        environment.pop(inherited, None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_latex_it_says_what_to_install(tmp_path):
    (tmp_path / "find").symlink_to(shutil.which("find"))  # lists the sources
    done = make("VENV=none", PATH=str(tmp_path))  # an environment of one's own: nothing would be installed
    assert done.returncode
    first, *rest = done.stderr.splitlines()
    assert first.startswith(
        "make pdf needs xelatex and latexmk; on Debian and Ubuntu, install texlive-xetex "
    )
    assert all("***" in line for line in rest)  # what make itself says
    assert not done.stdout


@pytest.mark.skipif("GRADLEAK_TEST_PDF" not in os.environ, reason="takes minutes; set GRADLEAK_TEST_PDF=1")
@pytest.mark.skipif(
    not shutil.which("xelatex") or not shutil.which("latexmk"), reason="LaTeX is not installed"
)
def test_the_book_becomes_a_pdf():
    pdf = ROOT / "_build" / "pdf" / "gradleak.pdf"
    pdf.unlink(missing_ok=True)
    done = make(f"VENV={os.environ.get('VIRTUAL_ENV', '.venv')}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(pdf)
    assert pdf.read_bytes().startswith(b"%PDF-")


SPANS = """
<style>td {color: red}</style>
<table><caption>AP, %</caption>
<thead><tr><th>&nbsp;</th><th>attack</th><th colspan="2">seeds</th></tr></thead>
<tbody><tr><th rowspan="2">album</th><th>SVM</th><td>1</td><td>2 &lt; 3</td></tr>
<tr><th>MLP</th><td>4</td><td></td></tr></tbody></table>
"""


def test_a_table_is_read_with_what_spans_rows_and_columns(paper):
    found = paper.Reader(SPANS)
    assert found.caption == "AP, %"
    assert found.head == [[("", 1), ("attack", 1), ("seeds", 2)]]
    assert found.body == [
        [("album", 1), ("SVM", 1), ("1", 1), ("2 < 3", 1)],
        [("", 1), ("MLP", 1), ("4", 1), ("", 1)],
    ]


def test_a_table_is_long_where_it_may_not_fit_on_a_page(paper):
    cells = "<tr><td>a</td></tr>"
    assert "longtable" not in paper.table(f"<table><tbody>{cells * 30}</tbody></table>")[1]["classes"]
    assert "longtable" in paper.table(f"<table><tbody>{cells * 31}</tbody></table>")[1]["classes"]


def test_a_head_that_says_nothing_is_left_out(paper):
    table = paper.table(
        "<table><thead><tr><th>&nbsp;</th></tr></thead><tbody><tr><td>a</td></tr></tbody></table>"
    )[1]
    assert not list(table.findall(paper.nodes.thead))
    assert table.astext().strip() == "a"
