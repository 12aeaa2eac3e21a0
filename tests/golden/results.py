"""Stored results: one JSON file a section, one line a case; what of a record is stored, and how two are compared."""

import json
from pathlib import Path

from truing.types.records import to_plain

HERE = Path(__file__).parent
LEFT_OUT = {"method", "level", "seed", "warning"}
"""fields of estimates: how an interval was made"""


def kept(record):
    """A record as it is stored: plain, numbers to twelve decimals."""
    value = to_plain(record)
    if isinstance(value, dict):
        return {k: kept(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list):
        return [kept(v) for v in value]
    return round(value, 12) if isinstance(value, float) else value


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
        pairs = [(k, found.get(k, "absent"), wanted.get(k, "absent")) for k in dict.fromkeys((*wanted, *found))]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(k, *both) for k, both in enumerate(zip(found, wanted, strict=True))]
    else:
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (found, wanted))
        same = abs(found - wanted) <= tolerance * max(1.0, abs(found), abs(wanted)) if numbers else found == wanted
        return [] if same and (numbers or type(found) is type(wanted)) else [f"{at}: {found!r}, recorded {wanted!r}"]
    return [d for k, a, b in pairs for d in differences(a, b, tolerance, f"{at}/{k}")]
