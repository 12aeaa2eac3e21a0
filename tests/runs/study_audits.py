"""Small judged audits of simulated runs, and copies of them with something changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import truing
from truing.config import AuditConfig
from truing.store import Store

SMALL = {"limit": 24, "answers": 8, "rows": 8, "resamples": 300}
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}
TOLD = {"samples": 16, "judged_tokens": 64, "skip_calibration": True}


def options(judge="simulated:", **fields):
    return AuditConfig(**{**SMALL, **TOLD, "judge": judge, **fields})


def audited(out, seed, family="late", **fields):
    truing.audit(f"simulated:{family}?seed={seed}&steps=50,75,100", out=out, config=options(**fields), **TASK)
    return Path(out)


def edited(source, to, change=lambda about: None, *, mark="", **checkpoint):
    """A copy of an audit whose audit.json went through `change`; `mark` gives it other weights throughout, as another
    run would have, and `checkpoint` other fields of the run's checkpoints."""
    to = Path(to)
    shutil.copytree(source, to)
    about = json.loads((to / "audit.json").read_text())
    change(about)
    (to / "audit.json").write_text(json.dumps(about))
    if mark:
        with Store.write(to, {}, running=False) as store:
            kept = [c for c in store.checkpoints() if c.run == "subject"]
            fields = [{name: value(c) for name, value in checkpoint.items()} for c in kept]
            changed = [replace(c, weights=mark + c.weights, **more) for c, more in zip(kept, fields, strict=True)]
            store.replace_run("subject", changed)
    return to


def unfinished(about):
    about["status"] = "interrupted"


def unjudged(about):
    about["verdict"]["basis"] = "screen"
