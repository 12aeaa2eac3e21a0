"""Stored results: one JSON file a section, one line a case, and how two results are compared."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def load(section):
    """Name -> result."""
    return json.loads((HERE / f"{section}.json").read_text())


def save(section, results):
    """Write a section. A changed case is a changed line."""
    lines = (f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}" for name, found in results.items())
    (HERE / f"{section}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def differences(found, wanted, tolerance=1e-9, at=""):
    """Where two results differ, a line each; numbers may differ by `tolerance`, absolutely or of the larger one."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            d
            for k in dict.fromkeys((*wanted, *found))
            for d in differences(found.get(k, "absent"), wanted.get(k, "absent"), tolerance, f"{at}/{k}")
        ]
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [d for k, (a, b) in pairs for d in differences(a, b, tolerance, f"{at}/{k}")]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (found, wanted))
    if numbers and abs(found - wanted) <= tolerance * max(1.0, abs(found), abs(wanted)):
        return []
    same = not numbers and type(found) is type(wanted) and found == wanted
    return [] if same else [f"{at}: {found!r}, recorded {wanted!r}"]
