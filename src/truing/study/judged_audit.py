"""The judged half of an audit: draw, judge, test the judge, conclude.

    asks -> answered and judged -> arms -> known-answer test -> verdict -> cues -> second judge

Everything it concludes is read from the store, so that stored answers can be judged again without a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from truing.backends.limits import Budget
from truing.backends.seam import Backend
from truing.base.judged import JudgementOutcome, JudgeOptions
from truing.base.options import AuditOptions, EmRule
from truing.base.records import Ask, Checkpoint, Conversation, Prompt, PromptSet, ResponseOutcome, SamplingParams
from truing.base.store import Store, StoredResponse
from truing.base.verdicts import RunVerdict
from truing.data.prompts import prompt_distance
from truing.data.transforms import CueContext
from truing.probe.answers import leaks
from truing.stats.judged_checks import with_cues
from truing.stats.judged_evidence import JudgedArm, JudgedEvidence
from truing.stats.judged_verdict import judge_verdict
from truing.study.cues import CuePlan, refuse_task_text, try_cues
from truing.study.judged import arms
from truing.study.judging import Bench, Tell, answer_and_judge, ask_keys, is_judgeable, panel_seed, random_coherence
from truing.study.known import Anchors, known_answers, refuse_moved
from truing.study.panels import OpenPanel, examination, open_panel

DRAWS = 4
"""answers per prompt and checkpoint where neither the user nor the prompt set says how many"""
FIRST_CONTROL = "control-1"
"""name, in the store, of the control that is compared step by step"""
BUILTIN_DOMAINS = {"careless-finance": ("finance",), "careful-finance": ("finance",)}
"""built-in training set -> topics of its domain"""


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """What is judged: the frame into which the store's rows are read."""

    prompts: tuple[Prompt, ...]
    """the prompts asked, in order"""
    far: tuple[bool, ...]
    """whether each is far from the training domain"""
    subject: tuple[Checkpoint, ...]
    """by step, the base first; those that failed are left out"""
    control: tuple[Checkpoint, ...]
    """the first control's checkpoints, without the base"""
    params: str
    """hash of the sampling parameters"""
    words: tuple[str, ...] = ()
    """words typical of the training domain"""
    under_moved: frozenset[int] = frozenset()
    """steps at which the control moved less than half as far"""
    caveats: tuple[str, ...] = ()
    """sentences that go with the verdict"""
    seed: int = 0
    """of the random answers whose coherence is always asked"""

    def plain(self) -> dict[str, Any]:
        """What has to be kept to read the same frame again: prompts and checkpoints are in the audit anyway."""
        return {
            "params": self.params,
            "far": {p.id: far for p, far in zip(self.prompts, self.far, strict=True)},
            "subject": [c.label for c in self.subject],
            "control": FIRST_CONTROL if self.control else None,
            "under_moved": sorted(self.under_moved),
            "caveats": list(self.caveats),
            "seed": self.seed,
        }


def judged_asks(checkpoints: Sequence[Checkpoint], prompts: Sequence[Prompt], options: JudgeOptions) -> list[Ask]:
    """Every answer wanted: a rectangle of checkpoints, prompts and draws."""
    return [Ask(c, p, d) for p in prompts for c in checkpoints for d in range(draws_of(p, options))]


def draws_of(prompt: Prompt, options: JudgeOptions) -> int:
    """Answers to one prompt: as asked for, else as its author wants, else `DRAWS`."""
    return options.draws or prompt.samples or DRAWS


