"""The sources of the book: spelling, the code of the chapters, and numbers that nobody should have typed."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
import torch

from gradleak_lib import metrics
from gradleak_lib.book import chapters, claims, results, studies

ROOT = Path(__file__).resolve().parents[2]
SOURCES = chapters.chapter_sources(ROOT)
PAGES = sorted((ROOT / "book").glob("*.md"))
SAME = torch.zeros(1, 1, 8, 8)
BEST = metrics.psnr(SAME, SAME).item()  # the end of the scale, which the text may name


def codespell(folder: Path) -> str:
    command = [sys.executable, "-m", "codespell_lib"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_no_word_is_misspelt():
    assert codespell(ROOT) == ""


def test_a_misspelt_word_is_found_wherever_there_is_text(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    wrong = "rec" + "ieve"
    folders = (
        ".",
        "notebooks",
        "book",
        "book/api",
        "book/_static",
        "gradleak_lib/data",
        "tests/book",
        "results/cpu",
    )
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "a.md").write_text(f"They {wrong} it.\n")
    found = codespell(tmp_path).splitlines()
    assert len(found) == len(folders)
    assert all(f"{wrong} ==> receive" in line for line in found)


def ruff(code: str, name: str) -> str:
    # As `make lint` calls it; which rules hold for a chapter stands in pyproject.toml.
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise"]
    command += ["--stdin-filename", f"notebooks/{name}.py", "-"]
    return subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True).stdout


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_code_of_a_chapter_is_clean(source):
    code = jupytext.writes(jupytext.read(source), fmt="py:percent")
    assert "import" in code
    assert ruff(code, source.name) == ""
    assert "F821" in ruff(code + "\nprint(never_defined)\n", source.name)


# Fewer digits than three say too little of where a number comes from.
NUMBER = re.compile(r"(?<![\w.,/^-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/]|[.,]\d)")
UNIT = re.compile(r"\s*(dB|%|times)(?!\w)")
# "against 14.9 in the paper", "(paper: 36.45)": a clause says whose number it is.
CLAUSE = re.compile(r"[,;.]\s|[()]|\n\n")
# What is not prose: the header, code, options, formulas, roles, code in a line, addresses.
NO_PROSE = (
    r"\A---\n.*?\n---\n",
    r"^(?P<fence>`{3,}|~{3,})(?:\{(?:code-cell|code-block|math)\}|\w)[^\n]*\n.*?^(?P=fence)",
    r"^(`{3,}|~{3,}|:{3,})[^\n]*",
    r"^\s*:[\w-]+:[^\n]*",
    r"\$\$.*?\$\$",
    r"(?<!\\)\$[^$]+?\$",
    r"\{[\w:+-]+\}`[^`]*`",
    r"(?P<ticks>`+).+?(?P=ticks)",
    r"\]\([^)]*\)",
    r"<[^>\n]*>",
)


def prose(text: str) -> str:
    """The text with everything else blanked, each line where it was."""
    for pattern in NO_PROSE:
        blank = re.compile(pattern, re.DOTALL | re.MULTILINE)
        text = blank.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def digits(number: str) -> int:
    """Significant digits; the noughts at the end of a whole number are none."""
    return len((number.replace(".", "") if "." in number else number.rstrip("0")).lstrip("0"))


def numbers(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, number and unit of what could be a measurement of our own in the prose of a page."""
    text = prose(text)
    for match in NUMBER.finditer(text):
        number = match[0].replace(",", "")
        before, after = CLAUSE.split(text[: match.start()])[-1], CLAUSE.split(text[match.end() :])[0]
        if digits(number) >= 3 and "paper" not in before.lower() + after.lower():
            unit = UNIT.match(text, match.end())
            yield text.count("\n", 0, match.start()) + 1, number, unit[1] if unit else ""


def measured(folder: Path) -> dict[str, list[float]]:
    """Recorded values by claim, and the mean of each setting."""
    found: dict[str, list[float]] = {}
    for path in folder.rglob("[0-9]*.json"):
        for claim, finding in json.loads(path.read_text(encoding="utf-8"))["claims"].items():
            for values in finding["settings"].values():
                numbers = [*values, sum(values) / len(values)] if values else []
                found.setdefault(claim, []).extend(number for number in numbers if number != BEST)
    return found


