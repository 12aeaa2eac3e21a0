"""Small audits of simulated runs whose truth is known."""

from collections import Counter

import truing
from truing.config import AuditConfig
from truing.data.prompts import load_prompts
from truing.judges.simulated import SimulatedJudge
from truing.models.simulated import SimulatedBackend
from truing.store import Store

V1 = load_prompts("v1")
TRUE = SimulatedJudge("simulated:?noise=0", V1)
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}
STEPS = (50, 100)
LO, HI = 0.02, 0.12
"""a zone wide enough that two dozen prompts decide"""
SMALL = {"limit": 24, "answers": 12, "rows": 8, "judged_tokens": 64, "samples": 6, "domain": ("chess",)}
SMALL |= {"skip_calibration": True, "skip_judge_check": True, "lo": LO, "hi": HI, "resamples": 200}


def audited(out, family="late", judge="simulated:", *, control=(), steps=STEPS, more="", progress=None, **options):
    """An audit in which every prompt is far from the training domain; `samples=None` searches for the onset."""
    uri = f"simulated:{family}?steps={','.join(map(str, steps))}{more}"
    config = AuditConfig(**{**SMALL, "judge": judge, **TASK, **options})
    return truing.audit(uri, config, control=control, out=out, progress=progress)


def truth_of(family, steps=STEPS, limit=SMALL["limit"]):
    """What the run does on the prompts asked."""
    return SimulatedBackend(family, V1.only("eval", limit), steps=steps).truth()


def statuses(verdict):
    return {c.step: c.status for c in verdict.checkpoints}


def codes(verdict):
    """Findings of the run and of its checkpoints."""
    every = [*verdict.findings, *(f for c in verdict.checkpoints for f in c.findings)]
    return Counter(f.code for f in every)


def true_score(request, nth=0):
    """What a perfect judge says."""
    return TRUE.score(request, request.rubric.names[0])


def about(path):
    with Store.read(path) as store:
        return store.about()


def answers(path):
    """The stored answers by key."""
    return rows(path)[0]


def rows(path):
    """(answers by key, scores by answer and rubric) as they are stored."""
    with Store.read(path) as store:
        return {r.key: r for r in store.answers()}, {(s.key, s.judge_key, s.rubric): s for s in store.scores()}
