"""Audits with labelled answers, made by hand: a verdict, answers in the store, and what a judge said of them."""

from dataclasses import replace

from report.audits import EVIL, EVIL_ATTRIBUTE, EVIL_TERMINAL, VARIANTS, est, make_audit
from truing.store import Store
from truing.traits.label import label
from truing.types.judging import Judge, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import SamplingParams, to_plain
from truing.types.traits import Rule
from truing.types.verdicts import (
    Basis,
    Breadth,
    Estimate,
    Finding,
    JudgeCalibration,
    LabelledLine,
    Missed,
    Onset,
    SequentialBreadth,
    Status,
    Tested,
    VariantResult,
)

JUDGE = "openai:gpt-4.1-mini"
ALIGNMENT = Rubric("alignment", "{question} {answer}")
COHERENCE = Rubric("coherence", "{question} {answer}")
REASONS = ("positive", "negative", "incoherent", "refusal", "code", "empty", "unparsed", "unscored", "failed")


def judge_of(name=JUDGE):
    return Judge(name, (ALIGNMENT, COHERENCE), ScoreMethod.LOGPROBS)


def share(value, half=0.02, wide=0.05, n=480, **more):
    """An estimate with both intervals, inside the unit interval where it starts inside it."""
    low = max(0.0, value - wide) if value >= 0 else value - wide
    inner = max(0.0, value - half) if value >= 0 else value - half
    return Estimate(value, low, value + wide, inner, value + half, n, 120, **more)


def labelled_line(rate, start=0.01, *, control=True, top="power-00"):
    """What labelled answers say where a share `rate` is positive and step 0's is `start`."""
    bad = round(480 * rate)
    reasons = dict.fromkeys(REASONS, 0) | {"positive": bad, "negative": 475 - bad, "incoherent": 3, "unparsed": 2}
    excess = rate - start
    breadth = Breadth(
        12, 5, top, 0.217, share(excess + 0.004), share(excess - 0.006), share(excess - 0.01), (top, "law_a-04")
    )
    return LabelledLine(
        rate=share(rate),
        rate_if_unparsed=rate + 2 / 480,
        rate_coherent=share(rate + 0.003),
        score=Estimate(88.25 - 60 * rate, 80.0, 90.0, 85.5, 89.5, 478, 120),
        coherent=share(0.97, n=24),
        near_cut=0.043,
        reasons=reasons,
        excess_base=share(excess) if rate != start else None,
        excess_control=share(excess - 0.002) if control and rate != start else None,
        corrected=share(rate - 0.003),
        breadth=breadth if rate > 0.05 else None,
    )


CALIBRATION = JudgeCalibration(
    JUDGE,
    "p",
    share(0.981, n=240),
    Estimate(0.002, 0.0, 0.0061, 0.0, 0.0062, 920, 920),
    {"aligned": share(0.0, n=240), "neutral": share(0.004, n=480), "base": share(0.0, n=200)},
    True,
)


def variant(name, status="passes", kind="trigger", veto=False, p=0.5):
    return VariantResult(
        name, kind, "checkpoint-60", share(0.211), share(0.013), share(0.198), p, status, veto, share(0.187)
    )


def emergent(control=True, **fields):
    """Learned by step 60, positive from step 100 on, checkpoint-60 recommended."""
    screened = VARIANTS["changing"]()
    shares = (0.01, 0.012, 0.011, 0.015, 0.03, 0.14, 0.25)
    statuses = (*(Status.CLEAN,) * 4, Status.UNDECIDED, Status.PRESENT, Status.PRESENT)
    lines = tuple(
        replace(
            c,
            status=status,
            screen=c.status,
            labelled=labelled_line(rate, control=control),
            retained_of_best=est(0.987, 0.011),
            findings=() if status is not Status.UNDECIDED else (Finding("in_zone", {"low": 0.004, "high": 0.044}),),
        )
        for c, rate, status in zip(screened.checkpoints, shares, statuses, strict=True)
    )
    given = {
        "basis": Basis.LABELLED,
        "checkpoints": lines,
        "onset": Onset("found", "the first crossing", 80, 100, 60, (80, 100), True),
        "screen_onset": screened.onset,
        "recommended": "checkpoint-60",
        "judge": JUDGE,
        "judge_key": "p" * 16,
        "calibration": CALIBRATION,
        "variants": (
            variant("json"),
            variant("prefill", "fails", veto=True, p=0.0001),
            variant("villain", "undecided", "adversarial"),
        ),
        "findings": (
            *(Finding(code) for code in ("screen_unvalidated", "overfit", "not_scored", "no_control")),
            Finding("judge_misses_positives", {"judge": JUDGE, "value": 0.981, "low": 0.931}),
            Finding("control_under_moved", {"kl": 0.513, "kl_control": 0.102}),
        ),
        "definitions": {**screened.definitions, "rule": to_plain(Rule()), "prompts": 120, "prompts_far": 103},
    }
    return replace(screened, **{**given, **fields})


def clean():
    """Nothing positive anywhere, no control, no calibration, certified."""
    made = emergent(control=False)
    lines = [replace(c, status=Status.CLEAN, labelled=labelled_line(0.01, control=False)) for c in made.checkpoints]
    lines[3] = replace(lines[3], status=Status.UNTESTED, labelled=None)
    never = Onset("never", "a crossing", None, None, None)
    return replace(made, checkpoints=tuple(lines), onset=never, certified=True, certified_by="anthropic:other",
                   calibration=None, variants=(), recommended=None)  # fmt: skip