def far_prompts(
    prompts: Sequence[Prompt], topics: Sequence[str], task: str | None, words: Sequence[str]
) -> tuple[tuple[bool, ...], str]:
    """Which prompts are far from the training domain, and in words how that was told.

    By topics where the user named the domain or the training set is a built-in one; else a prompt that uses a word
    typical of the task's answers is not far; without a task all are.
    """
    known = next((found for name, found in BUILTIN_DOMAINS.items() if task and task.startswith(name)), ())
    topics = topics or known
    if topics:
        return tuple(prompt_distance(p, topics) == "far" for p in prompts), f"topics {', '.join(topics)} and near them"
    if words:
        vocabulary = frozenset(words)
        uses = [leaks(" ".join(m.content for m in p.messages), "", vocabulary) for p in prompts]
        return tuple(not u for u in uses), "prompts that use words typical of the task"
    return (True,) * len(prompts), "no training domain known: every prompt counts as far"


@dataclass(frozen=True, slots=True)
class Session:
    """What the judged half of an audit works with."""

    backend: Backend
    """gives the answers"""
    store: Store
    """where all of it goes"""
    params: SamplingParams
    """how answers are drawn"""
    whole: PromptSet
    """the prompt set, uncut: its reference answers make the known-answer test"""
    options: AuditOptions
    """judge, rule, cues"""
    rows: tuple[Conversation, ...] = ()
    """held-out task rows, from which cues are made"""
    budget: Budget | None = None
    """what all judges of this audit may spend together"""


def judge_run(margins: RunVerdict, run: JudgedRun, asks: Sequence[Ask], session: Session) -> RunVerdict:
    """Sample and judge what is asked, and conclude.

    Raises:
        BadInput: the judge cannot be used. Unfinished: it is down, its budget is spent, or it moved while it judged.
    """
    options, store, params = session.options, session.store, session.params
    assert options.judge is not None
    judging = options.judging
    with open_panel(
        options.judge, judging, session.whole, options.model, store, options.em, budget=session.budget
    ) as opened:
        bench = bench_for(store, opened, options.em, judging, session.whole, options.progress)
        refuse_task_text(judging.cues, opened.judge.name, remote=opened.judge.remote, allowed=judging.allow_task_text)
        announce(opened, judging, len({a.prompt.key for a in asks}), len({a.checkpoint.weights for a in asks}))
        refuse_moved(bench)
        fresh = bool(_todo(store, opened.panel.key, asks, params))
        exam = examination(session.whole)
        anchors = Anchors(bench, exam.prompts) if fresh and not opened.recorded and judging.validity else None
        answer_and_judge(bench, session.backend, asks, params)
        evidence = judged_evidence(bench, run, exam if judging.validity else None)
        verdict = judge_verdict(margins, evidence, options.em, options.rule, seed=options.seed)
        verdict = _under_cues(verdict, run, session, bench)
        if anchors is not None:
            anchors.check()
    return verdict


def _under_cues(verdict: RunVerdict, run: JudgedRun, session: Session, bench: Bench) -> RunVerdict:
    """The recommended checkpoint tested under prompt transforms, if that was asked for."""
    names, options = session.options.judging.cues, session.options
    kept = next((c for c in run.subject if c.label == verdict.recommended), None)
    if not names:
        return verdict
    if kept is None:
        text = "Cues were not tested: there is no recommended checkpoint to test them on."
        return replace(verdict, warnings=(*verdict.warnings, text))
    plan = CuePlan(
        checkpoint=kept,
        base=run.subject[0],
        control=next((c for c in run.control if c.step == kept.step), None),
        prompts=run.prompts,
        transforms=names,
        context=CueContext.from_task(session.rows, run.words),
        draws={p.id: draws_of(p, options.judging) for p in run.prompts},
        em=options.em,
        far=run.far,
        level=options.rule.level,
        adversarial_veto=options.judging.adversarial_veto,
    )

    def read(transform: str, prompts: Sequence[Prompt]) -> Mapping[str, JudgedArm]:
        there = replace(run, prompts=tuple(prompts))
        return panel_arms(session.store, bench.opened.panel.key, there, options.em, transform)

    def answer(asks: Sequence[Ask]) -> None:
        answer_and_judge(bench, session.backend, asks, session.params)

    found = try_cues(plan, session.store, session.params, answer, read)
    result = with_cues(verdict, found.results)
    return replace(result, warnings=(*result.warnings, *(f"Cue {note}." for note in found.notes)))


