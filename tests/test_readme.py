"""The README's example is run as it stands there."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_recovers_images(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 16
    exec(compile(code, "README.md", "exec"), {})
    assert 25 < int(capsys.readouterr().out.split()[0]) < 55


@pytest.mark.parametrize("paper", ["rtf", "ig", "llg", "lnk", "mit"])
def test_the_headline_is_the_recorded_one(paper):
    record = json.loads((ROOT / "results" / "cpu" / f"{paper}-claims.json").read_text(encoding="utf-8"))
    assert f"Of {record['values']['headline']}." in " ".join(README.split())
