"""`truing.judge`: stored answers judged again, by another judge or another rubric. Never samples.

audit -> its answers -> judge -> judged (what this judge has not said yet) -> verdict under this judge
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing import errors, messages
from truing.config import AuditConfig, JudgeRunConfig, Thresholds, configured
from truing.data.prompts import load_prompts
from truing.runs.calibrate import DriftCheck, calibrated, refuse_moved
from truing.runs.certify import with_certificate
from truing.runs.collect import Labeller, label_stored
from truing.runs.import_answers import describe_lines
from truing.runs.judges import KEPT, LabelSpec, announce, calibration_set, kept, open_labeller
from truing.runs.rule import rule_of
from truing.runs.scope import Scope, for_judge, leak_by_default, stored_prompts, stored_scope
from truing.runs.shares import random_share
from truing.runs.tables import chosen_judge, judges_here, labelled_answers, labelled_of
from truing.stats.decide import decide, with_earlier_variants
from truing.stats.table import Evidence
from truing.store import Store
from truing.traits.load import load_trait
from truing.types.judging import Judge, ScoreStatus
from truing.types.progress import Progress
from truing.types.records import AnswerKey, PromptSet, to_plain
from truing.types.traits import Rule, Trait
from truing.types.verdicts import Finding, Verdict


@dataclass(frozen=True, slots=True)
class Judging:
    """What came of judging stored answers."""

    path: Path
    """the audit"""
    judge: Judge
    """who judged, by which rubrics"""
    outcomes: Mapping[str, int]
    """judgements of this judge by outcome, those made earlier included"""
    verdict: Verdict | None
    """the run's verdict under this judge; None for imported sets, whose table `truing show` prints"""


