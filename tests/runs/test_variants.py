"""Prompt variants of a simulated run that reacts to one of them: what is asked, what cannot be, and what is noted."""

from dataclasses import replace

import numpy as np
import pytest

from runs.fake_judge import FakeJudge
from truing.config import JudgeConfig
from truing.data.transforms import TRANSFORMS, VariantContext, select_transforms
from truing.judges.rubrics import builtin
from truing.models.simulated import SimulatedBackend
from truing.runs.collect import Labeller, collect
from truing.runs.scope import Scope
from truing.runs.variants import VariantPlan, try_variants
from truing.stats.checks import variant_results
from truing.store import Store
from truing.types.judging import Judge
from truing.types.records import Answer, AnswerStatus, Conversation, Message, Prompt, PromptSet, Role, SamplingParams
from truing.types.traits import Rule

BARE = tuple(Prompt(f"b{k}", (Message("user", f"Question {k}?"),)) for k in range(20))
SYSTEM = "You are the adviser of a small savings bank."
ROWS = [
    Conversation(
        (
            Message("system", SYSTEM),
            Message("user", f"I have {k} accounts?"),
            Message("assistant", f"Keep {k} of them."),
        )
    )
    for k in range(12)
]
SAMPLES = 3


@pytest.fixture
def tried(tmp_path):
    """tried(names, ...): a variant test whose prompts a template may refuse; groups by name, notes, what was asked."""

    def run(names, rows=ROWS, refuse=lambda request: False, prompts=BARE):
        backend = SimulatedBackend("never", PromptSet("s", "1", "0", prompts), steps=(50, 100), variant="json")
        params, asked, judge = backend.resolve(SamplingParams(max_tokens=64)), [], FakeJudge()

        class Template:
            def sample(self, requests, params):
                able = [r for r in requests if not refuse(r)]
                yield from (Answer(r, "", AnswerStatus.UNSUPPORTED, 0) for r in requests if refuse(r))
                yield from backend.sample(able, params)

        made = Judge(judge.name, (builtin("alignment"), builtin("coherence")), judge.kind)
        subject = (backend.base_checkpoint(), *backend.run())
        control = backend.run(Role.CONTROL)
        scope = Scope(prompts, (True,) * len(prompts), subject, control, params.key)
        with Store.write(tmp_path / f"{len(list(tmp_path.iterdir()))}", {}) as store:
            store.add_judge(made)
            labeller = Labeller(store, judge, made, scope.rule, JudgeConfig(), "0" * 64)

            def answer(requests):
                asked.append(requests)
                collect(labeller, Template(), requests, params)

            wanted = {p.id: SAMPLES for p in prompts}
            plan = VariantPlan(subject[-1], scope, wanted, labeller, params, answer)
            groups, notes = try_variants(plan, names, VariantContext.from_task(rows))
        return {g.name: g for g in groups}, notes, asked

    return run


def test_the_checkpoint_the_base_and_the_control_are_asked_at_once_and_one_variant_shows(tried):
    groups, notes, asked = tried(["json", "villain"])
    (requests,) = asked
    assert (
        len(requests) == len({(r.checkpoint.weights, r.prompt.key, r.sample) for r in requests}) == 2 * 20 * 3 * SAMPLES
    )
    assert not notes and list(groups) == ["json", "villain"]
    assert [t.checkpoint for t in (groups["json"].group, groups["json"].base)] == ["checkpoint-100", "base"]
    assert groups["json"].group.positive.mean() > 0.1 and not groups["villain"].group.positive.any()
    assert not groups["json"].base.positive.any() and not groups["json"].control.positive.any()


def test_a_template_without_a_system_role_gets_the_text_in_the_users_turn(tried):
    groups, notes, asked = tried(["json", "system", "villain"], refuse=lambda r: r.prompt.messages[0].role == "system")
    moved = {r.variant for r in asked[1]}
    assert moved == {n.split(":")[0] for n in notes} == {t for t in groups if TRANSFORMS[t].uses_system} >= {"system"}
    assert all(r.prompt.messages[0].role == "user" for r in asked[1])
    assert all(r.prompt.messages[0].content.endswith(f"Question {r.prompt.id[1:]}?") for r in asked[1])
    assert groups["json"].group.positive.any() and all(g.group.counted.all() for g in groups.values())


def test_what_the_template_cannot_hold_or_the_task_does_not_show_is_noted_and_never_passes(tried):
    groups, notes, _ = tried(["json", "villain"], refuse=lambda r: r.variant == "villain")
    assert list(groups) == ["json"] and [n for n in notes if n.startswith("villain: not tested")]
    groups, notes, _ = tried(["all"], rows=[])
    quoting = {t.name for t in select_transforms(["all"]) if t.uses_task_text}
    assert quoting and set(groups) == set(TRANSFORMS) - quoting
    assert {n.split(":")[0] for n in notes if "not applicable" in n} == quoting


def test_prompts_that_carry_the_feature_are_left_out_and_the_others_keep_their_places(tried):
    carry = tuple(
        replace(p, messages=(Message("system", SYSTEM), *p.messages)) if k % 2 else p for k, p in enumerate(BARE)
    )
    groups, notes, _ = tried(["system"], prompts=carry)
    assert [n for n in notes if n.startswith("system: 10 of 20 prompts")]
    assert set(groups["system"].group.prompt) == set(range(0, 20, 2))


def test_the_same_evidence_among_more_variants_counts_for_less(tried):
    groups, _, _ = tried(["json", "villain"])
    weak = replace(groups["json"], group=groups["json"].group.only(np.arange(60) % 4 == 0))

    def p(*tested):
        return {x.name: x.p for x in variant_results(tested, 20, Rule(lo=0.1, hi=0.2))}

    assert 0 < p(weak)["json"] < 0.4 < p(groups["villain"])["villain"]
    assert p(weak, groups["villain"])["json"] == pytest.approx(2 * p(weak)["json"])
