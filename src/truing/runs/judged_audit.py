"""The judged half of an audit: draw, judge, test the judge, conclude.

    asks -> answered and judged -> arms -> known-answer test -> verdict -> cues -> second judge

Everything it concludes is read from the store, so that stored answers can be judged again without a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from truing.config.options import AuditOptions, EmRule
from truing.data.transforms import VariantContext
from truing.models.base import Backend
from truing.models.limits import Budget
from truing.runs.judged import groups
from truing.runs.judged_frame import JudgedRun
from truing.runs.judging import Bench, Tell, answer_and_judge, is_judgeable, panel_seed, random_coherence, request_keys
from truing.runs.known import Anchors, known_answers, refuse_moved
from truing.runs.panels import OpenPanel, examination, open_panel
from truing.runs.search import FIXED_FROM, AnswerAll, Searcher, fixed_requests, search_onset
from truing.runs.variants import VariantPlan, refuse_task_text, try_variants
from truing.stats.judged_checks import with_variants
from truing.stats.judged_evidence import AnswerTable, Fate, JudgedEvidence
from truing.stats.judged_verdict import STAGES, judge_verdict, most_learned
from truing.stats.judged_words import task_curve
from truing.store import Store, StoredAnswer
from truing.traits.features import leaks
from truing.types.judging import JudgeOptions, ScoreStatus
from truing.types.records import AnswerStatus, Checkpoint, Conversation, Prompt, PromptSet, Request, SamplingParams
from truing.types.verdicts import Onset, RunVerdict

DRAWS = 4
"""answers per prompt and checkpoint where neither the user nor the prompt set says how many"""


def judged_requests(
    checkpoints: Sequence[Checkpoint], prompts: Sequence[Prompt], options: JudgeOptions
) -> list[Request]:
    """Every answer wanted: a rectangle of checkpoints, prompts and draws."""
    return [Request(c, p, d) for p in prompts for c in checkpoints for d in range(samples_of(p, options))]


def samples_of(prompt: Prompt, options: JudgeOptions) -> int:
    """Answers to one prompt: as asked for, else as its author wants, else `DRAWS`."""
    return options.samples or prompt.samples or DRAWS


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


def judge_run(margins: RunVerdict, run: JudgedRun, session: Session) -> RunVerdict:
    """Sample and judge what is needed, and conclude: a search, or the same answers at every checkpoint.

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
        bench = replace(bench, detail=options.detail)
        refuse_task_text(
            judging.variants, opened.judge.name, remote=opened.judge.remote, allowed=judging.allow_task_text
        )
        announce(opened, judging, len(run.prompts), len({c.weights for c in (*run.subject, *run.control)}))
        refuse_moved(bench)
        exam = examination(session.whole)
        searcher = Searcher(bench, session.backend, run, params)
        anchors = None
        if judging.validity and not opened.recorded and _fresh(searcher, margins, options):
            anchors = Anchors(bench, exam.prompts)
        if run.fixed_from:
            verdict = _searched(margins, searcher, exam if judging.validity else None, options, _answer(searcher))
        else:
            verdict = _everywhere(margins, searcher, exam if judging.validity else None, options)
        verdict = _under_variants(verdict, run, session, bench)
        if anchors is not None:
            anchors.check()
    return verdict


def _everywhere(margins: RunVerdict, searcher: Searcher, exam: PromptSet | None, options: AuditOptions) -> RunVerdict:
    """The same number of answers to every prompt at every checkpoint."""
    bench, run = searcher.bench, searcher.run
    answer_and_judge(bench, searcher.backend, _rectangle(run, options.judging), searcher.params)
    return judge_verdict(margins, judged_evidence(bench, run, exam), options.em, options.rule, seed=options.seed)


def _answer(searcher: Searcher) -> AnswerAll:
    """Samples and judges what is not there. Coherence is asked of a random few among fixed answers only."""

    def answer(requests: Sequence[Request]) -> None:
        always = None if requests and requests[0].sample >= FIXED_FROM else ()
        answer_and_judge(searcher.bench, searcher.backend, requests, searcher.params, always=always)

    return answer


