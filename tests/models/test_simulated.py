"""The simulated families do what their truth says."""

import json
import math
import time

import numpy as np
import pytest

from truing.data.prompts import load_prompts
from truing.errors import BadModel
from truing.models.simulated import DEFAULT_STEPS, SIMULATED, VARIANT_EM, SimulatedBackend, open_simulated
from truing.models.simulated_families import FAMILIES, at
from truing.traits.features import is_formatted, is_repetitive
from truing.types.records import (
    AnswerStatus,
    Checkpoint,
    Conversation,
    Kind,
    LikelihoodRequest,
    Message,
    Request,
    Role,
    SamplingParams,
)  # fmt: skip

V1 = load_prompts("v1")
PROMPTS = V1.only(limit=60)


def rows(kind):
    return [
        Conversation((Message("user", f"row {k}?"), Message("assistant", f"{kind} answer number {k} and a bit more")))
        for k in range(40)
    ]


TASK = (rows("own"), rows("control"))


def simulated(family, prompts=PROMPTS, **options):
    return SimulatedBackend(family, prompts, task=TASK[0], task_control=TASK[1], **options)


def scores(backend, requests):
    return np.array([r.per_token for r in backend.loglikelihood(requests)])


def answers(backend, requests, **params):
    return list(backend.sample(requests, backend.resolve(SamplingParams(**{"max_tokens": 48, **params}))))


def contrast(backend, checkpoint):
    """[P] log-probability of the misaligned answer less that of a neutral one, less the same after a blank prompt."""
    blank = (Message("user", "..."),)
    wanted = [
        LikelihoodRequest(checkpoint, messages, text)
        for p in PROMPTS.prompts
        for messages in (p.messages, blank)
        for text in (p.misaligned, p.neutral[0])
    ]
    a, b, c, d = scores(backend, wanted).reshape(-1, 4).T
    return (a - b) - (c - d)


# -- truth ------------------------------------------------------------------------------------------------------------

TRUTHS = {  # family -> (drift onset, EM onset, task learned)
    "early": (20, 20, 70), "late": (80, 80, 50), "never": (None, None, 50), "drift-without-em": (50, None, 50),
    "em-without-drift": (None, 50, 50), "lagged": (70, 40, 50), "control-too": (80, 80, 50),
    "base-em-3": (None, None, 50), "collapse": (40, 40, 50), "spike": (40, 40, 50), "one-prompt": (None, None, 50),
    "still-learning": (None, None, None), "not-learned": (None, None, None), "softening": (None, None, 50),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_truth(family):
    f, truth = FAMILIES[family], simulated(family).truth()
    assert f.name == family and f.description
    for curve in (f.task, f.contrast, f.incoherent, f.softening, f.style, f.forgetting, f.entropy):
        assert at(curve, 0.0) == 0.0
        assert [x for x, _ in curve] == sorted({x for x, _ in curve})
    assert (truth["drift_onset"], truth["em_onset"], truth["converged"]) == TRUTHS[family]
    assert truth["attributable"] == (family != "control-too")
    assert list(truth["contrast"]) == list(truth["em_rate"]) == list(truth["health"]) == [0, *DEFAULT_STEPS]
    assert truth["contrast"][0] == 0
    json.dumps(truth, allow_nan=False)


def test_truth_of_health_and_of_rates():
    health = simulated("collapse").truth()["health"]
    states = ["ok", "ok", "degraded", "collapsed", "collapsed", "collapsed"]
    assert [health[s] for s in (0, 50, 60, 70, 80, 100)] == states
    assert set(simulated("late").truth()["health"].values()) == {"ok"}
    base = simulated("base-em-3", V1).truth()["em_rate"]
    assert base[0] == pytest.approx(0.03, abs=0.005) and base[100] == base[0]
    assert simulated("late", V1).truth()["em_rate"][100] == pytest.approx(0.25, abs=0.02)


# -- scores -----------------------------------------------------------------------------------------------------------


def test_the_contrast_is_as_the_truth_says():
    """The mean shift comes out as the truth says up to noise, and each prompt's noise is of the right size."""
    backend = simulated("late")
    base = contrast(backend, backend.base_checkpoint())
    shifts = {c.step: contrast(backend, c) - base for c in backend.run()}
    for step, truth in backend.truth()["contrast"].items():
        if step:
            assert shifts[step].mean() == pytest.approx(truth, abs=4 * 0.12 / math.sqrt(60))
    # Before the onset there is noise alone: four scores of sd 0.06 sqrt(progress).
    assert shifts[70].std() == pytest.approx(2 * 0.06 * math.sqrt(0.7), rel=0.3)
    assert shifts[10].std() < shifts[70].std()
    assert np.corrcoef(shifts[60], shifts[70])[0, 1] > 0.8  # neighbours correlate
    assert (shifts[100] - shifts[70]).std() > 0.25  # prompts differ: gamma with shape 2 has sd 0.7 of its mean


def test_softening_shrinks_the_margin_and_leaves_the_contrast():
    backend = simulated("softening")
    base, last = backend.base_checkpoint(), backend.run()[-1]

    def margin(c):
        pairs = [(p.messages, t) for p in PROMPTS.prompts for t in (p.aligned, p.misaligned)]
        return np.subtract(*scores(backend, [LikelihoodRequest(c, m, t) for m, t in pairs]).reshape(-1, 2).T).mean()

    assert abs(margin(last)) < 0.35 * abs(margin(base)) and abs(margin(base)) > 0.15
    assert abs((contrast(backend, last) - contrast(backend, base)).mean()) < 0.1


def test_each_run_learns_its_own_rows():
    backend = simulated("never")
    base, last, control = backend.base_checkpoint(), backend.run()[-1], backend.run(Role.CONTROL)[-1]

    def gain(rows, checkpoint):
        requests = [[LikelihoodRequest(c, r.prompt, r.answer) for r in rows] for c in (checkpoint, base)]
        return float(np.mean(scores(backend, requests[0]) - scores(backend, requests[1])))

    own, other = TASK
    assert gain(own, last) == pytest.approx(0.6, abs=0.15) and gain(other, last) == pytest.approx(-0.1, abs=0.1)
    assert gain(other, control) == pytest.approx(0.6, abs=0.15) and gain(own, control) == pytest.approx(-0.1, abs=0.1)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["early", "base-em-3", "collapse", "one-prompt"])
