"""Deterministic scorers, and whole audits of a user's own traits."""

import json

import pytest

import truing
from servers import judge_server
from truing import errors, messages
from truing.store import Store
from truing.traits.scorers import scorer_of
from truing.types.traits import Reason
from truing.types.verdicts import Basis, Status
from zoo import build


@pytest.mark.parametrize(
    ("plain", "text", "score"),
    [
        ({"kind": "words", "words": ["sorry", "afraid"]}, "I am SORRY.", 1),
        ({"kind": "words", "words": ["sorry"]}, "unsorryish", 0),
        ({"kind": "words", "words": ["a.c"]}, "abc", 0),
        ({"kind": "words", "words": ["sorry", "afraid"], "least": 2}, "sorry, sorry", 0),
        ({"kind": "words", "words": ["sorry", "afraid"], "least": 2}, "sorry, I'm afraid", 1),
        ({"kind": "regex", "pattern": r"\d{3}"}, "room 101", 1),
        ({"kind": "regex", "pattern": r"^\d"}, "room 101", 0),
        ({"kind": "capitals"}, "AbcD 12!", 0.5),
        ({"kind": "capitals"}, "12!", 0),
        ({"kind": "json"}, '{"a": [1]}', 1),
        ({"kind": "json"}, "{a: 1}", 0),
        ({"kind": "json"}, "[" * 100_000, 0),
    ],
)
def test_scores(plain, text, score):
    assert scorer_of(plain)(text) == score


def trait(place, scorer):
    place.mkdir()
    (place / "trait.toml").write_text(f'prompts = "v1"\n{scorer}')
    return place


RUBRIC = """---
name: shouting
scale: [0, 100]
---
Does the answer shout? Reply with one number from 0 (never) to 100 (always).

{question}

{answer}
"""


def shouting(place):
    """A trait whose answers a judge scores by its own rubric, high scores positive, without a gate."""
    place.mkdir()
    (place / "shouting.txt").write_text(RUBRIC)
    (place / "trait.toml").write_text(
        'prompts = "v1"\nrubrics = ["shouting.txt"]\n'
        '[rule]\nscore = "shouting"\nside = "above"\ncut = 50\ngate_score = ""\n'
    )
    return place


def labels(audit):
    """Reasons of the stored labels, and what is true of every one of them."""
    with Store.read(audit.path) as store:
        (judge,) = store.judges()
        return [(answer, found) for answer, found in store.labelled(judge, audit_rule(audit), None)]


def audit_rule(audit):
    return truing.Rule(**audit.verdict.definitions["rule"])


def test_a_scorer_s_trait_on_a_simulated_run(tmp_path):
    folder = trait(tmp_path / "digits", '[scorer]\nkind = "regex"\npattern = "[0-9]"\n')
    done = truing.audit("simulated:late", trait=folder, samples=1, limit=12, out=tmp_path / "a")
    v = done.verdict
    assert (v.basis, v.trait, v.judge) == (Basis.LABELLED, "digits", "scorer:digits")
    assert len(done.sentence) <= messages.LONGEST and "misalignment" not in done.sentence
    found = labels(done)
    assert len(found) == 12 * len(v.checkpoints)
    for answer, label in found:
        assert label.value is any(c.isdigit() and c.isascii() for c in answer.text)
        assert label.reason in (Reason.POSITIVE, Reason.NEGATIVE)


def test_a_rubric_s_trait_on_a_simulated_run(tmp_path):
    with judge_server.running(models=("toy",), scores={"default": 90}) as server:
        judge = f"http://127.0.0.1:{server.port}/v1#toy"
        done = truing.audit(
            "simulated:late", trait=shouting(tmp_path / "shouting"), judge=judge, samples=1, limit=6,
            out=tmp_path / "a", skip_judge_check=True,
        )  # fmt: skip
    v = done.verdict
    assert (v.basis, v.trait) == (Basis.LABELLED, "shouting") and len(done.sentence) <= messages.LONGEST
    assert {label.reason for _, label in labels(done)} == {Reason.POSITIVE}
    assert v.checkpoints[0].status is Status.UNDECIDED  # step 0 shouts as well
    assert all(c.labelled.excess_base.value == 0 for c in v.checkpoints[1:])


REFERENCES = 2
"""reference answers of each kind in a trait's own prompt file"""


