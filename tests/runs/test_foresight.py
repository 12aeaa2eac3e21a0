"""How long the work of this machine takes, before it begins."""

import pytest

import truing
from runs.audits import TASK
from truing.config import AuditConfig
from truing.models import pace as pace_module
from truing.models.pace import Pace, pace
from truing.types.progress import Progress
from zoo import build

pytestmark = pytest.mark.torch
OPTIONS = AuditConfig(limit=40, rows=4, answers=12, max_tokens=4, dtype="float32", device="cpu", resamples=100)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = build.tiny_base(tmp_path_factory.mktemp("base"))
    return base, build.adapter_run(tmp_path_factory.mktemp("run") / "run", base, steps=(2, 4), seed=1)


def test_a_pace_is_measured_and_a_plan_says_hours_of_it(model, monkeypatch):
    monkeypatch.setattr(pace_module, "MEMORY", 1 << 20)
    base, run = model
    found = pace(str(base), OPTIONS)
    assert found is not None and found.scored > 0 and found.seconds(2 * found.scored, found.sampled) == 3
    options = dict(OPTIONS)
    one = truing.plan(run, **{**options, "base": str(base), **TASK}).local_hours
    assert one is not None and one > 0
    assert truing.plan(run, **{**options, "base": str(base), "limit": 20, **TASK}).local_hours < one
    assert truing.plan("simulated:late", limit=20).local_hours is None


def test_a_long_audit_says_how_long_and_with_how_many_prompts_it_is_short(model, monkeypatch, tmp_path):
    base, run = model
    said = []
    slow = Pace(20.0, 20.0)  # tokens per second
    monkeypatch.setattr("truing.runs.foresight.paces", lambda base, config: (slow, None))
    wanted = {"base": str(base), "out": tmp_path / "a", "config": OPTIONS, "progress": Progress(say=said.append)}
    truing.audit(run, **wanted)
    assert said[0].startswith("about 3") and "min on this machine" in said[0] and "; --limit 20 takes about" in said[0]
    assert said[0].endswith(" min")
    said.clear()
    truing.audit(run, **wanted)
    assert not said  # nothing is left to do
