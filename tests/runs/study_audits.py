"""Small judged audits of simulated runs, and copies of them with something changed."""

import json
import shutil
from pathlib import Path

import truing
from truing.config import AuditConfig

SMALL = {"limit": 24, "answers": 8, "rows": 8, "resamples": 300}
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}


TOLD = {"samples": 16, "judged_tokens": 64, "skip_calibration": True}


def options(judge="simulated:", **fields):
    return AuditConfig(**{**SMALL, **TOLD, "judge": judge, **fields})


def audited(out, seed, family="late", **fields):
    truing.audit(f"simulated:{family}?seed={seed}&steps=50,75,100", out=out, config=options(**fields), **TASK)
    return Path(out)


def edited(source, to, change):
    """A copy of an audit whose audit.json went through `change`."""
    shutil.copytree(source, to)
    file = Path(to) / "audit.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    return Path(to)