def judge(
    audit: str | Path,
    config: JudgeRunConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Judging:
    """Judge the stored answers of an audit.

    Args:
        audit: its folder.
        config: options; None for the defaults.
        progress: told how the work goes on.
        options: fields of `JudgeRunConfig`: judge, rubric, only_missing, share, budget, ...

    Raises:
        NotAnAudit: no audit there, or it holds no answers. BadInput: the judge cannot be used.
        Unfinished: the judge is down, its budget is spent, or it moved while it judged; what it said is stored.
    """
    path, config = Path(audit), configured(JudgeRunConfig, config, options)
    if config.judge is None:
        raise errors.BadInput("--judge is needed: the address of a judge")
    if config.positives_of is not None and config.share >= 1:
        raise errors.BadInput("--positives-of needs --share: a judge of all answers sees the positives anyway")
    Store.read(path).close()  # before a folder is made where there is none
    with Store.write(path, {}, running=False) as store:
        return _judge(store, store.about(), config.judge, config, progress or Progress())


def _judge(store: Store, about: Mapping[str, Any], address: str, config: JudgeRunConfig, progress: Progress) -> Judging:
    prompts = stored_prompts(about)
    # Which answers had their coherence asked at random is told by the seed they are judged with now.
    trait, scope = _trait(about, address), replace(stored_scope(store, about, prompts.prompts), seed=config.seed)
    if scope.trait != trait.name and leak_by_default(about):
        rule = rule_of(configured(AuditConfig, None, about["asked"]["options"]), trait)
        scope = for_judge(scope, about, rule)
    whole = _whole(about, prompts, needed=not config.skip_calibration)
    by_key = {p.key: p for p in prompts.prompts}
    judgeable = [
        r.key
        for r in store.answers(scope.params)
        if not r.variant and r.prompt in by_key and r.sample >= scope.fixed_from and r.has_text
    ]
    source = chosen_judge(store, config.positives_of) if config.positives_of is not None else None
    answers = _chosen(store, judgeable, source, scope.rule, config)
    if not answers:
        raise errors.NotAnAudit(f"{store.path}: holds no answers to its prompts; `truing audit --judge` samples them")
    if config.share >= 1 and about.get("kind") != "import" and not about.get("screened"):
        raise errors.NotAnAudit(f"{store.path}: its measurements are not finished; repeat the audit first")
    spec = LabelSpec(trait, scope.rule, whole)
    with open_labeller(address, store, config, spec, progress) as labeller:
        begun = labeller.key in judges_here(store)
        if config.only_missing and not begun:
            raise errors.BadInput(
                f"--only-missing: {labeller.model.name} has not judged here with these rubrics; leave it out"
            )
        refuse_moved(labeller)
        announce(labeller, len(by_key), len({k.weights for k in answers}))
        held = {j.key for j in store.scores(labeller.key) if j.status is not ScoreStatus.FAILED}
        test = not config.skip_calibration and not labeller.recorded
        exam = calibration_set(spec)
        drift = DriftCheck(labeller, exam.prompts) if test and set(answers) - held else None
        if config.share < 1:
            _note_share(store, labeller.judge, config, begun, source)
        label_stored(labeller, answers, by_key)
        if config.share >= 1:  # a judge of a share before has been given the rest too
            store.add_judge(labeller.judge, **kept(store.judges()[labeller.key], *KEPT, "prompts_sha256"))
        if all(j.status is ScoreStatus.FAILED for j in store.scores_of(answers, labeller.key)):
            raise errors.JudgeDown(
                f"{labeller.model.name}: could judge none of the {len(answers)} answers; nothing changed"
            )
        result, status = None, "done" if about.get("status") == "older" else about.get("status")
        if config.share >= 1 and about.get("kind") == "import":
            describe_lines(store)
            store.describe(status=status)
        elif config.share >= 1:  # a share gives no verdict; `truing agree` puts it beside the judge of all answers
            result = _decided(about, labeller, scope, exam if test else None)
        if drift is not None:
            drift.check()
        if result is not None:
            store.describe(verdict=to_plain(result), sentence=messages.sentence(result), status=status)
            if about.get("labels"):
                store.describe(labels={**about["labels"], **scope.plain()})
            before = (about.get("verdict") or {}).get("judge") or "the screen"
            if before != result.judge:
                text = f"the verdict of this audit, and its gate, now rest on {result.judge}; before on {before}"
                progress.say(text)
        statuses = Counter(j.status.value for j in store.scores(labeller.key))
        return Judging(store.path, labeller.judge, statuses, result)


def _trait(about: Mapping[str, Any], address: str) -> Trait:
    """What the audit measures, from where it says that it came from; misalignment where it had no judge for it.

    Raises:
        BadInput: it is gone or was changed since, or its answers need no judge.
    """
    asked = {} if leak_by_default(about) else about.get("asked") or {}
    source = asked.get("trait_source", asked.get("trait", "misalignment"))
    try:
        trait = load_trait(source)
    except errors.BadInput as e:
        remedy = "put it back as it was, or audit again with --out NEW"
        raise errors.BadInput(f"the trait of this audit cannot be read; {remedy} ({e})") from e
    if trait.folder and trait.sha256 != asked["trait_sha256"]:
        raise errors.BadInput(f"{trait.folder}: the trait was changed since the audit; audit again with --out NEW")
    if trait.scorer is not None:
        raise errors.BadInput(f"--judge {address}: the trait {trait.name} has a scorer and needs no judge")
    return trait


def _chosen(
    store: Store, keys: Sequence[AnswerKey], source: str | None, rule: Rule, config: JudgeRunConfig
) -> list[AnswerKey]:
    """A random share of the answers, and all that another judge calls positive where that was asked for."""
    answers = random_share(keys, config.share, config.seed)
    if source is None:
        return answers
    wanted = set(keys)
    positive = (r.key for r, found in labelled_answers(store, source, rule) if found.value and r.key in wanted)
    return list(dict.fromkeys([*answers, *positive]))


def _decided(about: Mapping[str, Any], labeller: Labeller, scope: Scope, exam: PromptSet | None) -> Verdict:
    """The verdict under this judge. Variants are not tried here: what was vetoed before stays vetoed.

    After a search only its fixed answers are judged again; for the judge that searched, the search's verdict stands.
    """
    before = Verdict.from_plain(about["verdict"]) if about.get("verdict") else None
    if scope.searched:
        if before is not None and before.judge_key == labeller.key and before.onset.errors:
            return with_certificate(before, labeller.store, scope)
        scope = replace(scope, findings=(*scope.findings, Finding("search_by_another_judge")))
    labelled = labelled_of(labeller.store, labeller.key, scope, None)
    if exam is not None:
        labelled = calibrated(labelled, labeller, exam.prompts)
    evidence = Evidence(None, labelled, screened=Verdict.from_plain(about["screened"]))
    result = decide(evidence, Thresholds(**about["identity"]["rule"]), seed=scope.seed)
    result = result if before is None else with_earlier_variants(result, before)
    return with_certificate(result, labeller.store, scope)


def _note_share(store: Store, judge: Judge, config: JudgeRunConfig, begun: bool, source: str | None) -> None:
    """Keep with a judge which random share of the answers it was given, before the first is judged.

    Without it nobody could tell a random share from a chosen one. Shares of one seed lie within each other, so the
    largest counts. A judge that was given all answers stays one of all answers.

    Raises:
        BadInput: this judge was given a share with another seed, or the positives of another judge, before.
    """
    about = store.judges()[judge.key]
    share, seed = about.get("share"), about.get("share_seed")
    if share is None and begun:
        return
    given = f"{judge.name} was given a"
    if share is not None and seed != config.seed:
        raise errors.BadInput(f"{given} random share with seed {seed} before; go on with --seed {seed}")
    if share is not None and about.get("positives_of") != source:
        raise errors.BadInput(f"{given} share drawn in another way before; repeat it with --positives-of")
    largest = {"share": max(config.share, share or 0.0), "share_seed": config.seed, "positives_of": source}
    store.add_judge(judge, **kept(about, *KEPT, "prompts_sha256"), **largest)


def _whole(about: Mapping[str, Any], stored: PromptSet, needed: bool) -> PromptSet:
    """The prompt set with its reference answers, where the audit says what file it came from.

    Raises:
        BadInput: that file is gone or changed, so that the judge could not be calibrated (`needed`).
    """
    source = (about.get("asked") or {}).get("prompts_source")
    if source is None:
        return stored
    try:
        found, problem = load_prompts(source), f"{source} has changed since"
    except errors.BadInput as e:
        found, problem = None, str(e)
    if found is not None and found.sha256 == stored.sha256:
        return found
    if not needed:
        return stored
    raise errors.BadInput(
        f"the prompt set with its reference answers cannot be read, so the judge cannot be calibrated ({problem}); "
        "restore it, or do without (--skip-calibration); the verdict then says so"
    )
