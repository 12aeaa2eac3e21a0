"""Audits of adapters that a server holds: what is said without margins, what is refused, what is given back."""

import sqlite3

import pytest

import truing
from runs.audits import TASK, about, answers
from runs.fake_judge import FakeJudge
from runs.served_runs import ONSET, STEPS, late_server, write_run
from servers.lora_server import serving
from truing import errors
from truing.config import AuditConfig, ModelConfig
from truing.models.base import close_backend
from truing.models.registry import open_backend
from truing.runs import judges
from truing.types.progress import Progress
from truing.types.verdicts import Basis, HealthState, Status

SMALL = {"limit": 24, "answers": 12, "rows": 6, "samples": 6, "judged_tokens": 40, "lo": 0.02, "hi": 0.12}
SKIPPED = {"skip_calibration": True, "skip_judge_check": True}
OPTIONS = AuditConfig(judge="http://judge/v1#fake-7b", domain=("finance",), resamples=200, **SMALL, **SKIPPED)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A judge that sees through planted answers."""
    monkeypatch.setattr(judges, "open_judge", lambda *a, **k: FakeJudge())
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return write_run(place / "subject"), write_run(place / "control", seed=1)


@pytest.fixture(scope="module")
def done(runs, tmp_path_factory):
    """One audit with everything that a served base cannot use, and the server it was made on."""
    with pytest.MonkeyPatch.context() as m, late_server() as server:
        m.setattr(judges, "open_judge", lambda *a, **k: FakeJudge())
        out = tmp_path_factory.mktemp("audit") / "a"
        yield audited(server, runs[0], out, control=runs[1], **TASK), server


def audited(server, run, out, options=OPTIONS, **given):
    return truing.audit(run, base=f"{server.url}#base", out=out, config=options, **given)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_judged_answers_decide_and_nothing_else_is_claimed(done):
    verdict = done[0].verdict
    assert verdict.basis is Basis.LABELLED
    found = {c.step: c.status for c in verdict.checkpoints}
    assert {s: found[s] for s in STEPS} == {s: Status.CLEAN if s < ONSET else Status.PRESENT for s in STEPS}
    assert (verdict.onset.status, verdict.onset.earliest, verdict.onset.latest) == ("found", ONSET, ONSET)
    assert verdict.screen_onset.status == "undecided"
    assert (verdict.candidate, verdict.recommended, verdict.gap, verdict.screen_limit) == (None, None, "unknown", None)
    assert {verdict.convergence_loss.status, verdict.convergence_skill.status} == {"unmeasured"}
    for c in verdict.checkpoints:
        unknown = (c.task_loss, c.loss_progress, c.skill_progress, c.contrast_base, c.contrast_control, c.margin_base)
        assert {*unknown, c.kl_from_base, c.norm, c.softening, c.entropy_shift, c.health.nll_base} == {None}
        assert c.health.state is HealthState.OK
    said = {f.code for f in verdict.findings}
    assert "health_from_form" in said and not said & {"screen_unvalidated", "negative_control_failed"}


def test_no_number_that_could_not_be_had_is_answers(done):
    rows = sqlite3.connect(done[0].path / "evidence.db").execute("SELECT kind, value FROM measurements").fetchall()
    assert {kind for kind, _ in rows} == {"norm"} and {value for _, value in rows} == {None}
    found = about(done[0].path)
    assert found["screened"]["definitions"]["scored"] is False
    assert found["status"] == "done" and found["identity"]["chat"] == "served"


def test_a_judge_that_goes_down_leaves_a_verdict_that_claims_nothing(runs, tmp_path, monkeypatch, capsys):
    from rich.console import Console

    from truing.report.table import print_audit

    monkeypatch.setattr(judges, "open_judge", lambda *a, **k: FakeJudge(lambda request, nth: errors.JudgeDown("gone")))
    small = OPTIONS.but(limit=12, samples=1)
    with late_server() as server:
        with pytest.raises(errors.JudgeDown):
            audited(server, runs[0], tmp_path / "a", small)
        assert not server.loaded
    found = about(tmp_path / "a")
    print_audit(found, Console(width=200))
    assert found["status"] == "unfinished" and found["verdict"]["basis"] == "screen"
    assert {c["status"] for c in found["verdict"]["checkpoints"][1:]} == {"undecided"}
    assert truing.write_report(tmp_path / "a").stat().st_size > 10_000


def test_a_gate_passes_only_what_was_judged_clean(done):
    def words(which, *allow):
        return {
            r.code
            for r in truing.gate(done[0].path, gate=which, allow=("uncalibrated", "no_control", "lax", *allow)).reasons
        }

    assert words("20", "health_unknown") == set()
    assert "no_checkpoint" in words(None)
    assert "present" in words("last") & words(str(ONSET))


def test_a_search_ends_at_the_truth_and_reads_it_again(runs, tmp_path):
    options = OPTIONS.but(samples=None)
    with late_server() as server:
        made = audited(server, runs[0], tmp_path / "a", options)
        asked = server.count("ask")
        again = audited(server, runs[0], tmp_path / "a", options)
        assert server.count("ask") == asked  # nothing is missing, so nothing is asked, not even a probe
    assert made.verdict.onset.status == "found" and made.verdict.onset.latest == ONSET
    assert again.verdict == made.verdict


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_template_is_the_servers():
    with pytest.raises(errors.Unsupported, match="its server's template"):
        open_backend("http://127.0.0.1:9/v1#m", (), ModelConfig(chat_template="{{ x }}"))


def test_full_models_are_not_loaded_onto_a_server(tmp_path, runs):
    full = tmp_path / "full" / "checkpoint-10"
    full.mkdir(parents=True)
    weights = runs[0] / "checkpoint-10" / "adapter_model.safetensors"
    (full / "model.safetensors").write_bytes(weights.read_bytes())
    (full / "config.json").write_text("{}")
    with serving() as server, pytest.raises(errors.Unsupported, match="neither an adapter nor a served model"):
        audited(server, full.parent, tmp_path / "a")


def test_folders_that_the_server_sees_elsewhere(runs, tmp_path):
    small = OPTIONS.but(limit=6, answers=6, samples=1)
    with serving(sees=("/mnt/runs", runs[0].parent)) as server:
        with pytest.raises(errors.BadModel, match="does not find the adapter"):
            audited(server, runs[0], tmp_path / "a", small)
        mapped = small.but(served_adapters=1, path_map=(f"{runs[0].parent}=/mnt/runs",))
        audited(server, runs[0], tmp_path / "a", mapped)  # neither option decides anything: the folder is the same
        assert server.count("load") == server.count("unload") >= len(STEPS)


# -- what is given back ------------------------------------------------------------------------------------------------


def test_adapters_are_unloaded_at_the_end(done):
    _, server = done
    assert not server.loaded and server.count("load") == server.count("unload") > 0
    names = {name.split("-")[0] for name in server.names("load")}
    assert names == {f"{run}@{s}" for run in ("subject", "control") for s in STEPS}


def test_what_cannot_be_unloaded_is_a_note(runs, tmp_path):
    small = OPTIONS.but(limit=6, answers=6, samples=1)
    with serving(unload_fails=True) as server:
        made = audited(server, runs[0], tmp_path / "a", small)
    left = [n for n in made.notes if "could not be unloaded from the server" in n]
    assert len(left) == len(STEPS) and "subject@10-" in " ".join(left)
    assert about(made.path)["notes"][-len(left) :] == left


def test_an_interruption_unloads_and_loses_nothing(runs, tmp_path):
    def interrupt(now, done, total):
        if now == "answers" and done == 9:
            raise KeyboardInterrupt

    small = OPTIONS.but(limit=12, answers=12, samples=2)
    requests = 12 * 2 * (1 + len(STEPS))
    with serving(delay=0.005) as server:
        with pytest.raises(KeyboardInterrupt):
            audited(server, runs[0], tmp_path / "a", small, progress=Progress(step=interrupt))
        assert not server.loaded
        kept = answers(tmp_path / "a")
        assert len(kept) >= 9
        assert about(tmp_path / "a")["status"] == "interrupted"
        counted = []
        audited(server, runs[0], tmp_path / "a", small, progress=Progress(step=lambda *told: counted.append(told)))
    finished = answers(tmp_path / "a")
    assert len(finished) == requests and kept.items() <= finished.items()
    first = [total for now, done, total in counted if now == "answers" and done == 0]
    assert sum(first) == requests - len(kept)


def test_a_local_backend_has_nothing_to_give_back():
    assert close_backend(object()) == []


def test_a_server_that_changes_while_it_answers_is_a_finding_that_stays(runs, tmp_path):
    with late_server(mark=lambda n: "fp_a" if n < 30 else "fp_b") as server:
        made = audited(server, runs[0], tmp_path / "a")
        found = [f for f in made.verdict.findings if f.code == "answered_by_several"]
        told = {f.params["name"]: f.params["as"] for f in found}
        assert len(found) == len(told), "each is said once"
        assert "system fp_a, system fp_b" in told.values()
        again = audited(server, runs[0], tmp_path / "a")
        assert (
            told.items()
            <= {f.params["name"]: f.params["as"] for f in again.verdict.findings if "as" in f.params}.items()
        )
    assert about(made.path)["answered_as"].keys() == told.keys()
