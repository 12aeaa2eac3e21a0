"""The stages in which an audit collects labelled answers: fixed samples or a search, confirmation, variants, a second
judge.

    stage(evidence, verdict so far) -> requests -> collect -> evidence

Each stage leaves its answers in the store; what they say is read from there, so that a repeat, or another judge, reads
the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from truing.data.transforms import VariantContext
from truing.runs.calibrate import DriftCheck, calibrated, refuse_moved
from truing.runs.certify import second_opinion
from truing.runs.checks import refuse_task_text
from truing.runs.collect import Labeller, collect, request_keys
from truing.runs.judges import LabelSpec, announce, calibration_set, open_labeller
from truing.runs.run import Run
from truing.runs.scope import Scope, samples_of
from truing.runs.search import SearchRequests, fixed_requests, new_search, outcomes_of, run_search
from truing.runs.tables import labelled_of
from truing.runs.throughput import Meter
from truing.runs.variants import VariantPlan, try_variants
from truing.stats.decide import most_learned, task_curve
from truing.stats.onset import OnsetSearch
from truing.stats.samples import Outcome, SampleRequest
from truing.stats.sequential_base import STAGES
from truing.stats.table import Evidence, Labelled
from truing.types.records import Checkpoint, PromptSet, Request
from truing.types.traits import Reason
from truing.types.verdicts import Finding, Onset, Verdict

StageFunction = Callable[[Evidence, Verdict], Evidence]


@contextmanager
def open_stages(run: Run, scope: Scope) -> Iterator["Stages"]:
    """The judge opened, its drift checked from the first real call to the last.

    Raises:
        BadInput: the judge cannot be used. Unfinished: it is down, its budget is spent, or it moved while it judged.
    """
    plan, config = run.plan, run.plan.config
    spec = LabelSpec(plan.trait, scope.rule, plan.whole)
    with open_labeller(config.judge, run.store, config, spec, run.progress, budget=run.budget) as labeller:
        judge = labeller.model
        refuse_task_text(config.variants, judge.name, remote=judge.remote, allowed=config.allow_task_text)
        announce(labeller, len(scope.prompts), len(scope.every), task_text=config.allow_task_text)
        refuse_moved(labeller)
        stages = Stages(run, labeller, scope, calibration_set(spec))
        yield stages
        if stages.drift is not None:
            stages.drift.check()


@dataclass(slots=True)
class Stages:
    """The stages of one audit, and what they work with."""

    run: Run
    """backend, store, options"""
    labeller: Labeller
    """judge and rule"""
    scope: Scope
    """which answers count"""
    exam: PromptSet
    """prompts whose reference answers calibrate the judge"""
    drift: DriftCheck | None = None
    """reference answers scored before the first real call and after the last; None before the first"""

    def order(self) -> Iterator[StageFunction]:
        """The stages, in their order."""
        if self.scope.searched:
            yield self.search
            yield self.confirm_first
            for look in range(STAGES):
                yield lambda evidence, verdict, look=look: self.confirm(evidence, verdict, look)
        else:
            yield self.fixed
        if self.run.plan.config.variants:
            yield self.variants
        if self.run.plan.config.second_judge is not None:
            yield self.second_judge

    def fixed(self, evidence: Evidence, verdict: Verdict) -> Evidence:
        """The same number of answers to every prompt at every checkpoint."""
        n, scope = self.run.plan.config.samples, self.scope
        numbers = {p.key: range(scope.first, scope.first + samples_of(p, n)) for p in scope.prompts}
        self._collect([Request(c, p, d) for p in scope.prompts for c in scope.every for d in numbers[p.key]])
        return replace(evidence, labelled=self._labelled(None))

    def search(self, evidence: Evidence, verdict: Verdict) -> Evidence:
        """The onset over the later checkpoints, on prompts far from the training domain.

        What is read depends on the seed and the outcomes alone. The screen's onset is where the search begins.

        Raises:
            Unfinished: most answers fail; what was labelled is stored.
        """
        search, used = new_search(self.scope, self.run.plan.config, verdict), 0
        asked = SearchRequests(self.scope)

        def outcomes(samples: Sequence[SampleRequest]) -> list[Outcome | float]:
            nonlocal used
            requests = asked.of(samples)
            self._prefetch(requests, asked, search)
            self._collect(requests, read_by_search=True)
            used += len(samples)
            self.run.progress.step("search", used, used)
            return outcomes_of(self.run.store, self.labeller.key, self.scope, self.run.params, requests)

        return replace(evidence, labelled=self._labelled(run_search(search, outcomes)))

    def confirm_first(self, evidence: Evidence, verdict: Verdict) -> Evidence:
        """Fixed answers at the base, the first step certified above, and the last step."""
        self._confirm(self._onset(evidence), None, 0)
        return replace(evidence, labelled=self._labelled(self._onset(evidence)))

    def confirm(self, evidence: Evidence, verdict: Verdict, look: int) -> Evidence:
        """Fixed answers at the checkpoint to keep: up to four times as many; each look spends a third of the error."""
        kept = self._to_keep(verdict)
        if verdict.recommended is not None or kept is None:
            return evidence
        self._confirm(self._onset(evidence), kept, look)
        return replace(evidence, labelled=self._labelled(self._onset(evidence)))

    def variants(self, evidence: Evidence, verdict: Verdict) -> Evidence:
        """The recommended checkpoint under prompt variants."""
        scope, config = self.scope, self.run.plan.config
        kept = next((c for c in scope.subject if c.label == verdict.recommended), None)
        if kept is None:
            why = "there is no recommended checkpoint to test them on"
            return self._with(evidence, [Finding("variants_untried", {"why": why})])
        samples = {p.id: samples_of(p, config.samples) for p in scope.prompts}
        plan = VariantPlan(kept, scope, samples, self.labeller, self.run.params, self._collect)
        context = VariantContext.from_task(self.run.plan.rows, scope.words)
        tests, notes = try_variants(plan, config.variants, context)
        evidence = replace(evidence, variants=tests, adversarial_veto=config.adversarial_veto)
        return self._with(evidence, [Finding("note", {"text": f"Variant {note}."}) for note in notes])

    def second_judge(self, evidence: Evidence, verdict: Verdict) -> Evidence:
        """A judge of another family on what the verdict rests on."""
        return replace(evidence, opinion=second_opinion(verdict, self.run, self.scope))

    # -- the parts that stages share ----------------------------------------------------------------------------------

    def _collect(self, requests: Sequence[Request], *, read_by_search: bool = False) -> None:
        """Answered, scored and labelled. Before the first call that costs anything the drift check begins."""
        if self.drift is None and self._calibrates and self._missing(requests):
            self.drift = DriftCheck(self.labeller, self.exam.prompts)
        # Coherence is asked of a random few among fixed answers only: what a search reads says nothing of health.
        always = () if read_by_search else None
        collect(self.labeller, self.run.backend, requests, self.run.params, always=always)

    def _prefetch(self, requests: Sequence[Request], asked: SearchRequests, search: OnsetSearch) -> None:
        """Sample what is missing, and in the same batch what the search may want next: a large batch costs little more.

        Such answers are stored and count as sampled; they are scored and read only if the search gets there.
        """
        run = self.run
        missing = run.store.missing(requests, run.params)
        room = run.backend.preferred_batch - len(requests) if missing else 0
        if room <= 0:
            return
        ahead = run.store.missing(asked.of(search.ahead(room)), run.params)
        meter = Meter(run.backend, len(missing) + len(ahead), run.progress, longest=run.params.max_tokens)
        with closing(meter.of(run.backend.sample([*missing, *ahead], run.params))) as answers:
            for answer in answers:
                run.store.add_answers([answer], run.params)

    @property
    def _calibrates(self) -> bool:
        """Whether reference answers are put to the judge; not to a record, nor to a deterministic scorer."""
        return not self.run.plan.config.skip_calibration and not self.labeller.recorded

    def _missing(self, requests: Sequence[Request]) -> bool:
        """Whether any of these would be sampled or scored."""
        keys = request_keys(requests, self.run.params)
        labels = self.run.store.labels_of(keys, self.labeller.key, self.labeller.rule)
        return any(k not in labels or labels[k].reason in (Reason.UNSCORED, Reason.FAILED) for k in keys)

    def _labelled(self, onset: Onset | None) -> Labelled:
        """What the store holds by now."""
        found = labelled_of(self.run.store, self.labeller.key, self.scope, None, onset)
        return calibrated(found, self.labeller, self.exam.prompts) if self._calibrates else found

    def _confirm(self, onset: Onset, kept: Checkpoint | None, look: int) -> None:
        each, scope = self.run.plan.config.estimate, self.scope
        requests = fixed_requests(scope, (onset.latest, scope.subject[-1].step), each)
        if kept is not None:
            requests += fixed_requests(scope, (kept.step,), each * 2**look, control=False)
        self._collect(list({(r.checkpoint.weights, r.prompt.key, r.sample): r for r in requests}.values()))

    def _onset(self, evidence: Evidence) -> Onset:
        assert evidence.labelled is not None and evidence.labelled.search is not None
        return evidence.labelled.search

    def _to_keep(self, verdict: Verdict) -> Checkpoint | None:
        """The checkpoint that would be recommended if fixed answers confirmed it."""
        line = most_learned(verdict.checkpoints, task_curve(verdict.convergence_skill, verdict.convergence_loss))
        return next((c for c in self.scope.subject if line is not None and c.label == line.label), None)

    def _with(self, evidence: Evidence, findings: Sequence[Finding]) -> Evidence:
        assert evidence.labelled is not None
        self.scope = replace(self.scope, findings=(*self.scope.findings, *findings))
        return replace(evidence, labelled=replace(evidence.labelled, findings=self.scope.findings))
