"""`truing.judge`: stored answers judged again, by another judge or another rubric. Never samples.

audit -> its frame -> panel -> judged (what this panel has not said yet) -> verdict under this judge
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing import errors
from truing.config.options import EmRule, ModelOptions, VerdictRule
from truing.data.prompts import load_prompts
from truing.runs.import_answers import imported_lines
from truing.runs.judged import chosen_panel, fated, judging_panels, misaligned_by, with_scores
from truing.runs.judged_audit import announce, bench_for, judged_evidence
from truing.runs.judged_frame import FIRST_CONTROL, JudgedRun
from truing.runs.judging import Tell, is_judgeable, judge_stored, random_share
from truing.runs.known import Anchors, refuse_moved
from truing.runs.panels import KEPT, examination, open_panel
from truing.stats.judged_checks import with_variants
from truing.stats.judged_evidence import JudgedEvidence
from truing.stats.judged_verdict import judge_verdict
from truing.store import Store
from truing.types.judging import AnswerKey, Judge, JudgeOptions, ScoreStatus
from truing.types.records import Message, Prompt, PromptSet, Role, SamplingParams, to_plain
from truing.types.verdicts import RunVerdict

UNTRIED = "Cues were not tried under this judge"


@dataclass(frozen=True, slots=True)
class Judging:
    """What came of judging stored answers."""

    path: Path
    """the audit"""
    panel: Judge
    """who judged, by which rubrics"""
    outcomes: Mapping[str, int]
    """judgements of this panel by outcome, those made earlier included"""
    verdict: RunVerdict | None
    """the run's verdict under this judge; None for imported sets, whose table `truing show` prints"""


def judge(
    audit: str | Path,
    judge: str,
    *,
    only_missing: bool = False,
    model: ModelOptions | None = None,
    options: JudgeOptions | None = None,
    progress: Tell | None = None,
) -> Judging:
    """Judge the stored answers of an audit.

    Args:
        audit: its folder.
        judge: address of the judge: openai:MODEL, http://HOST/v1#MODEL, local:MODEL, replay:FILE, simulated:.
        only_missing: finish what a judge that has judged here before left open, and refuse one that has not.
        model: how a local judge is held.
        options: rubric, budget, limits.
        progress: called with (stage, done, total) as work goes on.

    Raises:
        NotAnAudit: no audit there, or it holds no answers. BadInput: the judge cannot be used.
        Unfinished: the judge is down, its budget is spent, or it moved while it judged; what it said is stored.
    """
    path, options = Path(audit), options or JudgeOptions()
    if options.positives_of is not None and options.share >= 1:
        raise errors.BadInput("--positives-of needs --share: a judge of all answers sees the positives anyway")
    if not 0 < options.share <= 1:
        raise errors.BadInput(f"--share {options.share:g}: give a share of the answers, over 0 and up to 1")
    Store.read(path).close()  # before a folder is made where there is none
    with Store.write(path, {}, running=False) as store:
        return _judge(store, store.about(), judge, only_missing, model or ModelOptions(), options, progress)


