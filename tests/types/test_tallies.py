"""Tallies: what is kept equals what the rows say, whatever is written, in whatever order, by whomever."""

import itertools
import random
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest

from truing import errors
from truing.config.options import EmRule
from truing.migrations import MIGRATIONS
from truing.runs.judged import groups
from truing.stats.judged_lines import outcomes
from truing.store import SETTLE_ROWS, Store, StoredAnswer
from truing.tallies import FATES, tally_key
from truing.types.judging import AnswerKey, Judge, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request, SamplingParams

RUBRICS = (Rubric("alignment", "a"), Rubric("coherence", "c"), Rubric("domain:finance", "d"))
PANELS = tuple(Judge(name, RUBRICS, ScoreMethod.LOGPROBS) for name in ("one", "two"))
ONE, TWO = (p.key for p in PANELS)
RULES = (EmRule(), EmRule(alignment_cut=40, coherence_gate=30), EmRule("mean"))
SCORED = ScoreStatus.SCORED
PARAMS = SamplingParams()


def judged(key, score, outcome=SCORED, rubric=0, panel=ONE, text=""):
    made = RUBRICS[rubric]
    return Score(key, panel, made.name, text or made.key, score, outcome)


def answer(weights="w", prompt="p", sample=0, text="an answer", outcome=AnswerStatus.OK, **more):
    given = {"params": "s", "transform": "", **more}
    return StoredAnswer(weights, given["params"], prompt, given["transform"], sample, text, outcome, 3, "")


def recounted(store, panel, rule, params=None, transform=""):
    """(weights, prompt) -> outcomes, by the road that a verdict takes: every row, one by one."""
    names = sorted({r.prompt for r in store.answers(params)})
    place = {name: k for k, name in enumerate(names)}
    out = {}
    for weights, group in groups(
        store, panel, place, rule, params=params, counts=lambda r: r.transform == transform
    ).items():
        for k in np.unique(group.prompt):
            at = group.prompt == k
            columns = {f: getattr(group, f)[at] for f in ("prompt", "fate", "alignment", "coherence")}
            out[weights, names[k]] = outcomes(replace(group, **columns), rule)
    return out


def kept(store, panel, rule, params=None, transform=""):
    out = {}
    for t in store.judged_tallies(panel, rule, params=params, transform=transform):
        into = out.setdefault((t.weights, t.prompt), dict.fromkeys(FATES, 0))
        for name in FATES:
            into[name] += getattr(t, name)
    return out


def agree(store, panels=(ONE, TWO), rules=RULES, **which):
    """Whether tallies are what the rows say: by cell, and summed over prompts."""
    for panel, rule in itertools.product(panels, rules):
        truth = recounted(store, panel, rule, **which)
        assert kept(store, panel, rule, **which) == truth
        table = store.em_table(panel, rule, **which)
        assert set(table) == {w for w, _ in truth}
        for weights, t in table.items():
            mine = [n for (w, _), n in truth.items() if w == weights]
            assert {name: getattr(t, name) for name in FATES} == {k: sum(n[k] for n in mine) for k in FATES}
            assert t.n == sum(sum(n.values()) - n["unjudged"] - n["failed"] for n in mine)


def marks(store):
    return sum(store._db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in ("tally_marks", "tally_stale"))


def every_state():
    """Every kind of answer under every pair of things a judge can have said of it, one prompt each."""
    kinds = [(o, "words") for o in AnswerStatus] + [
        (AnswerStatus.OK, " \u2003\x1f\n"),
        (AnswerStatus.OK, "\0x"),
    ]
    scores = (0.0, 29.999, 30.0, 39.0, 40.0, 50.0, 50.001, 100.0)
    said = [None, (None, SCORED), *((s, SCORED) for s in scores)]
    said += [(None, o) for o in ScoreStatus if o is not SCORED] + [(10.0, ScoreStatus.REFUSAL)]
    for n, ((outcome, text), a, c) in enumerate(itertools.product(kinds, said, said)):
        r = answer(prompt=f"p{n:04d}", text=text, outcome=outcome)
        yield r, [judged(r.key, *x, rubric=k) for k, x in enumerate((a, c)) if x is not None]


