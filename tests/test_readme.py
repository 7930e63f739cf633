"""The README's example is run as it stands there, and its headline is the recorded one."""

import re
from pathlib import Path

from gradleak_lib.book import claims, records, scorecard, studies

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_recovers_images(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 16
    exec(compile(code, "README.md", "exec"), {})
    assert 25 < int(capsys.readouterr().out.split()[0]) < 55


def test_the_headline_is_the_recorded_one():
    known = claims.load_claims()
    rows = [row for record in records.read_all(ROOT / "results" / "cpu", known) for row in record.rows]
    untested = {name: claims.judge(one, {}) for name, one in known.items()}
    built = {row.finding.claim.id: row.finding for row in scorecard.collect(rows, known)}
    headline = claims.headline((untested | built | scorecard.decide(known, studies.recorded(ROOT))).values())
    assert headline.startswith(f"{len(known)} claims")
    assert f"{headline}." in " ".join(README.split())