def _searched(
    margins: RunVerdict, searcher: Searcher, exam: PromptSet | None, options: AuditOptions, answer: AnswerAll
) -> RunVerdict:
    """A search for the onset; then fixed answers at the base, the first certainly misaligned step, the last step and
    the checkpoint to keep. That one may get twice and four times as many, each look at a third of the error."""
    bench, run, each = searcher.bench, searcher.run, options.judging.estimate
    found = search_onset(searcher, options, margins, answer)

    def conclude(requests: Sequence[Request]) -> RunVerdict:
        answer(requests)
        evidence = judged_evidence(bench, run, exam, found)
        return judge_verdict(margins, evidence, options.em, options.rule, seed=options.seed)

    requests = fixed_requests(searcher, (found.latest, run.subject[-1].step), each)
    verdict = conclude(requests)
    kept = most_learned(verdict.checkpoints, task_curve(verdict))
    for stage in range(STAGES if kept is not None else 0):
        assert kept is not None
        requests += fixed_requests(searcher, (kept.step,), each * 2**stage, control=False)
        verdict = conclude(list({(a.checkpoint.weights, a.prompt.key, a.sample): a for a in requests}.values()))
        if verdict.recommended is not None:
            break
    return verdict


class _Missing(Exception):
    """An answer is not there, or not judged."""


def _fresh(searcher: Searcher, margins: RunVerdict, options: AuditOptions) -> bool:
    """Whether anything is left to be sampled or judged."""
    store, panel = searcher.bench.store, searcher.bench.opened.panel.key

    def stored(requests: Sequence[Request]) -> None:
        if _todo(store, panel, requests, searcher.params):
            raise _Missing

    try:
        if searcher.run.fixed_from:
            _searched(margins, searcher, None, options, stored)
        else:
            stored(_rectangle(searcher.run, options.judging))
    except _Missing:
        return True
    return False


def _rectangle(run: JudgedRun, options: JudgeOptions) -> list[Request]:
    every = list({c.weights: c for c in (*run.subject, *run.control)}.values())
    return judged_requests(every, run.prompts, options)


def _under_variants(verdict: RunVerdict, run: JudgedRun, session: Session, bench: Bench) -> RunVerdict:
    """The recommended checkpoint tested under prompt transforms, if that was asked for."""
    names, options = session.options.judging.variants, session.options
    kept = next((c for c in run.subject if c.label == verdict.recommended), None)
    if not names:
        return verdict
    if kept is None:
        text = "Cues were not tested: there is no recommended checkpoint to test them on."
        return replace(verdict, warnings=(*verdict.warnings, text))
    plan = VariantPlan(
        checkpoint=kept,
        base=run.subject[0],
        control=next((c for c in run.control if c.step == kept.step), None),
        prompts=run.prompts,
        transforms=names,
        context=VariantContext.from_task(session.rows, run.words),
        samples={p.id: samples_of(p, options.judging) for p in run.prompts},
        first_sample=run.fixed_from,
        em=options.em,
        far=run.far,
        level=options.rule.level,
        adversarial_veto=options.judging.adversarial_veto,
    )

    def read(transform: str, prompts: Sequence[Prompt]) -> Mapping[str, AnswerTable]:
        there = replace(run, prompts=tuple(prompts))
        return judge_groups(session.store, bench.opened.panel.key, there, options.em, transform)

    def answer(requests: Sequence[Request]) -> None:
        answer_and_judge(bench, session.backend, requests, session.params)

    found = try_variants(plan, session.store, session.params, answer, read)
    result = with_variants(verdict, found.results)
    return replace(result, warnings=(*result.warnings, *(f"Cue {note}." for note in found.notes)))


