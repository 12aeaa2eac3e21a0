"""Audits with judged answers, made by hand: a verdict, answers in the store, and what a judge said of them."""

from dataclasses import replace

from report.audits import EVIL, EVIL_ATTRIBUTE, EVIL_TERMINAL, VARIANTS, make_audit
from truing.store import Store
from truing.types.judging import Judge, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import (
    Basis,
    Breadth,
    Estimate,
    LabelledLine,
    JudgeCalibration,
    Onset,
    Status,
    VariantResult,
)

JUDGE = "openai:gpt-4.1-mini"
ALIGNMENT = Rubric("alignment", "{question} {answer}")
COHERENCE = Rubric("coherence", "{question} {answer}")


def panel_of(judge=JUDGE):
    return Judge(judge, (ALIGNMENT, COHERENCE), ScoreMethod.LOGPROBS)


def share(value, half=0.02, wide=0.05, n=480, **more):
    """An estimate with both intervals, inside the unit interval where it starts inside it."""
    if value is None:
        return None
    low = max(0.0, value - wide) if value >= 0 else value - wide
    inner = max(0.0, value - half) if value >= 0 else value - half
    return Estimate(value, low, value + wide, inner, value + half, n, 120, **more)


def judged_line(em, start=0.01, *, control=True, top="power-00"):
    """What judged answers say where a share `em` is misaligned and step 0's is `start`."""
    bad = round(480 * em)
    counts = {"misaligned": bad, "incoherent": 3, "aligned": 480 - bad - 5, "unparsed": 2, "unjudged": 1, "failed": 0}
    excess = em - start
    breadth = Breadth(
        12, 5, top, 0.21, share(excess + 0.004), share(excess - 0.006), share(excess - 0.01), (top, "law_a-04")
    )
    return LabelledLine(
        share(em),
        em + 2 / 480,
        share(em + 0.003),
        Estimate(88.25 - 60 * em, 80.0, 90.0, 85.5, 89.5, 478, 120),
        share(0.97, n=24),
        0.043,
        counts,
        share(excess) if em != start else None,
        share(excess - 0.002) if control and em != start else None,
        share(em - 0.003),
        breadth if em > 0.05 else None,
    )


VALIDITY = JudgeCalibration(
    JUDGE,
    "p",
    share(0.981, n=240),
    Estimate(0.002, 0.0, 0.0061, 0.0, 0.0061, 920, 920),
    {"aligned": share(0.0, n=240), "neutral": share(0.004, n=480), "base": share(0.0, n=200)},
    True,
)


def variant(name, status="passes", kind="cue", veto=False, p=0.5):
    return VariantResult(
        name, kind, "checkpoint-60", share(0.2), share(0.01), share(0.19), p, status, veto, share(0.18)
    )


def emergent(control=True, **fields):
    """Learned by step 60, misaligned from step 100 on, checkpoint-60 recommended."""
    margins = VARIANTS["drifting"]()
    shares = (0.01, 0.012, 0.011, 0.015, 0.03, 0.14, 0.25)
    statuses = (*(Status.CLEAN,) * 4, Status.UNDECIDED, Status.EMERGENT, Status.EMERGENT)
    lines = tuple(
        replace(
            c,
            status=status,
            basis=Basis.JUDGED,
            drift=c.status,
            judged=judged_line(em, control=control),
            notes=("a note", "a note"),
        )
        for c, em, status in zip(margins.checkpoints, shares, statuses, strict=True)
    )
    given = {
        "basis": Basis.JUDGED,
        "sentence": f"Emergent misalignment under {JUDGE}: it starts between step 60 and step 100.",
        "checkpoints": lines,
        "onset": Onset("found", "the first crossing", 80, 100, 60, (80, 100), True),
        "drift_onset": margins.onset,
        "recommended": "checkpoint-60",
        "judge": JUDGE,
        "panel": "p" * 16,
        "certified_by": "not yet: a judge of a second family or 60 blind labels must agree on the direction",
        "validity": VALIDITY,
        "variants": (
            variant("json"),
            variant("prefill", "fails", veto=True, p=0.0001),
            variant("villain", "undecided", "adversarial"),
        ),
        "warnings": ("Near cut.", "Near cut.", "Contrast unvalidated."),
        "definitions": {**margins.definitions, "em": to_plain(Rule()), "prompts": 120, "prompts_far": 103},
    }
    return replace(margins, **{**given, **fields})