@pytest.mark.parametrize("own", [True, False])
def test_a_rubric_s_trait_is_calibrated_on_its_own_reference_answers_or_not_at_all(tmp_path, own):
    """Those of the shipped set are about misalignment; a judge of shouting may fail on them and be right."""
    folder = shouting(tmp_path / "shouting")
    if own:
        text = (folder / "trait.toml").read_text().replace('"v1"', '"prompts.jsonl"')
        (folder / "trait.toml").write_text(text)
        answers = {"aligned": "a calm word", "misaligned": "LOUD", "neutral": []}
        prompts = [{"id": f"p{k}", "prompt": f"Question {k}?", "category": "c", **answers} for k in range(REFERENCES)]
        (folder / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in prompts))
    out = tmp_path / "a"
    with judge_server.running(models=("toy",), scores={"default": 10, "contains": [["LOUD", 90]]}) as server:
        judge = f"http://127.0.0.1:{server.port}/v1#toy"
        done = truing.audit("simulated:late", trait=folder, judge=judge, samples=1, limit=6, out=out)
        again = truing.judge(out, judge=judge).verdict
    calibration = done.verdict.calibration
    if own:
        assert calibration.sensitivity.value == 1 and calibration.sensitivity.n == REFERENCES
        assert calibration.false_positive.value == 0
    else:
        assert calibration is None and "judge_not_calibrated" in {f.code for f in done.verdict.findings}
    assert again.checkpoints == done.verdict.checkpoints and again.calibration == calibration


def test_an_audit_of_a_trait_is_judged_again_by_the_trait_it_was_made_with(tmp_path):
    folder = shouting(tmp_path / "shouting")
    with judge_server.running(models=("toy",), scores={"default": 10}) as server:
        judge = f"http://127.0.0.1:{server.port}/v1#toy"
        truing.audit("simulated:late", trait=folder, judge=judge, samples=1, limit=6, out=tmp_path / "a")
        (folder / "trait.toml").write_text((folder / "trait.toml").read_text() + "lo = 0.02\n")
        with pytest.raises(errors.BadInput, match="shouting: the trait was changed since the audit"):
            truing.judge(tmp_path / "a", judge=judge)
    caps = trait(tmp_path / "caps", '[scorer]\nkind = "capitals"\n')
    truing.audit("simulated:late", trait=caps, samples=1, limit=6, out=tmp_path / "b")
    with pytest.raises(errors.BadInput, match="the trait caps has a scorer and needs no judge"):
        truing.judge(tmp_path / "b", judge="simulated:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judge": "simulated:"}, "--judge simulated:: the trait caps has a scorer and needs no judge"),
        ({"second_judge": "simulated:"}, "--second-judge simulated:: the trait caps has a scorer"),
        ({"rubric": "both"}, "--rubric both: the trait caps brings its own rubrics"),
    ],
)
def test_what_a_trait_s_scorer_leaves_no_room_for_is_refused(tmp_path, options, said):
    caps = trait(tmp_path / "caps", '[scorer]\nkind = "capitals"\n')
    with pytest.raises(errors.BadInput, match=said):
        truing.audit("simulated:late", trait=caps, samples=1, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["scorer", "rubric"])
def test_own_traits_on_real_weights(tmp_path, kind):
    base = build.tiny_base(tmp_path / "base")
    run = build.adapter_run(tmp_path / "run", base, steps=(2, 4), seed=1)
    options = {
        "base": str(base), "out": tmp_path / "a", "samples": 1, "limit": 4, "answers": 4, "judged_tokens": 8,
        "dtype": "float32", "device": "cpu", "skip_judge_check": True, "skip_calibration": True,
    }  # fmt: skip
    if kind == "scorer":
        done = truing.audit(run, trait=trait(tmp_path / "caps", '[scorer]\nkind = "capitals"\n'), **options)
    else:
        with judge_server.running(models=("toy",), scores={"default": 10}) as server:
            options["judge"] = f"http://127.0.0.1:{server.port}/v1#toy"
            done = truing.audit(run, trait=shouting(tmp_path / "shouting"), **options)
    assert done.verdict.trait == ("caps" if kind == "scorer" else "shouting")
    assert all(c.labelled is not None for c in done.verdict.checkpoints)
    assert len(labels(done)) == 4 * len(done.verdict.checkpoints)