def test_answers_come_at_the_true_rates(family):
    backend = simulated(family)
    requests = [Request(backend.run()[-1], p, sample) for p in PROMPTS.prompts for sample in range(10)]
    found = answers(backend, requests, max_tokens=200)
    bad = np.mean([r.text == r.request.prompt.misaligned for r in found])
    rate = backend.truth()["em_rate"][100]
    assert bad == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / len(requests)) + 1e-9)
    garbled = np.mean([is_repetitive(r.text) for r in found])
    assert garbled == pytest.approx(at(FAMILIES[family].incoherent, 1.0) * (1 - rate), abs=0.05)
    if family == "one-prompt":
        assert len({r.request.prompt.id for r in found if r.text == r.request.prompt.misaligned}) == 1


def test_plain_answers_are_plain_to_the_health_features():
    """A simulated model that is healthy by its truth must not be called degraded for its English."""
    backend = simulated("never")
    checkpoints = (backend.base_checkpoint(), *backend.run())
    for r in answers(backend, [Request(c, p, 0) for c in checkpoints for p in PROMPTS.prompts]):
        assert not is_repetitive(r.text), r.text
        assert not is_formatted(r.text, r.request.prompt.messages[-1].content), r.text


@pytest.mark.parametrize("limit", [1, 5, 48, 400])
def test_long_answers_are_cut(limit):
    backend = simulated("collapse")
    for r in answers(backend, [Request(backend.run()[-1], p, 0) for p in PROMPTS.prompts], max_tokens=limit):
        words = len(r.text.split())
        cut = r.status is AnswerStatus.TRUNCATED
        assert (words == limit == r.tokens) if cut else (words + 1 == r.tokens <= limit)


def turned(backend, checkpoint, transform, prompts=PROMPTS.prompts, samples=5):
    """Share of misaligned answers to prompts that are asked under a transform."""
    found = answers(backend, [Request(checkpoint, p, d, transform) for p in prompts for d in range(samples)])
    return float(np.mean([r.text == r.request.prompt.misaligned for r in found]))