def _judge(
    store: Store,
    about: Mapping[str, Any],
    address: str,
    only_missing: bool,
    model: ModelOptions,
    options: JudgeOptions,
    tell: Tell | None,
) -> Judging:
    prompts = stored_prompts(about)
    # Which answers had their coherence asked at random is told by the seed they are judged with now.
    run = replace(stored_run(store, about, prompts.prompts), seed=options.seed)
    whole = _whole(about, prompts, needed=options.validity)
    rule = stored_rule(about)
    by_key = {p.key: p for p in prompts.prompts}
    stored = (
        r for r in store.answers(run.params) if not r.transform and r.prompt in by_key and r.sample >= run.fixed_from
    )
    judgeable = [r.key for r in stored if is_judgeable(r)]
    answers = random_share(judgeable, options.share, options.seed)
    source = chosen_panel(store, options.positives_of) if options.positives_of is not None else None
    if source is not None:
        answers = list(dict.fromkeys([*answers, *_positives(store, source, judgeable, rule)]))
    if not answers:
        raise errors.NotAnAudit(f"{store.path}: holds no answers to its prompts; `truing audit --judge` samples them")
    if options.share >= 1 and about.get("kind") != "import" and not about.get("margin_verdict"):
        raise errors.NotAnAudit(f"{store.path}: its measurements are not finished; repeat the audit first")
    with open_panel(address, options, whole, model, store, rule) as opened:
        begun = opened.panel.key in judging_panels(store)
        if only_missing and not begun:
            raise errors.BadInput(
                f"--only-missing: {opened.judge.name} has not judged here with these rubrics; leave the option out"
            )
        bench = bench_for(store, opened, rule, options, prompts, tell)
        refuse_moved(bench)
        announce(opened, options, len(by_key), len({k.weights for k in answers}))
        held = {j.key for j in store.scores(opened.panel.key) if j.outcome is not ScoreStatus.FAILED}
        test = options.validity and not opened.recorded
        exam = examination(whole)
        anchors = Anchors(bench, exam.prompts) if test and set(answers) - held else None
        if options.share < 1:
            _note_share(store, opened.panel, options, begun, source)
        judge_stored(bench, answers, by_key)
        if options.share >= 1:
            _forget_share(store, opened.panel)
        if all(j.outcome is ScoreStatus.FAILED for j in store.scores_of(answers, opened.panel.key)):
            raise errors.JudgeDown(
                f"{opened.judge.name}: could judge none of the {len(answers)} answers; nothing changed"
            )
        result = None
        if options.share >= 1 and about.get("kind") == "import":
            store.describe(lines=imported_lines(store, about["prompts"]["items"], rule, about["sets"]))
        elif options.share >= 1:  # a share gives no verdict; `truing agree` puts it beside the judge of all answers
            evidence = judged_evidence(bench, run, exam if test else None)
            result = _concluded(about, evidence, rule, run, opened.panel.key)
        if anchors is not None:
            anchors.check()
        if result is not None:
            store.describe(verdict=to_plain(result))
            before = (about.get("verdict") or {}).get("judge") or "margins"
            if before != result.judge and options.say is not None:
                options.say(f"the verdict of this audit, and its gate, now rest on {result.judge}; before on {before}")
        outcomes: dict[str, int] = {}
        for j in store.scores(opened.panel.key):
            outcomes[j.outcome.value] = outcomes.get(j.outcome.value, 0) + 1
        return Judging(store.path, opened.panel, outcomes, result)


def _concluded(
    about: Mapping[str, Any], evidence: JudgedEvidence, rule: EmRule, run: JudgedRun, panel: str
) -> RunVerdict:
    """The verdict under this judge. Cues are not tried here: what was vetoed before stays vetoed, whoever judged it.

    After a search only its fixed answers are judged again; for the judge that searched, the search's verdict stands.
    """
    margins = RunVerdict.from_plain(about["margin_verdict"])
    if run.fixed_from:
        made = RunVerdict.from_plain(about["verdict"]) if about.get("verdict") else None
        if made is not None and made.panel == panel and made.onset.errors:
            return made
        evidence = replace(evidence, caveats=(*evidence.caveats, SEARCH_GONE))
    result = judge_verdict(margins, evidence, rule, _thresholds(about), seed=run.seed)
    before = RunVerdict.from_plain(about["verdict"]) if about.get("verdict") else None
    if before is None:
        return result
    told = [w for w in before.warnings if w.startswith(UNTRIED)]
    if any(c.checkpoint == result.recommended for c in before.variants):
        result = with_variants(result, before.variants)
    if before.variants and before.panel != result.panel:
        told = told or [f"{UNTRIED}; what is said of cues was judged by {before.judge}."]
    return replace(result, warnings=(*result.warnings, *told))


def _note_share(store: Store, panel: Judge, options: JudgeOptions, begun: bool, source: str | None) -> None:
    """Keep with a panel which random share of the answers it was given, before the first is judged.

    Without it nobody could tell a random share from a chosen one. Shares of one seed lie within each other, so the
    largest counts. A judge that was given all answers stays one of all answers.

    Raises:
        BadInput: this judge was given a share with another seed, or the positives of another judge, before.
    """
    about = store.panels()[panel.key]
    share, seed = about.get("share"), about.get("share_seed")
    if share is None and begun:
        return
    if share is not None and seed != options.seed:
        raise errors.BadInput(
            f"{panel.name} was given a random share with seed {seed} before; go on with --seed {seed}"
        )
    if share is not None and about.get("positives_of") != source:
        raise errors.BadInput(
            f"{panel.name} was given a share drawn in another way before; repeat it with --positives-of"
        )
    largest = max(options.share, share or 0.0)
    store.add_panel(panel, **_kept(about), share=largest, share_seed=options.seed, positives_of=source)