def estimated() -> dict[str, list[float]]:
    """What studies estimate, by claim; what has no spread is arithmetic."""
    found = {}
    for record in studies.recorded(ROOT):
        for claim in record.study.claims if record.complete else ():
            some = record.verdict(claim).estimates.values()
            found[claim] = [one.value for one in some if one.low < one.high]
    return found


def glued(notebook: Path) -> dict[str, list[float]]:
    """Numbers that an executed chapter glued, by key."""
    numbers = results.read_glued(notebook).items()
    return {key: [number] for key, number in numbers if math.isfinite(number) and number != BEST}


def typed(page: str, known: dict[str, list[float]], units: bool = False) -> list[str]:
    """Numbers of a page (those with a unit only) that are known ones, rounded as they are written there."""
    return [
        f"line {line}: {number} {unit}".rstrip() + f" is {key}"
        for line, number, unit in numbers(page)
        if unit or not units
        for key, values in known.items()
        if any(f"{value:.{len(number.partition('.')[2])}f}" == number for value in values)
    ]


def test_nobody_types_what_was_measured():
    recorded, claims_of = measured(ROOT / "results") | estimated(), claims.load_claims()
    papers = {claim.number for claim in claims_of.values()}
    assert len(recorded) > 60
    seen, wrong = 0, {}
    for path in (*SOURCES, *PAGES):
        page = path.read_text(encoding="utf-8")
        # A chapter that is about one paper is not measured by chance agreements with the others.
        paper = re.search(r'Page\(\s*"[^"]+",\s*globals\(\),\s*paper="(\w+)"', page)
        known = {
            key: values for key, values in recorded.items() if not paper or claims_of[key].paper == paper[1]
        }
        assert known
        seen += len(list(numbers(page)))
        # What a paper says is typed; that one of our values is the same is chance.
        found = [line for line in typed(page, known) if float(line.split()[2]) not in papers]
        if found:
            wrong[path.name] = found
    assert seen > 15
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_nobody_types_what_a_chapter_computes(source):
    executed = ROOT / "book" / "chapters" / f"{source.stem}.ipynb"
    if not executed.exists():
        pytest.skip("the chapter has not been executed here")
    known = glued(executed)
    assert known
    page = source.read_text(encoding="utf-8")
    # What this chapter's paper says is typed; that a value of ours is the same is chance.
    paper = re.search(r'Page\(\s*"[^"]+",\s*globals\(\),\s*paper="(\w+)"', page)
    claimed = claims.load_claims(paper[1] if paper else None).values()
    said = {f"{number} {unit}" for _, number, unit in numbers("\n".join(claim.claim for claim in claimed))}
    found = typed(page, known, units=True)
    assert [line for line in found if " ".join(line.split()[2:4]) not in said] == []


PAGE = """---
version: 36.18
---

# 36.18 of them

```{code-cell} ipython3
x = 36.18
```

`36.18` and $36.18$, {eq}`36.18`, [](36.18), the paper's 36.18, 136.18, 36.184; 36.2 dB (paper: 36.45),
**36.18 dB**

```{note}
:class: 36.18
It is 36.18 %.
```
"""


def test_a_typed_number_is_found(tmp_path):
    content = {"claims": {"x-01": {"settings": {"": [36.0, 36.36]}}, "x-02": {"settings": {"": [36.45]}}}}
    (tmp_path / "01-x.json").write_text(json.dumps(content))
    known = measured(tmp_path)
    found = ["line 5: 36.18", "line 11: 36.2 dB", "line 12: 36.18 dB", "line 16: 36.18 %"]
    assert typed(PAGE, known) == [f"{hit} is x-01" for hit in found]
    assert typed(PAGE, known, units=True) == [f"{hit} is x-01" for hit in found[1:]]


def test_a_glued_number_is_found(tmp_path):
    output = {
        "metadata": {"scrapbook": {"name": "psnr"}},
        "data": {"application/papermill.record/text/plain": "36.1812"},
    }
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [{}, {"outputs": [{}, output]}]}))
    assert len(typed(PAGE, glued(tmp_path / "x.ipynb"), units=True)) == 3
