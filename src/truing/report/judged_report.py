"""What the report shows of judged answers: plain strings and drawings for the template, from a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from truing.report import judged, reading, search
from truing.report.agreement import agreement_rows
from truing.report.charts import excess, misaligned
from truing.report.figures import for_page
from truing.report.reading import MISSING, chosen, number, one_line, window
from truing.stats.judged_words import shown
from truing.types.verdicts import Breadth, CheckpointVerdict, Estimate, JudgedLine, RunVerdict

Cell = tuple[str, ...]
"""value, then lines under it"""


def judged_part(verdict: RunVerdict, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about judged answers, for the template: charts, tables, the judge, cues, agreement."""
    rule = verdict.definitions.get("em")
    rule = rule if isinstance(rule, Mapping) else {}
    words = judged.em_words(verdict.definitions)
    lines = [c for c in verdict.checkpoints if c.judged is not None]
    controlled = any(c.judged.excess_control is not None for c in lines if c.judged is not None)
    return {
        "words": words,
        "rule": judged.rule_words(rule),
        "zone": judged.zone_words(rule),
        "level": _level(verdict),
        "em": for_page("em", misaligned(verdict)),
        "excess": for_page("excess", excess(verdict)),
        "controlled": controlled,
        "far": _far_words(verdict, about),
        "lines": [_line(verdict, c, c.judged, controlled) for c in lines if c.judged is not None],
        "breadth": [_breadth(c, b) for c in lines if c.judged and (b := c.judged.breadth) and (b.prompts or b.named)],
        "unjudged": [reading.step_name(c) for c in verdict.checkpoints if c.judged is None],
        "search": _search(verdict) if judged.searched(verdict) else None,
        "judge": judged.judge_name(verdict.judge),
        "panel": one_line(verdict.panel or ""),
        "test": judged.test_words(verdict.validity),
        "test_rows": judged.test_rows(verdict.validity) if verdict.validity else [],
        "certificate": judged.certificate(verdict),
        "variants": judged.variant_rows(verdict.variants),
        "variant_words": judged.variant_words(verdict.variants),
        "variant_control": any(c.excess_control is not None for c in verdict.variants),
        "variant_veto": any(c.veto for c in verdict.variants),
        "variant_checkpoint": one_line(verdict.variants[0].checkpoint) if verdict.variants else "",
        "agreement": agreement_rows(about.get("agreement")),
    }


def chips(verdict: RunVerdict) -> list[tuple[str, str]]:
    """(words, tone) of the judge, its test and the certificate."""
    test = judged.test_word(verdict.validity)
    tones = {"passed": "calm", "failed": "drift", "not taken": "open"}
    certified = ("certified", "calm") if verdict.certified else ("not certified", "open")
    return [
        (f"judged by {judged.judge_name(verdict.judge)}", "plain"),
        (f"judge's test {test}", tones[test]),
        certified,
    ]


def _search(verdict: RunVerdict) -> dict[str, Any]:
    """How the onset was found: tests, what spot checks may have missed, checkpoints without either."""
    return {
        "summary": search.summary(verdict),
        "tested": search.tested_rows(verdict),
        "missed": search.missed_rows(verdict.onset),
        "untested": search.untested(verdict),
        "bracketed": verdict.onset.latest is not None,
        "sampled": any(judged.by_search(c) for c in verdict.checkpoints),
        "limits": any(judged.by_search(c) and c.judged and c.judged.excess_base for c in verdict.checkpoints),
    }