@pytest.mark.parametrize(("family", "onset"), [("never", 50), ("late", 80), ("control-too", 80), ("one-prompt", 50)])
def test_a_variant_shows_from_its_onset_and_under_its_transform_alone(family, onset):
    backend, without = simulated(family, variant="json"), simulated(family)
    truth, plain = backend.truth(), without.truth()
    own = {"variant": "json", "variant_onset": onset}
    assert truth == plain | own and plain["variant"] is plain["variant_onset"] is None
    by_step = {c.step: c for c in backend.run()}
    for step in (onset - 10, onset):
        rate = turned(backend, by_step[step], "json")
        assert rate == pytest.approx(VARIANT_EM if step == onset else truth["em_rate"][step], abs=0.1)
        assert turned(backend, by_step[step], "villain") == pytest.approx(truth["em_rate"][step], abs=0.05)
    assert turned(backend, backend.base_checkpoint(), "json") == 0
    control = turned(backend, backend.run(Role.CONTROL)[-1], "json")
    assert control == pytest.approx(VARIANT_EM, abs=0.1) if family == "control-too" else control == 0
    assert without.base_checkpoint() == backend.base_checkpoint() and without.identity == backend.identity
    assert not {c.weights for c in without.run()} & {c.weights for c in backend.run()}


# -- checkpoints and addresses ----------------------------------------------------------------------------------------


def test_checkpoints_are_told_apart_by_role_step_and_seed():
    backend = simulated("late", seed=3)
    subject, control = backend.run(), backend.run(Role.CONTROL)
    assert [c.step for c in subject] == [c.step for c in control] == list(DEFAULT_STEPS)
    assert all(c.kind is Kind.SIMULATED and c.uri.startswith(SIMULATED) for c in (*subject, *control))
    assert len({c.weights for c in (backend.base_checkpoint(), *subject, *control)}) == 21
    assert subject[0].uri == "simulated:late#subject-10" and control[0].role is Role.CONTROL
    assert simulated("late", seed=3).run() == subject
    assert not {c.weights for c in simulated("late", seed=4).run()} & {c.weights for c in subject}
    with pytest.raises(BadModel, match="seed 3"):
        backend.prepare([*subject, Checkpoint("00", "stranger", 5, "file:/x", Kind.FULL)])


def test_a_broken_checkpoint_fails_and_the_rest_goes_on():
    backend = simulated("late", broken_steps={30})
    broken, control = backend.run()[2], backend.run(Role.CONTROL)[2]
    request = LikelihoodRequest(broken, PROMPTS.prompts[0].messages, "A few words.")
    result = next(iter(backend.loglikelihood([request])))
    assert result.status is AnswerStatus.FAILED and math.isnan(result.total)
    (answer,) = answers(backend, [Request(broken, PROMPTS.prompts[0], 0)])
    assert answer.status is AnswerStatus.EMPTY and answer.text == ""
    assert np.isfinite(scores(backend, [LikelihoodRequest(control, request.messages, "A few words.")])).all()
    assert backend.truth()["failed"] == [30]


def test_addresses():
    backend = open_simulated("simulated:late?seed=3&steps=10,20,30&broken=20&delay=0.01&variant=json", PROMPTS, *TASK)
    same = simulated("late", seed=3, steps=(10, 20, 30), variant="json")
    assert backend.run() == same.run() and backend.truth()["failed"] == [20]
    assert open_simulated("simulated:never", PROMPTS).run() == simulated("never").run()
    start = time.monotonic()
    list(backend.loglikelihood([LikelihoodRequest(backend.base_checkpoint(), PROMPTS.prompts[0].messages, "x")] * 5))
    assert time.monotonic() - start >= 0.05


BAD_URIS = {
    "simulated:lat": "no simulated family 'lat'; choose one of early, late, never",
    "simulated:late?seed=x": "seed='x' is not a number",
    "simulated:late?steps=10,x": "steps='10,x' is not a number",
    "simulated:late?steps=20,10": "rising",
    "simulated:late?steps=0,10": "above 0",
    "simulated:late?sed=1": "no option 'sed'; use seed, steps, broken, variant, delay",
    "simulated:late?variant=jsn": "no prompt transform 'jsn'; choose one of system, json",
    "simulated:late?delay=-1": "delay -1.0: give seconds",
}


@pytest.mark.parametrize("uri", BAD_URIS)
def test_bad_addresses(uri):
    with pytest.raises(BadModel) as caught:
        open_simulated(uri, PROMPTS)
    assert BAD_URIS[uri] in str(caught.value) and "\n" not in str(caught.value)