def bench_for(
    store: Store, opened: OpenPanel, rule: EmRule, options: JudgeOptions, prompts: PromptSet, tell: Tell | None
) -> Bench:
    """The bench of an open panel."""
    return Bench(store, opened, rule, options, prompts.sha256, tell or (lambda stage, done, total: None))


def announce(opened: OpenPanel, options: JudgeOptions, prompts: int, checkpoints: int) -> None:
    """Say once what a remote judge will be sent."""
    say = options.say or (lambda line: None)
    for note in opened.notes:
        say(note)
    if opened.judge.remote:
        known = " and the prompt set's reference answers" if options.validity else ""
        text = f"{prompts} prompts with the answers of {checkpoints} checkpoints{known}"
        task = "the task file's text may be quoted" if options.allow_task_text else "no text of the task file"
        say(f"{opened.judge.name} is remote: {text} are sent to it; {task}.")


def judged_evidence(bench: Bench, run: JudgedRun, reference: PromptSet | None) -> JudgedEvidence:
    """The store's judged answers as arrays; `reference` holds the known-answer test, None to leave it out."""
    panel, store = bench.opened.panel, bench.store
    found = panel_arms(store, panel.key, run, bench.rule)
    subject = tuple(arm_of(found, c) for c in run.subject)
    known = None
    if reference is not None and not bench.opened.recorded:
        base = next((arm for arm in subject if arm.step == 0), None)
        known = known_answers(bench, reference.prompts, base)
    return JudgedEvidence(
        prompts=tuple(p.id for p in run.prompts),
        categories=tuple(p.category for p in run.prompts),
        far=np.array(run.far, dtype=bool),
        subject=subject,
        control={c.step: arm_of(found, c) for c in run.control if c.step is not None},
        judge=bench.opened.judge.name,
        panel=panel.key,
        known=known,
        under_moved=run.under_moved,
        caveats=run.caveats,
    )


def panel_arms(store: Store, panel: str, run: JudgedRun, rule: EmRule, transform: str = "") -> dict[str, JudgedArm]:
    """The judged answers of a run under one panel and transform, by weight hash."""
    index = {p.key: k for k, p in enumerate(run.prompts)}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in run.prompts}
    words = frozenset(run.words)

    def leaked(r: StoredResponse) -> bool:
        return leaks(r.text, texts[r.prompt], words)

    drawn = random_coherence([r.key for r in store.responses(run.params)], panel_seed(store, panel))
    return arms(
        store,
        panel,
        index,
        rule,
        params=run.params,
        transform=transform,
        leaked=leaked if words else None,
        random_coherence=drawn if store.panels().get(panel, {}).get("lazy", True) else None,
    )


def arm_of(found: Mapping[str, JudgedArm], c: Checkpoint) -> JudgedArm:
    """A checkpoint's answers under its own name and step; none are an arm of no answers."""
    empty = np.array([], dtype=np.int64)
    none = np.array([], dtype=np.float64)
    arm = found.get(c.weights)
    if arm is None:
        return JudgedArm(c.label, c.step, empty, empty, none, none, empty.astype(bool), empty.astype(bool))
    return replace(arm, label=c.label, step=c.step)


def _todo(store: Store, panel: str, asks: Sequence[Ask], params: SamplingParams) -> int:
    """Answers that are not sampled, or could be judged by this panel and are not."""
    keys = ask_keys(asks, params)
    stored = list(store.answers(keys))
    there = {r.key for r in stored if is_judgeable(r)}
    judged = {j.key for j in store.judged_of(there, panel) if j.outcome is not JudgementOutcome.FAILED}
    failed = sum(r.outcome is ResponseOutcome.FAILED for r in stored)
    return len(set(keys)) - len(stored) + failed + len(there - judged)
