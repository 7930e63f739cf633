"""Data flows one way through the library, and no import runs back up."""

import ast
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "gradleak_lib"
# What each part may import besides itself.
MAY = {
    "data": set(),
    "models": set(),
    "federated": {"data", "models"},
    "defenses": {"data", "federated"},
    "attacks": {"models", "federated"},
    "metrics": set(),
    "plots": {"metrics"},
    "widgets": {"metrics"},
}


def imported(path: Path) -> set[str]:
    """Parts of the library that a file imports, whether at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            whole = node.module == "gradleak_lib"
            names |= {f"gradleak_lib.{one.name}" for one in node.names} if whole else {node.module or ""}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gradleak_lib.")}


def test_no_import_runs_back_up():
    seen, wrong = 0, []
    for part, allowed in MAY.items():
        files = sorted((LIBRARY / part).glob("*.py")) or [LIBRARY / f"{part}.py"]
        for path in files:
            found = imported(path)
            seen += len(found)
            wrong += [f"{path.relative_to(LIBRARY)} imports {name}" for name in found - allowed - {part}]
    assert seen > 50
    assert wrong == []