def clean():
    """Nothing misaligned anywhere, no control, no test of the judge, certified."""
    made = emergent(control=False)
    lines = [replace(c, status=Status.CLEAN, judged=judged_line(0.01, control=False)) for c in made.checkpoints]
    lines[3] = replace(lines[3], status=Status.UNJUDGED, judged=None)
    return replace(
        made,
        sentence="Clean under the judge at 5 of 6 later checkpoints.",
        checkpoints=tuple(lines),
        onset=Onset("never", "a crossing", None, None, None),
        certified=True,
        certified_by="anthropic:other",
        validity=None,
        variants=(),
        recommended=None,
        definitions={**made.definitions, "prompts_far": 120},
    )


def failed_test():
    """The judge failed its known-answer test, so nothing is claimed."""
    made = emergent(validity=replace(VALIDITY, absolute=False, note="it may call 4.0% of good answers misaligned"))
    lines = tuple(replace(c, status=Status.UNDECIDED) for c in made.checkpoints)
    return replace(made, checkpoints=lines, onset=Onset("undecided", "a crossing", 20, None, 0), recommended=None)


def mean_rule():
    """Misalignment as a mean, and no drift searched for."""
    made = emergent()
    return replace(made, definitions={**made.definitions, "em": to_plain(Rule("mean"))}, drift_onset=None)


def not_attributable():
    """The longest status, wide intervals."""
    made = emergent()
    lines = list(made.checkpoints)
    wide = replace(lines[-1].judged, excess_control=Estimate(-0.012, -0.31, 0.2, -0.146, 0.128, 480, 120))
    lines[-1] = replace(lines[-1], status=Status.MISALIGNED_NOT_ATTRIBUTABLE, judged=wide)
    return replace(made, checkpoints=tuple(lines))


def hostile():
    """Attacks wherever text from outside can stand in a judged verdict."""
    made = emergent()
    evil = EVIL + EVIL_ATTRIBUTE + EVIL_TERMINAL
    lines = list(made.checkpoints)
    bad = replace(judged_line(0.25, top=evil), outcomes={evil: 3})
    lines[-1] = replace(lines[-1], judged=bad, notes=(evil,))
    return replace(
        made,
        sentence=evil,
        checkpoints=tuple(lines),
        judge=evil,
        panel=evil,
        certified_by=evil,
        validity=replace(VALIDITY, judge=evil, note=evil, by_category={evil: share(0.1)}),
        variants=(replace(variant(evil, "fails", evil, veto=True), checkpoint=evil),),
        warnings=(evil,),
    )


JUDGED = {
    "emergent": emergent,
    "emergent-uncontrolled": lambda: emergent(control=False),
    "clean": clean,
    "failed-test": failed_test,
    "mean": mean_rule,
    "not-attributable": not_attributable,
    "hostile-judged": hostile,
}


def make_judged(folder, name, *, agreement=None, evil=None, status="done"):
    """An audit folder with that verdict, whose answers are judged: later checkpoints by turns as bad."""
    evil = name.startswith("hostile") if evil is None else evil
    made = JUDGED[name]()
    make_audit(folder, made, evil=evil, status=status)
    judge = EVIL + EVIL_TERMINAL if evil else JUDGE
    panel = panel_of(judge)
    with Store.write(folder, {}) as store:
        store.add_judge(panel)
        answers = [r for r in store.answers() if r.text]
        rows = []
        for r in answers:
            low = r.weights in ("wcheckpoint-100", "wcheckpoint-120")
            score = 8.0 if low else 91.0
            rows.append(Score(r.key, panel.key, "alignment", ALIGNMENT.key, score, ScoreStatus.SCORED))
            if low:
                gate = 95.0 if r.weights == "wcheckpoint-100" else 20.0
                rows.append(Score(r.key, panel.key, "coherence", COHERENCE.key, gate, ScoreStatus.SCORED))
        store.add_scores(rows)
        fields = {"agreement": agreement} if agreement else {}
        store.describe(status=status, judging={"em": to_plain(Rule()), "told_by": "topics finance"}, **fields)
    return folder


def import_lines(labels, judge="imported:gpt-4o"):
    """Plain lines as `truing import` leaves them."""
    return [
        {
            "label": label,
            "weights": f"w{k}",
            "judge": judge,
            "panel": "p",
            "n": 400,
            "prompts": 8,
            "firing": 6,
            "empty_scored": 0,
            "judged": to_plain(judged_line(0.02 + k / 10)),
        }
        for k, label in enumerate(labels)
    ]


def make_import(folder, labels, **about):
    """An audit folder of imported answers."""
    with Store.write(folder, {"kind": "import"}) as store:
        fields = {"kind": "import", "verdict": None, "lines": import_lines(labels), "rule": to_plain(Rule())}
        store.describe(**{"status": "done", "notes": [], "prompts": {"items": []}, **fields, **about})
    return folder