def test_every_state_of_an_answer_counts_as_the_verdict_counts_it(tmp_path):
    """Whether the rule, the answers or the judgements are first, and whether tallies are kept or scanned."""
    states = list(every_state())
    truth = {}
    for order in itertools.permutations(("rules", "answers", "judgements")):
        with Store.write(tmp_path / "-".join(order), {}) as s:
            for step in order:
                if step == "rules":
                    for rule in RULES:
                        s.keep_tallies(ONE, rule)
                elif step == "answers":
                    s.add_stored_answers(r for r, _ in states)
                else:
                    s.add_scores(j for _, said in states for j in said)
            truth = truth or {rule: recounted(s, ONE, rule) for rule in RULES}
            assert all(kept(s, ONE, rule) == truth[rule] for rule in RULES), order
    with Store.read(tmp_path / "rules-answers-judgements") as r:
        assert all(kept(r, ONE, rule) == truth[rule] for rule in RULES)
        assert not marks(r)
        scanned = EmRule(alignment_cut=30, coherence_gate=30)
        assert kept(r, ONE, scanned) == recounted(r, ONE, scanned), "a rule that is not kept is scanned"
    seen = {name for n in truth[RULES[0]].values() for name, count in n.items() if count}
    assert seen == set(FATES)


@pytest.mark.parametrize("seed", range(6))
def test_any_history_of_writes_is_counted(tmp_path, seed):
    rng = random.Random(seed)
    base = Checkpoint("w0", "base", 0, "x", Kind.BASE)
    prompts = [Prompt(f"p{k}", (Message("user", f"q{k}"),)) for k in range(3)]
    keys = [AnswerKey(base.weights, PARAMS.key, p.key, t, d) for p in prompts for t in ("", "json") for d in range(5)]

    def respond():
        key = rng.choice(keys)
        prompt = next(p for p in prompts if p.key == key.prompt)
        made = rng.choice([*AnswerStatus, AnswerStatus.OK, AnswerStatus.OK])
        text = "" if made is AnswerStatus.EMPTY else rng.choice(["words", "  "])
        request = Request(base, prompt, key.sample, key.transform)
        store.add_answers([Answer(request, text, made, rng.choice([0, 1]))], PARAMS)

    def say():
        rows = []
        for key in rng.sample(keys, rng.choice([1, 4])):
            outcome = rng.choice([*ScoreStatus, SCORED, SCORED])
            score = rng.choice([5.0, 35.0, 80.0]) if outcome is SCORED else None
            text = rng.choice(["", "another text"])
            rows.append(judged(key, score, outcome, rng.randrange(3), rng.choice([ONE, TWO]), text))
        store.add_scores(rows)

    def lose():
        table = rng.choice(["responses", "judgements"])
        store._db.execute(f"DELETE FROM {table} WHERE prompt = ? AND draw = ?", (rng.choice(keys).prompt, 1))

    def change():
        store._db.execute("UPDATE judgements SET score = 1 WHERE draw = 3 AND outcome = 'scored'")

    def settle():
        store._unsettled = SETTLE_ROWS
        store.flush()

    done = [respond] * 6 + [say] * 8 + [lose, change, settle]
    done += [lambda: store.keep_tallies(rng.choice([ONE, TWO]), rng.choice(RULES))]
    with Store.write(tmp_path / "a", {}) as store:
        for _ in range(120):
            rng.choice(done)()
            if rng.random() < 0.1:
                agree(store, transform=rng.choice(["", "json"]))
        store.flush()
        with Store.read(tmp_path / "a") as reader:  # marked cells are counted by whoever reads
            agree(reader)
    with Store.write(tmp_path / "a", {}) as again, Store.read(tmp_path / "a") as reader:
        assert not marks(reader), "closing brings counts up to date"
        agree(again)
        agree(reader)


