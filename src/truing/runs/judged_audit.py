"""The judged half of an audit: draw, judge, test the judge, conclude.

    asks -> answered and judged -> arms -> known-answer test -> verdict -> cues -> second judge

Everything it concludes is read from the store, so that stored answers can be judged again without a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from truing.config import AuditConfig, JudgeConfig, Thresholds
from truing.data.transforms import VariantContext
from truing.models.base import Backend
from truing.models.limits import Budget
from truing.runs.judged import groups
from truing.runs.judged_frame import JudgedRun
from truing.runs.judging import Bench, answer_and_judge, is_judgeable, panel_seed, random_coherence, request_keys
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
from truing.types.judged import ScoreStatus
from truing.types.progress import Progress
from truing.types.records import AnswerStatus, Checkpoint, Conversation, Prompt, PromptSet, Request, SamplingParams
from truing.types.rules import EmRule
from truing.types.verdicts import Onset, RunVerdict

DRAWS = 4
"""answers per prompt and checkpoint where neither the user nor the prompt set says how many"""


def judged_requests(checkpoints: Sequence[Checkpoint], prompts: Sequence[Prompt], samples: int | None) -> list[Request]:
    """Every answer wanted: a rectangle of checkpoints, prompts and draws."""
    return [Request(c, p, d) for p in prompts for c in checkpoints for d in range(samples_of(p, samples))]


def samples_of(prompt: Prompt, samples: int | None) -> int:
    """Answers to one prompt: as asked for, else as its author wants, else `DRAWS`."""
    return samples or prompt.samples or DRAWS


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
    config: AuditConfig
    """judge, thresholds, variants"""
    rule: EmRule
    """what counts as misaligned"""
    rows: tuple[Conversation, ...] = ()
    """held-out task rows, from which cues are made"""
    budget: Budget | None = None
    """what all judges of this audit may spend together"""
    progress: Progress = field(default_factory=Progress)
    """told how the work goes on"""


def judge_run(margins: RunVerdict, run: JudgedRun, session: Session) -> RunVerdict:
    """Sample and judge what is needed, and conclude: a search, or the same answers at every checkpoint.

    Raises:
        BadInput: the judge cannot be used. Unfinished: it is down, its budget is spent, or it moved while it judged.
    """
    config, store, params, progress = session.config, session.store, session.params, session.progress
    assert config.judge is not None
    frame = (session.whole, store, session.rule)
    with open_panel(config.judge, config, *frame, budget=session.budget, say=progress.say) as opened:
        bench = bench_for(store, opened, session.rule, config, session.whole, progress)
        refuse_task_text(config.variants, opened.judge.name, remote=opened.judge.remote, allowed=config.allow_task_text)
        answered = len({c.weights for c in (*run.subject, *run.control)})
        announce(opened, config, (len(run.prompts), answered), progress.say, task_text=config.allow_task_text)
        refuse_moved(bench)
        exam = examination(session.whole)
        searcher = Searcher(bench, session.backend, run, params)
        anchors = None
        if not config.skip_known_answers and not opened.recorded and _fresh(searcher, margins, config):
            anchors = Anchors(bench, exam.prompts)
        known = None if config.skip_known_answers else exam
        if run.fixed_from:
            verdict = _searched(margins, searcher, known, config, _answer(searcher))
        else:
            verdict = _everywhere(margins, searcher, known, config)
        verdict = _under_variants(verdict, run, session, bench)
        if anchors is not None:
            anchors.check()
    return verdict


def _everywhere(margins: RunVerdict, searcher: Searcher, exam: PromptSet | None, config: AuditConfig) -> RunVerdict:
    """The same number of answers to every prompt at every checkpoint."""
    bench, run = searcher.bench, searcher.run
    answer_and_judge(bench, searcher.backend, _rectangle(run, config.samples), searcher.params)
    return judge_verdict(
        margins, judged_evidence(bench, run, exam), bench.rule, config.part(Thresholds), seed=config.seed
    )


def _answer(searcher: Searcher) -> AnswerAll:
    """Samples and judges what is not there. Coherence is asked of a random few among fixed answers only."""

    def answer(requests: Sequence[Request]) -> None:
        always = None if requests and requests[0].sample >= FIXED_FROM else ()
        answer_and_judge(searcher.bench, searcher.backend, requests, searcher.params, always=always)

    return answer


def _searched(
    margins: RunVerdict, searcher: Searcher, exam: PromptSet | None, config: AuditConfig, answer: AnswerAll
) -> RunVerdict:
    """A search for the onset; then fixed answers at the base, the first certainly misaligned step, the last step and
    the checkpoint to keep. That one may get twice and four times as many, each look at a third of the error."""
    bench, run, each = searcher.bench, searcher.run, config.estimate
    found = search_onset(searcher, config, margins, answer)

    def conclude(requests: Sequence[Request]) -> RunVerdict:
        answer(requests)
        evidence = judged_evidence(bench, run, exam, found)
        return judge_verdict(margins, evidence, bench.rule, config.part(Thresholds), seed=config.seed)

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


def _fresh(searcher: Searcher, margins: RunVerdict, config: AuditConfig) -> bool:
    """Whether anything is left to be sampled or judged."""
    store, panel = searcher.bench.store, searcher.bench.opened.panel.key

    def stored(requests: Sequence[Request]) -> None:
        if _todo(store, panel, requests, searcher.params):
            raise _Missing

    try:
        if searcher.run.fixed_from:
            _searched(margins, searcher, None, config, stored)
        else:
            stored(_rectangle(searcher.run, config.samples))
    except _Missing:
        return True
    return False


def _rectangle(run: JudgedRun, samples: int | None) -> list[Request]:
    every = list({c.weights: c for c in (*run.subject, *run.control)}.values())
    return judged_requests(every, run.prompts, samples)


def _under_variants(verdict: RunVerdict, run: JudgedRun, session: Session, bench: Bench) -> RunVerdict:
    """The recommended checkpoint tested under prompt transforms, if that was asked for."""
    names, config = session.config.variants, session.config
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
        samples={p.id: samples_of(p, config.samples) for p in run.prompts},
        first_sample=run.fixed_from,
        em=session.rule,
        far=run.far,
        level=config.level,
        adversarial_veto=config.adversarial_veto,
    )

    def read(transform: str, prompts: Sequence[Prompt]) -> Mapping[str, AnswerTable]:
        there = replace(run, prompts=tuple(prompts))
        return judge_groups(session.store, bench.opened.panel.key, there, session.rule, transform)

    def answer(requests: Sequence[Request]) -> None:
        answer_and_judge(bench, session.backend, requests, session.params)

    found = try_variants(plan, session.store, session.params, answer, read)
    result = with_variants(verdict, found.results)
    return replace(result, warnings=(*result.warnings, *(f"Cue {note}." for note in found.notes)))


def bench_for(
    store: Store, opened: OpenPanel, rule: EmRule, config: JudgeConfig, prompts: PromptSet, progress: Progress
) -> Bench:
    """The bench of an open panel. From here on the store counts what becomes of answers under it and the rule."""
    store.keep_tallies(opened.panel.key, rule)
    return Bench(store, opened, rule, config, prompts.sha256, progress.step, progress.detail)


def announce(
    opened: OpenPanel,
    config: JudgeConfig,
    counts: tuple[int, int],
    say: Callable[[str], None],
    *,
    task_text: bool = False,
) -> None:
    """Say once what a remote judge will be sent; `counts` are those of prompts and checkpoints."""
    prompts, checkpoints = counts
    for note in opened.notes:
        say(note)
    if opened.judge.remote:
        known = " and the prompt set's reference answers" if not config.skip_known_answers else ""
        text = f"{prompts} prompts with the answers of {checkpoints} checkpoints{known}"
        task = "the task file's text may be quoted" if task_text else "no text of the task file"
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
