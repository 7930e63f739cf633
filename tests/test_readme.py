"""The README's example is run as it stands there, and its headline is the recorded one."""

import json
import re
from pathlib import Path

from gradleak_lib import claims

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_recovers_images(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 16
    exec(compile(code, "README.md", "exec"), {})
    assert 25 < int(capsys.readouterr().out.split()[0]) < 55


def test_the_headline_is_the_recorded_one():
    record = json.loads((ROOT / "results" / "cpu" / "scorecard.json").read_text(encoding="utf-8"))
    assert f"{record['headline']}." in " ".join(README.split())
    findings = claims.from_json(record["claims"], claims.load_claims())
    assert claims.headline(findings) == record["headline"]