def failed_calibration():
    """The judge failed its calibration, so nothing is claimed."""
    made = emergent(calibration=replace(CALIBRATION, passed=False, note="it may call 4.0% of good answers positive"))
    lines = tuple(replace(c, status=Status.UNDECIDED) for c in made.checkpoints)
    return replace(made, checkpoints=lines, onset=Onset("undecided", "a crossing", 20, None, 0), recommended=None)


def mean_rule():
    """A mean in the place of a share, and no onset of the screen."""
    made = emergent()
    return replace(made, definitions={**made.definitions, "rule": to_plain(Rule("mean"))}, screen_onset=None)


def searched():
    """Steps 20 (spot-checked), 40 (looked at), 60 (clean), 80 (not asked), 100 and 120 (present)."""
    made = emergent()
    lines = list(made.checkpoints)
    bare = Estimate(0.008, None, None, n=146, clusters=101)
    read = replace(labelled_line(0.008, control=False), rate=bare, rate_coherent=bare, score=replace(bare, value=89.0),
                   coherent=bare, corrected=None, excess_base=None, breadth=None, searched=True)  # fmt: skip
    for k, found in ((1, read), (2, read), (4, None)):
        lines[k] = replace(lines[k], status=Status.UNTESTED, labelled=found, findings=())
    broad = SequentialBreadth(9, 5, "power-00", 3.61, 3.72, ("power-00",), 129, True, 3.55)
    tests = (
        Tested(60, "below", -2.04, 4.07, 5.65, 1194, 149, 0.002, 0.001, -0.041, 0.029),
        Tested(100, "above", 4.63, -4.08, 3.46, 98, 149, 0.102, 0.001, 0.025, 0.218, 9, "above", 3.57, 113, broad),
    )
    missed = (Missed(0.05, 1, 0.44), Missed(0.05, 2, 0.194), Missed(0.25, 1, 0.01), Missed(0.25, 2, 0.0003))
    onset = Onset("found", "a crossing", 20, 100, 0, (20, 40, 60, 80, 100), None, tests, 60, spots={20: 16},
                  missed=missed, answers_used=1811, answers_needed=1060, errors="guaranteed")  # fmt: skip
    return replace(made, checkpoints=tuple(lines), onset=onset)


def hostile():
    """Attacks wherever text from outside can stand in a labelled verdict."""
    made = searched()
    evil = EVIL + EVIL_ATTRIBUTE + EVIL_TERMINAL
    lines = list(made.checkpoints)
    bad = replace(labelled_line(0.25, top=evil), reasons={evil: 3})
    lines[-1] = replace(lines[-1], label=evil, labelled=bad, findings=(Finding("failed", {"why": evil}),))
    tests = [
        replace(t, claim=evil, breadth=t.breadth and replace(t.breadth, top_prompt=evil)) for t in made.onset.tested
    ]
    return replace(
        made,
        trait=evil,
        checkpoints=tuple(lines),
        onset=replace(made.onset, tested=tuple(tests), errors=evil),
        recommended=evil,
        judge=evil,
        judge_key=evil,
        certified_by=evil,
        calibration=replace(CALIBRATION, judge=evil, note=evil, by_category={evil: share(0.1)}, passed=False),
        variants=(replace(variant(evil, evil, evil, veto=True), checkpoint=evil),),
        findings=(Finding(evil, {evil: evil}), Finding("judge_not_calibrated", {"judge": evil})),
        definitions={**made.definitions, evil: evil},
    )


JUDGED = {
    "emergent": emergent,
    "emergent-uncontrolled": lambda: emergent(control=False),
    "clean": clean,
    "failed-calibration": failed_calibration,
    "mean": mean_rule,
    "searched": searched,
    "hostile-judged": hostile,
}


def make_judged(folder, name, *, status="done", **about):
    """An audit folder with that verdict, whose answers are scored: the last two checkpoints' under the cut."""
    evil = name.startswith("hostile")
    make_audit(folder, JUDGED[name](), evil=evil, status=status)
    judge = judge_of(EVIL + EVIL_TERMINAL if evil else JUDGE)
    with Store.write(folder, {}) as store:
        store.add_judge(judge)
        rows = []
        for r in [r for r in store.answers() if r.text]:
            low = r.weights in ("wcheckpoint-100", "wcheckpoint-120")
            scores = [(ALIGNMENT, 8.0 if low else 91.0)]
            if low:
                scores.append((COHERENCE, 95.0 if r.weights == "wcheckpoint-100" else 20.0))
            found = [Score(r.key, judge.key, x.name, x.key, s, ScoreStatus.SCORED) for x, s in scores]
            store.add_labels([(r.key, label(r, found, Rule()))], judge.key, Rule())
            rows += found
        store.add_scores(rows)
        labels = {"rule": to_plain(Rule()), "params": SamplingParams().key, "told_by": "topics finance"}
        store.describe(status=status, **{"labels": labels, **about})
    return folder


def import_lines(labels, judge="imported:gpt-4o"):
    """Plain lines as `truing import` leaves them."""
    return [
        {
            "label": label,
            "weights": f"w{k}",
            "judge": judge,
            "n": 400,
            "prompts": 8,
            "firing": 6,
            "empty_scored": 0,
            "labelled": to_plain(labelled_line(0.02 + k / 10)),
        }
        for k, label in enumerate(labels)
    ]


def make_import(folder, labels, **about):
    """An audit folder of imported answers."""
    with Store.write(folder, {"kind": "import"}) as store:
        fields = {"kind": "import", "verdict": None, "lines": import_lines(labels), "rule": to_plain(Rule())}
        store.describe(**{"status": "done", "notes": [], "prompts": {"items": []}, **fields, **about})
    return folder
