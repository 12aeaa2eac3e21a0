"""`truing show`: an audit read again, as data."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.errors import BadInput
from truing.store import Store
from truing.types.records import Checkpoint
from truing.types.traits import LOST, Rule


def show(audit: str | Path, *, step: int | None = None, prompt: str | None = None) -> dict[str, Any]:
    """What an audit says, as JSON-ready data.

    Args:
        audit: the audit folder; it may still be running.
        step: only this checkpoint's line of the verdict.
        prompt: one prompt's answers across checkpoints, instead of the verdict.

    Raises:
        NotAnAudit: the folder cannot be read. BadInput: no such step or prompt.
    """
    with Store.read(Path(audit)) as store:
        about = store.about()
        if prompt is not None:
            return _answers(store, about, prompt)
        so_far = _so_far(store, about) if about.get("status") != "done" else []
    if about.get("kind") == "import" and step is None:
        return {"status": about["status"], "audit": str(audit), "lines": about["lines"], "notes": about["notes"]}
    verdict = about.get("verdict") or {}
    if step is not None:
        lines = [c for c in verdict.get("checkpoints", ()) if c["step"] == step]
        if not lines:
            there = ", ".join(str(c["step"]) for c in verdict.get("checkpoints", ()))
            raise BadInput(f"{audit}: no checkpoint at step {step}; there are {there or 'none yet'}")
        return {"step": step, "checkpoint": lines[0]}
    told = {"judged_so_far": so_far} if so_far else {}
    return {"status": about["status"], "audit": str(audit), "verdict": verdict, **told, "notes": about.get("notes", [])}


def _so_far(store: Store, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What became of the labelled answers of an unfinished audit, by judge and checkpoint; counted, never read."""
    kept = about.get("labels") or {}
    if not kept.get("rule") or not kept.get("params"):
        return []
    rule, params, points = Rule(**kept["rule"]), kept["params"], _points(store)
    out = []
    for key, judge in store.judges().items():
        totals = defaultdict[str, Counter[str]](Counter)
        for (weights, _), counts in store.label_counts(key, rule, params).items():
            totals[weights].update({r.word: n for r, n in counts.items()})
        for weights, reasons in totals.items():
            n = reasons.total() - sum(reasons[r.word] for r in LOST)
            whose = {"judge": str(judge.get("judge")), "weights": weights, **_whose(points, weights)}
            share = reasons["positive"] / n if n else None
            out.append({**whose, "n": n, "share": share, "reasons": dict(reasons)})
    return out


def _answers(store: Store, about: dict[str, Any], prompt: str) -> dict[str, Any]:
    item = next((i for i in about.get("prompts", {}).get("items", ()) if i["id"] == prompt), None)
    if item is None:
        raise BadInput(
            f"no prompt {prompt} in this audit; `truing show AUDIT --json` of the audit lists none by that id"
        )
    points, judges = _points(store), store.judges()
    answers = [
        {
            **_whose(points, r.weights),
            "sample": r.sample,
            "transform": r.variant,
            "outcome": r.status.value,
            "text": r.text,
            "judged": [
                {"judge": str(judge.get("judge")), "judge_key": key, "rubric": s.rubric, "score": s.score,
                 "outcome": s.status.value}
                for key, judge in judges.items()
                for s in store.scores_of([r.key], key)
            ],
        }
        for r in store.answers(prompt=item["key"])
    ]  # fmt: skip
    answers.sort(key=lambda a: (a["run"] or "", a["step"] is None, a["step"] or 0, a["sample"]))
    return {"prompt": prompt, "messages": item["messages"], "answers": answers}


def _points(store: Store) -> dict[str, Checkpoint]:
    return {c.weights: c for c in reversed(store.checkpoints())}


def _whose(points: Mapping[str, Checkpoint], weights: str) -> dict[str, Any]:
    c = points.get(weights)
    return {"checkpoint": c.label if c else weights, "step": c.step if c else None, "run": c.run if c else None}
