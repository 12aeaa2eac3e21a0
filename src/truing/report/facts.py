"""Short facts for the report: what stands under the sentence, and the tables of definitions and versions."""

import ast
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from truing.config import parts
from truing.report import judged_report
from truing.report.reading import MISSING, PromptItem, chosen, clean, number, one_line, share, window
from truing.types import rules, verdicts
from truing.types.verdicts import CheckpointVerdict, Convergence, Status, Verdict

FOLD = 8
"""rows of one mapping (e.g. prompt id -> hash) above which it is folded away"""


def later_measured(verdict: Verdict) -> list[CheckpointVerdict]:
    """The checkpoints beside step 0 that could be measured."""
    return [c for c in verdict.checkpoints if c.step != 0 and c.status is not Status.FAILED]


def headline(verdict: Verdict) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the four facts a reader wants first."""
    curve = verdict.convergence_skill if verdict.convergence_skill.status != "unmeasured" else verdict.convergence_loss
    learned = (f"Task learned (by {one_line(curve.curve)})", *_learned(curve))
    if verdict.basis is verdicts.Basis.JUDGED:
        onset_fact, certified = judged_report.headline(verdict)
        return [onset_fact, learned, _kept(verdict), certified]
    onset = verdict.onset
    if not later_measured(verdict):
        onset = replace(onset, status="not measured", after=None)
    if onset.status == "found":
        where = (window(onset.after, onset.latest), "" if onset.sustained else "not at every later checkpoint")
    elif onset.status == "never":
        where = ("not seen", "margins do not certify")
    else:
        where = (onset.status + ("" if onset.after is None else f" {window(onset.after, None)}"), "")
    limit = f"{number(verdict.delta_m, 3)} nats/token" if verdict.delta_m is not None else MISSING
    return [
        ("Drift onset", where[0], where[1]),
        learned,
        _kept(verdict),
        ("Drift limit", limit, one_line(verdict.delta_m_source) if verdict.delta_m is not None else "not known"),
    ]


def _learned(c: Convergence) -> tuple[str, str]:
    if c.status == "converged":
        spread = (
            f"interval: steps {c.low} to {c.high}"
            if c.low is not None and c.high is not None and c.low < c.high
            else ""
        )
        return window(c.after, c.step), "; ".join(x for x in (spread, "then overfits" if c.overfit else "") if x)
    words = {
        "still_learning": "still learning",
        "task_not_learned": "not learned",
        "too_few_checkpoints": "too few checkpoints",
        "unmeasured": "not measured",
    }
    return words.get(c.status, one_line(c.status)), "overfits" if c.overfit else ""


def _kept(verdict: Verdict) -> tuple[str, str, str]:
    name = "Recommended" if verdict.basis is verdicts.Basis.JUDGED else "Candidate"
    label = chosen(verdict)
    if label is None:
        return name, "none", ""
    kept = []
    if verdict.retained_of_best is not None:
        kept.append(f"keeps {share(verdict.retained_of_best)} of the best")
    if verdict.retained_of_last is not None:
        kept.append(f"{share(verdict.retained_of_last)} of the last")
    curve = f" ({one_line(verdict.retained_curve)})" if kept and verdict.retained_curve else ""
    return name, one_line(label), ", ".join(kept) + curve


def prompt_facts(about: Mapping[str, Any], items: Sequence[PromptItem]) -> str:
    """The prompt set in one line: name, version, size, categories, hash."""
    given = about.get("prompts") or {}
    if not given and not items:
        return ""
    parts = [f"Prompt set {one_line(given.get('set') or given.get('name') or 'unnamed')}"]
    if given.get("version"):
        parts.append(f"version {one_line(given['version'])}")
    parts.append(f"{len(items)} prompts in {len({p.category for p in items})} categories")
    if given.get("sha256"):
        parts.append(f"sha256 {one_line(given['sha256'])[:16]}")
    return ", ".join(parts)


def sections(about: Mapping[str, Any], verdict: Verdict | None) -> list[dict[str, Any]]:
    """The closing tables: title, rows (name, value, remark), and mappings too long to stand open."""
    remarks_of = docs("Thresholds") | {f"em.{name}": text for name, text in docs("EmRule").items()}
    out = []
    for title, mapping, remarks in (
        ("Rules and thresholds", verdict.definitions if verdict else {}, remarks_of),
        ("Rule for misaligned answers", about.get("rule") or {}, docs("EmRule")),
        ("Health rules", about.get("health_params") or {}, {}),
        ("What was asked", about.get("asked") or {}, {}),
        ("How it was measured", _measuring(about), {}),
        ("What the audit is keyed to", about.get("identity") or {}, {}),
        ("Versions", about.get("versions") or {}, {}),
    ):
        if not isinstance(mapping, Mapping):
            mapping = {"value": mapping}
        rows, folded = [], []
        for key, value in mapping.items():
            if isinstance(value, Mapping) and len(value) > FOLD:
                folded.append((one_line(key), list(_rows("", value))))
            else:
                rows += [(k, v, remark or remarks.get(k, "")) for k, v, remark in _rows(str(key), value)]
        if rows or folded:
            out.append({"title": title, "rows": rows, "folded": folded})
    return out


def _measuring(about: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "rendering": "rendering",
        "sampling": "sampling",
        "content_free_prompt": "content-free prompt q0",
        "domain_words": "words of the training domain",
    }
    return {name: about[key] for key, name in names.items() if about.get(key)}


def control_steps(given: Sequence[Any]) -> str:
    """The steps at which each control run was measured; `given` is one list of steps, or one per control."""
    runs = [run for run in given if isinstance(run, (list, tuple))] or ([given] if given else [])
    return "; ".join(", ".join(MISSING if s is None else one_line(s) for s in run) for run in runs)


def glossary(judged: bool = False) -> list[tuple[str, str]]:
    """(column, meaning) for every number of a checkpoint, from the records themselves."""
    skip = {"label", "weights", "basis", "notes", "note", "health", "state", "judged", "breadth"}
    known = {**docs("CheckpointVerdict"), **docs("Health")}
    if judged:
        known = {**docs("JudgedLine"), **docs("Breadth"), **known}
    return [(name.replace("_", " "), text) for name, text in known.items() if name not in skip]


@functools.cache
def docs(record: str) -> dict[str, str]:
    """Field -> the line under it in the source of a record; empty where the source is not at hand."""
    for module in (verdicts, parts, rules):
        try:
            source = inspect.getsource(module)
        except OSError:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == record:
                return dict(_documented(node))
    return {}


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield ast.unparse(field.target), str(text.value.value).strip()


def _rows(key: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Flat (name, value, remark); a mapping {value, reason} is one row with its reason as the remark."""
    if isinstance(value, Mapping):
        if "value" in value and set(value) <= {"value", "reason", "source", "from"}:
            reason = "; ".join(one_line(value[k]) for k in ("reason", "source", "from") if value.get(k))
            yield one_line(key), _shown(value["value"]), reason
            return
        for k, v in value.items():
            yield from _rows(f"{key}.{k}" if key else str(k), v)
    else:
        yield one_line(key), _shown(value), ""


def _shown(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(v) for v in value)
    return clean(f"{value:.6g}" if isinstance(value, float) else value)