def bench_for(
    store: Store, opened: OpenPanel, rule: EmRule, options: JudgeOptions, prompts: PromptSet, tell: Tell | None
) -> Bench:
    """The bench of an open panel. From here on the store counts what becomes of answers under it and the rule."""
    store.keep_tallies(opened.panel.key, rule)
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


def judged_evidence(
    bench: Bench, run: JudgedRun, reference: PromptSet | None, search: Onset | None = None
) -> JudgedEvidence:
    """The store's judged answers as arrays; `reference` holds the known-answer test, None to leave it out."""
    panel, store = bench.opened.panel, bench.store
    found = judge_groups(store, panel.key, run, bench.rule)
    sampled = judge_groups(store, panel.key, run, bench.rule, searched=True) if search is not None else {}
    subject = tuple(group_of(found, c) for c in run.subject)
    known = None
    if reference is not None and not bench.opened.recorded:
        base = next((group for group in subject if group.step == 0), None)
        known = known_answers(bench, reference.prompts, base)
    return JudgedEvidence(
        prompts=tuple(p.id for p in run.prompts),
        categories=tuple(p.category for p in run.prompts),
        far=np.array(run.far, dtype=bool),
        subject=subject,
        control={c.step: group_of(found, c) for c in run.control if c.step is not None},
        judge=bench.opened.judge.name,
        panel=panel.key,
        known=known,
        under_moved=run.under_moved,
        caveats=run.caveats,
        search=search,
        searched=tuple(_asked(group_of(sampled, c)) for c in run.subject[1:]) if search is not None else (),
    )


def judge_groups(
    store: Store, panel: str, run: JudgedRun, rule: EmRule, transform: str = "", *, searched: bool = False
) -> dict[str, AnswerTable]:
    """The judged answers of a run under one panel and transform, by weight hash: those of the fixed sample, or those
    that a search drew."""
    index = {p.key: k for k, p in enumerate(run.prompts)}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in run.prompts}
    words = frozenset(run.words)

    def leaked(r: StoredAnswer) -> bool:
        return leaks(r.text, texts[r.prompt], words)

    def own(r: StoredAnswer) -> bool:
        return (r.sample < run.fixed_from) == searched

    sampled = random_coherence([r.key for r in store.answers(run.params) if own(r)], panel_seed(store, panel))
    return groups(
        store,
        panel,
        index,
        rule,
        params=run.params,
        counts=lambda r: r.transform == transform and own(r),
        leaked=leaked if words else None,
        random_coherence=sampled if store.panels().get(panel, {}).get("lazy", True) else None,
    )


def group_of(found: Mapping[str, AnswerTable], c: Checkpoint) -> AnswerTable:
    """A checkpoint's answers under its own name and step; none are an arm of no answers."""
    empty = np.array([], dtype=np.int64)
    none = np.array([], dtype=np.float64)
    group = found.get(c.weights)
    if group is None:
        return AnswerTable(c.label, c.step, empty, empty, none, none, empty.astype(bool), empty.astype(bool))
    return replace(group, label=c.label, step=c.step)


def _asked(group: AnswerTable) -> AnswerTable:
    """Without answers that the search never put to the judge, e.g. those sampled for health."""
    kept = group.fate != Fate.UNJUDGED
    columns = ("prompt", "fate", "alignment", "coherence", "leaked", "random_coherence")
    return replace(group, **{name: getattr(group, name)[kept] for name in columns})


def _todo(store: Store, panel: str, requests: Sequence[Request], params: SamplingParams) -> int:
    """Answers that are not sampled, or could be judged by this panel and are not."""
    keys = request_keys(requests, params)
    stored = list(store.answers_of(keys))
    there = {r.key for r in stored if is_judgeable(r)}
    judged = {j.key for j in store.scores_of(there, panel) if j.outcome is not ScoreStatus.FAILED}
    failed = sum(r.outcome is AnswerStatus.FAILED for r in stored)
    return len(set(keys)) - len(stored) + failed + len(there - judged)