def headline(verdict: RunVerdict) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the onset and the certificate."""
    onset = verdict.onset
    if judged.searched(verdict):
        where = search.headline(onset)
    elif onset.status == "found":
        where = (window(onset.after, onset.latest), "" if onset.sustained else "not at every later checkpoint")
    elif onset.status == "never":
        where = ("none found", "every later checkpoint is clean")
    else:
        where = (onset.status + ("" if onset.after is None else f" {window(onset.after, None)}"), "")
    by = one_line(verdict.certified_by).removeprefix("not yet: ")
    return [("Onset of misalignment", where[0], where[1]), ("Certified", "yes" if verdict.certified else "not yet", by)]


def first_prompts(verdict: RunVerdict | None) -> list[str]:
    """The prompts whose answers are shown first: those with most misaligned answers, from the last checkpoint back."""
    if verdict is None:
        return []
    lines = [c.judged.breadth for c in reversed(verdict.checkpoints) if c.judged is not None and c.judged.breadth]
    return list(dict.fromkeys(name for b in lines for name in b.named))


def _level(verdict: RunVerdict) -> str:
    levels = {c.judged.em.level for c in verdict.checkpoints if c.judged is not None}
    return f"{100 * min(levels):.3g} %" if levels else "95 %"


def _far_words(verdict: RunVerdict, about: Mapping[str, Any]) -> str:
    """Which prompts decide, in a sentence; empty where all do."""
    far, whole = verdict.definitions.get("prompts_far"), verdict.definitions.get("prompts")
    if not isinstance(far, int) or not isinstance(whole, int) or far == whole:
        return ""
    judging = about.get("judging")
    told = one_line(judging.get("told_by") or "") if isinstance(judging, Mapping) else ""
    by = f" (told by: {told})" if told else ""
    return f"{far} of {whole} prompts are far from the training domain{by}; the excess on these decides."


def _line(verdict: RunVerdict, c: CheckpointVerdict, j: JudgedLine, controlled: bool) -> dict[str, Any]:
    whole = sum(n for name, n in j.outcomes.items() if name not in ("unjudged", "failed"))
    return {
        "step": MISSING if c.step is None else str(c.step),
        "label": one_line(c.label),
        "mark": ("recommended" if verdict.recommended else "candidate") if c.label == chosen(verdict) else "",
        "status": search.status_words(c, verdict),
        "tone": "plain" if reading.is_reference(c) else reading.tone(c.status),
        "shares": [
            (*both(j.em), "by the search") if judged.by_search(c) else both(j.em),
            both(shown(c) if c.step != 0 else None, ""),
            *([both(j.excess_control, "")] if controlled else []),
            both(j.corrected),
        ],
        "rests": [
            (str(j.em.n), f"{j.em.clusters} prompts"),
            (judged.percent(j.em_if_unparsed),),
            both(j.em_coherent),
            both(j.alignment, "", 1.0),
            (*both(j.coherent), f"of {j.coherent.n} asked") if 0 < j.coherent.n < whole else both(j.coherent),
            (judged.percent(j.near_cut),),
        ],
        "outcomes": judged.counts(j.outcomes),
    }


def _breadth(c: CheckpointVerdict, b: Breadth) -> dict[str, Any]:
    top = f" ({judged.percent(b.top_share, 0)} of all misaligned answers)" if b.top_share is not None else ""
    named = [one_line(p) for p in b.named]
    named = [f"{n}{top if p == b.top_prompt else ''}" for n, p in zip(named, b.named, strict=True)]
    return {
        "step": MISSING if c.step is None else str(c.step),
        "label": one_line(c.label),
        "cells": [
            (str(b.prompts),),
            (str(b.categories),),
            both(b.excess_far, ""),
            both(b.excess_without_top, ""),
            both(b.excess_without_domain, ""),
        ],
        "named": ", ".join(named),
    }


def both(e: Estimate | None, unit: str = " %", scale: float = 100.0, digits: int = 1) -> Cell:
    """A number and under it its two intervals, each named."""
    if e is None or e.value is None:
        return (MISSING,)
    inner = [
        (judged.set_name(e), judged.ends(e.set_low, e.set_high, 1, scale)),
        ("like these", judged.ends(e.low, e.high, 1, scale)),
    ]
    return (
        minus(number(e.value * scale, digits)) + unit,
        *(minus(f"{name} [{text}]") for name, text in inner if text),
    )


def minus(text: str) -> str:
    """With a true minus sign."""
    return text.replace("-", "−")


def sets_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of imported sets: a row per line of audit.json, which `rates_table` has seen to be readable."""
    out = []
    for line in lines:
        j = line["judged"]
        em, coherent = (_estimate(j[k]) for k in ("em", "coherent"))
        out.append(
            {
                "label": one_line(line["label"]),
                "judge": judged.judge_name(line["judge"]),
                "shares": [
                    (str(line["n"]), f"{line['prompts']} prompts"),
                    both(em, digits=2),
                    (judged.percent(j["em_if_unparsed"], 2),),
                    both(_estimate(j["em_coherent"])),
                    (f"{line['firing']} of {line['prompts']}",),
                ],
                "rests": [
                    both(coherent),
                    both(_estimate(j["alignment"]), "", 1.0),
                    (judged.percent(j["near_cut"]),),
                ],
                "outcomes": judged.counts(j["outcomes"]),
            }
        )
    return out


def _estimate(plain: Mapping[str, Any] | None) -> Estimate | None:
    if plain is None:
        return None
    known = ("value", "low", "high", "set_low", "set_high", "n", "clusters")
    return Estimate(**{k: plain.get(k) for k in known})  # pyright: ignore[reportArgumentType]