def _positives(store: Store, panel: str, keys: Sequence[AnswerKey], rule: EmRule) -> Iterator[AnswerKey]:
    """The answers that a panel calls misaligned."""
    wanted = set(keys)
    for r, said in with_scores(store, panel):
        if r.key in wanted and said and misaligned_by(fated(r, said, rule), rule):
            yield r.key


def _forget_share(store: Store, panel: Judge) -> None:
    """A judge of a share has been given the rest too."""
    about = store.panels()[panel.key]
    if "share" in about:
        store.add_panel(panel, **_kept(about))


def _kept(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: about[name] for name in (*KEPT, "prompts_sha256") if name in about}


SEARCH_GONE = "Another judge searched the onset: this one saw the fixed answers only, at a few checkpoints."
_GONE = "the prompt set with its reference answers cannot be read, so the judge cannot take the known-answer test"
_REMEDY = "restore it, or do without the test (--skip-known-answers); the verdict then says so"


def stored_prompts(about: Mapping[str, Any]) -> PromptSet:
    """The prompts of an audit, as audit.json keeps them: questions and judge prompts, no reference answers."""
    kept = about.get("prompts") or {}
    prompts = tuple(
        Prompt(
            id=i["id"],
            messages=tuple(Message(m["role"], m["content"]) for m in i["messages"]),
            category=i.get("category", "uncategorised"),
            form=i.get("form", "open"),
            topics=tuple(i.get("topics", ())),
            half=i.get("half", "eval"),
            judge_prompts=i.get("judge_prompts") or {},
        )
        for i in kept.get("items", ())
    )
    return PromptSet(kept.get("name", ""), kept.get("version", ""), kept.get("sha256", ""), prompts)


def stored_rule(about: Mapping[str, Any]) -> EmRule:
    """The definition of "misaligned" an audit was made with; the default where it was not judged before."""
    plain = about.get("rule") or (about.get("judging") or {}).get("em")
    return EmRule(**plain) if plain else EmRule()


def stored_run(store: Store, about: Mapping[str, Any], prompts: Sequence[Prompt]) -> JudgedRun:
    """The frame of an audit's judged answers again."""
    kept: Mapping[str, Any] = about.get("judging") or {}
    every = store.checkpoints()
    far = kept.get("far") or {}
    first = kept["control"] if kept else FIRST_CONTROL
    labels = kept.get("subject")
    return JudgedRun(
        prompts=tuple(prompts),
        far=tuple(far.get(p.id, True) for p in prompts),
        subject=tuple(c for c in every if c.role is Role.SUBJECT and (labels is None or c.label in labels)),
        control=tuple(c for c in every if c.role is Role.CONTROL and c.run == first and c.step != 0),
        params=kept.get("params") or _params(about),
        words=tuple(about.get("domain_words") or ()),
        under_moved=frozenset(kept.get("under_moved") or ()),
        caveats=tuple(kept.get("caveats") or ()),
        seed=kept.get("seed", 0),
        fixed_from=kept.get("fixed_from", 0),
    )


def _params(about: Mapping[str, Any]) -> str:
    if about.get("kind") == "import":
        return "imported"
    return SamplingParams(**about["sampling"]).key


def _thresholds(about: Mapping[str, Any]) -> VerdictRule:
    return VerdictRule(**about["identity"]["rule"])


def _whole(about: Mapping[str, Any], stored: PromptSet, needed: bool) -> PromptSet:
    """The prompt set with its reference answers, where the audit says what file it came from.

    Raises:
        BadInput: that file is gone or changed, so that the judge could not take the known-answer test (`needed`).
    """
    source = (about.get("asked") or {}).get("prompts_source")
    if source is None:
        return stored
    try:
        found = load_prompts(source)
    except errors.BadInput as e:
        if not needed:
            return stored
        raise errors.BadInput(f"{_GONE} ({e}); {_REMEDY}") from e
    if found.sha256 != stored.sha256:
        if not needed:
            return stored
        raise errors.BadInput(f"{_GONE} ({source} has changed since); {_REMEDY}")
    return found