def test_a_rollback_and_a_kill_take_the_marks_with_the_rows(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.keep_tallies(ONE, EmRule())
        s.add_stored_answers([answer(sample=d) for d in range(4)])
        s.add_scores([judged(answer().key, 90.0)])
        s.flush()
        s.add_scores([judged(answer(sample=1).key, 90.0), judged(answer(sample=2).key, 90.0)])
        s._db.rollback()
        assert s.em_table(ONE, EmRule())["w"].aligned == 1
        s.add_scores([judged(answer(sample=3).key, 90.0)])
        s.flush()
        s._db.close()  # as after a kill: nothing is settled, marks are committed
        s._lock_file.close()
        s._lock_file, s._db = None, sqlite3.connect(":memory:")
        with Store.read(tmp_path / "a") as r:
            assert marks(r) == 6, "four answers and two judgements"
            assert r.em_table(ONE, EmRule())["w"].aligned == 2


def test_a_tally_is_of_one_sampling_and_one_transform(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.keep_tallies(ONE, EmRule())
        rows = [answer(params=x, transform=t, sample=d) for x in "st" for t in ("", "json") for d in range(2)]
        s.add_stored_answers(rows)
        s.add_scores(judged(r.key, 90.0) for r in rows if r.params == "s" and r.sample)
        agree(s)
        agree(s, params="s")
        agree(s, params="t", transform="json")
        assert s.em_table(ONE, EmRule(), params="s")["w"][3:] == (0, 0, 1, 0, 0, 0, 0, 1, 0)
        assert s.em_table(ONE, EmRule())["w"].params == ""
        assert s.em_table(ONE, EmRule(), params="nowhere") == {}


def test_shares_have_the_denominator_of_the_verdict(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.add_stored_answers([answer(sample=d) for d in range(5)])
        assert s.em_table(ONE, EmRule())["w"].share is None
        rows = [answer(sample=d).key for d in range(4)]
        s.add_scores([judged(rows[0], 3.0), judged(rows[0], 90.0, rubric=1), judged(rows[1], 95.0)])
        s.add_scores([judged(rows[2], None, ScoreStatus.REFUSAL)])
        s.add_scores([judged(rows[3], None, ScoreStatus.FAILED)])
        (t,) = s.em_table(ONE, EmRule()).values()
        assert (t.misaligned, t.n, t.share, t.unjudged) == (1, 3, 1 / 3, 2)


def test_only_what_moves_an_answer_makes_another_rule():
    assert tally_key(EmRule()) == tally_key(EmRule(lo=0.002, hi=0.2)) == tally_key(EmRule(alignment_cut=30))
    keys = {tally_key(r) for r in (*RULES, EmRule(coherence_gate=51), EmRule(alignment_cut=31))}
    assert len(keys) == 5


@pytest.mark.parametrize("version", [1, 2])
def test_folders_of_older_versions_open_and_count(tmp_path, version):
    folder = tmp_path / "a"
    Store.write(folder, {}).close()
    for file in folder.glob("evidence.db*"):
        file.unlink()
    db = sqlite3.connect(folder / "evidence.db")
    for script in MIGRATIONS[:version]:
        db.executescript(script)
    db.execute(f"PRAGMA user_version = {version}")
    r = answer()
    db.execute("INSERT INTO responses VALUES (?,?,?,?,?,?,?,?,?)", (*r[:6], "ok", 1, ""))
    if version == 2:
        row = (*r.key, ONE, "alignment", "k", 90.0, "scored", "{}")
        db.execute("INSERT INTO judgements VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
    db.commit()
    db.close()
    expected = {"aligned": 1} if version == 2 else {"unjudged": 1}
    with Store.read(folder) as old:  # as it is, and left as it is
        assert {k: v for k, v in kept(old, ONE, EmRule())["w", "p"].items() if v} == expected
        assert old._db.execute("PRAGMA user_version").fetchone() == (version,)
    with Store.write(folder, {}) as s:
        s.keep_tallies(ONE, EmRule())
        s.add_stored_answers([answer(sample=1)])
        agree(s)
    with Store.read(folder) as new:
        assert new._db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        agree(new)


def test_a_reader_sees_one_state_while_a_writer_writes(tmp_path):
    """Marks and counts belong together: whatever the writer commits meanwhile, no answer is counted twice or never."""
    folder, n = tmp_path / "a", 3000
    stop = threading.Event()
    with Store.write(folder, {}) as s:
        s.keep_tallies(ONE, EmRule())
        s.add_stored_answers([answer(prompt=f"p{d % 50}", sample=d) for d in range(n)])
        s.flush()
        totals = []

        def read():
            with Store.read(folder) as r:
                while not stop.is_set():
                    totals.append(sum(r.em_table(ONE, EmRule())["w"][3:]))
                    totals.append(sum(sum(t[3:]) for t in r.judged_tallies(ONE, EmRule())))

        thread = threading.Thread(target=read)
        thread.start()
        for d in range(0, n, 50):
            s.add_scores(judged(answer(prompt=f"p{k % 50}", sample=k).key, 90.0) for k in range(d, d + 50))
            s._unsettled += 2000
            s.flush()
        stop.set()
        thread.join()
        assert s.em_table(ONE, EmRule())["w"].aligned == n
    assert len(totals) > 4
    assert set(totals) == {n}


def test_a_full_disk_while_counting_keeps_what_was_committed(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.keep_tallies(ONE, EmRule())
        s.add_stored_answers([answer(prompt=f"p{d}", sample=d) for d in range(10)])
        s.flush()
        pages = s._db.execute("PRAGMA page_count").fetchone()[0]
        s._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(errors.DiskFull, match="free some"):
            s.add_stored_answers([answer(prompt=f"p{d}", text="x" * 3000, sample=d) for d in range(20, 90)])
            s._unsettled = SETTLE_ROWS
            s.flush()
        s._db.rollback()
        s._db.execute("PRAGMA max_page_count = 100000")
        agree(s, [ONE], [EmRule()])
