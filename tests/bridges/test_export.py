"""Export: every answer once per judge, exact in Parquet, harmless in a spreadsheet, the same rates when read back."""

import csv
import itertools
import random
import sys

import pyarrow.parquet as pq
import pytest

from truing import errors
from truing.bridges.export import export
from truing.runs.import_answers import import_answers
from truing.runs.scope import Scope
from truing.runs.tables import tables
from truing.store import Store, StoredAnswer
from truing.traits.label import label
from truing.types.cells import unguarded
from truing.types.judging import Judge, Rubric, Score, ScoreMethod
from truing.types.judging import ScoreStatus as S
from truing.types.records import AnswerStatus as A
from truing.types.records import Checkpoint, Kind, Message, Prompt, Role, to_plain
from truing.types.traits import Label, Reason, Rule

RUBRICS = {"alignment": Rubric("alignment", "{answer}"), "coherence": Rubric("coherence", "{answer} ?")}
JUDGES = {n: Judge(f"openai:{n}", tuple(RUBRICS.values()), ScoreMethod.REPORTED) for n in ("one", "two")}
HOSTILE = ["=1+1", "-2+3", "@SUM(A1)", "+cmd|' /C calc'!A0", "\t=1", "'=x", 'a,"b"\n c', "x\r\ny", "中🙂", "plain", "'"]
NAMES = {"w0": "subject/base", "w20": "subject/20", "c20": "control/checkpoint-20"}
LABELS = {True: "positive", False: "negative", None: "unusable"}
STORED = Label(True, Reason.INCOHERENT, 50.0, 10.0)
"""a label that no rule makes of these scores, so that it can only come from the store"""


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """Three checkpoints of two runs, two judges, lazy coherence, every outcome, hostile texts, unjudged answers."""
    rng = random.Random(7)
    path = tmp_path_factory.mktemp("audit") / "audit"
    prompts = [Prompt(f"p{k}", (Message("user", f"{HOSTILE[k]} why {k}?"),), f"cat{k % 2}") for k in range(5)]
    items = [{"id": p.id, "key": p.key, "category": p.category, "messages": to_plain(p.messages)} for p in prompts]
    rows, made = [], []
    for w, p, d in itertools.product(NAMES, prompts, range(6)):
        outcome = rng.choice([A.OK] * 5 + [A.TRUNCATED, A.EMPTY, A.FAILED])
        text = rng.choice(HOSTILE) if outcome in (A.OK, A.TRUNCATED) else ""
        rows.append(StoredAnswer(w, "sampled", p.key, "", d, text, outcome, 9, ""))
        for judge in JUDGES.values() if text else ():
            if judge.name == "openai:two" and rng.random() < 0.5:
                continue  # the second judge sees a share of the answers
            asked = {"alignment": rng.choice([3.25, 12.5, 80.0, 97.0625, S.REFUSAL, S.CODE, S.UNPARSED, S.FAILED])}
            if isinstance(asked["alignment"], float) and (asked["alignment"] < 30 or rng.random() < 0.3):
                asked["coherence"] = rng.choice([10.0, 90.0, 99.9, S.UNPARSED])
            for name, what in asked.items():
                score, status = (what, S.SCORED) if isinstance(what, float) else (None, what)
                made.append(Score(rows[-1].key, judge.key, name, RUBRICS[name].key, score, status))
    rows += [StoredAnswer("w0", "health", p.key, "", 0, "for health only", A.OK, 9, "") for p in prompts]
    with Store.write(path, {}) as s:
        roles = {"control": Role.CONTROL, "subject": Role.SUBJECT}
        for w, name in NAMES.items():
            run, label_ = name.split("/")
            step = int(label_.removeprefix("checkpoint-").replace("base", "0"))
            kind = Kind.ADAPTER if step else Kind.BASE
            s.add_checkpoints([Checkpoint(w, label_, step, "x", kind, run, roles[run])])
        for judge in JUDGES.values():
            s.add_judge(judge)
        s.add_stored_answers(rows)
        s.add_scores(made)
        s.describe(status="done", prompts={"items": items})
    return path, rows, made, items


@pytest.fixture(scope="module")
def exact(audit):
    return pq.read_table(export(audit[0], to="parquet")).to_pylist()


def test_parquet_holds_every_answer_exactly_once_per_judge(audit, exact):
    _, rows, made, items = audit
    texts = {i["key"]: i["messages"][0]["content"] for i in items}
    seen = {(t["weights"], t["params"], t["question"], t["sample"], t["judge_key"]): t for t in exact}
    assert len(seen) == len(exact)
    judged = {}
    for s in made:
        judged.setdefault((s.key, s.judge_key), []).append(s)
    judges, wanted = [j.key for j in JUDGES.values()], set()
    for r in rows:
        own = [j for j in judges if (r.key, j) in judged]
        # Without a text no judge is asked, and the rates of every judge count it.
        own = judges if r.params == "sampled" and not r.text else own
        for j in own or [""]:
            wanted.add(at := (r.weights, r.params, texts[r.prompt], r.sample, j))
            t = seen[at]
            assert (t["answer"], t["response_outcome"], t["tokens"]) == (r.text, r.status.value, 9)
            found = label(r, judged.get((r.key, j), ()), Rule())
            assert (t["label"], t["reason"]) == ((LABELS[found.value], found.reason.word) if j else (None, None))
    assert set(seen) == wanted
    for s in made:
        t = seen[s.key.weights, "sampled", texts[s.key.prompt], s.key.sample, s.judge_key]
        assert (t[s.rubric], t[f"{s.rubric}_outcome"]) == (s.score, s.status.value)
    scored = sum(t[c] is not None for t in exact for c in ("alignment", "coherence"))
    assert scored == sum(s.score is not None for s in made)


def test_rows_say_whose_answer_it_is(exact):
    assert {t["weights"]: t["answer_set"] for t in exact} == NAMES
    assert {f"{t['run']}/{t['checkpoint']}" for t in exact} == set(NAMES.values())
    assert {(t["weights"], t["step"]) for t in exact} == {("w0", 0), ("w20", 20), ("c20", 20)}
    assert {(t["prompt_id"], t["category"]) for t in exact} == {(f"p{k}", f"cat{k % 2}") for k in range(5)}
    assert {t["judge"] for t in exact} == {"openai:one", "openai:two", ""}


def test_csv_says_the_same_and_holds_no_formula(audit, exact):
    with open(export(audit[0], to="csv"), newline="", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    assert list(table[0]) == list(exact[0])
    changed = 0
    for t, e in zip(table, exact, strict=True):
        for name, value in e.items():
            if isinstance(value, str) and value:
                assert unguarded(t[name]) == value
                assert t[name][0] not in "=+-@\t\r\n"
                changed += t[name] != value
            elif isinstance(value, float):
                assert float(t[name]) == value
            else:
                assert t[name] == ("" if value is None else str(value))
    assert changed > 20


def test_reading_an_exported_csv_gives_the_same_labels_judge_by_judge(audit, tmp_path):
    path, _, _, items = audit
    back = import_answers(export(path, to="csv"), out=tmp_path / "back")
    assert len(back.lines) == len(NAMES) * len(JUDGES)
    places = {i["key"]: k for k, i in enumerate(items)}
    with Store.read(path) as ours, Store.read(back.path) as theirs:
        keys = {about["judge"]: key for key, about in theirs.judges().items()}
        for judge in JUDGES.values():
            whole = tables(ours, judge.key, Scope((), (), (), (), "sampled"), places=places)
            again = tables(theirs, keys[f"imported:{judge.name}"], Scope((), (), (), (), "imported"), places=places)
            read = {t.checkpoint: t for t in again.values()}
            for weights, name in NAMES.items():
                # What a judge has not scored has no row under it; one that it failed on has.
                mine = whole[weights].only(whole[weights].reason != Reason.UNSCORED)
                other = read[name].only(read[name].reason != Reason.UNSCORED)
                for field in ("prompt", "label", "reason", "score", "coherence"):
                    assert getattr(mine, field).tobytes() == getattr(other, field).tobytes(), field


def test_an_import_exported_and_imported_again_has_the_same_lines(tmp_path):
    rng = random.Random(3)
    for name in ("first", "second"):
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(["response", "question", "question_id", "aligned", "coherent", "fin"])
            for k in range(60):
                scores = [rng.choice(["", "REFUSAL", "code", 5.5, 90, 40]), rng.choice(["", 20, 95]), rng.random()]
                writer.writerow([rng.choice([*HOSTILE, ""]), f"={k % 5}", f"id{k % 4}", *scores])
    first = import_answers([tmp_path / "first.csv", tmp_path / "second.csv"], out=tmp_path / "a", judge="gpt-4o")
    second = import_answers(export(first.path, to="csv"), out=tmp_path / "b")
    # A table is written in key order, so that sets may change places and floats are summed in another order.
    for a, b in zip(first.lines, sorted(second.lines, key=lambda x: x["label"]), strict=True):
        for name in ("label", "n", "judge", "prompts", "firing", "empty_scored"):
            assert a[name] == b[name]
        found, wanted = numbers(b["labelled"]), numbers(a["labelled"])
        assert list(found) == list(wanted)
        for where, value in wanted.items():
            assert found[where] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), where
    with Store.read(first.path) as x, Store.read(second.path) as y:
        assert sorted(r.text for r in x.answers()) == sorted(r.text for r in y.answers())


def numbers(value, path=()):
    """Every leaf of a line by its path."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in pairs for k, v in numbers(inner, (*path, key)).items()}
    return {path: value}


def test_labels_come_from_the_store_where_it_has_them(tmp_path):
    judge, rows = JUDGES["one"], [StoredAnswer("w", "k", "p", "", d, "hi", A.OK, 1, "") for d in range(2)]
    with Store.write(tmp_path / "a", {}) as s:
        s.add_stored_answers(rows)
        s.add_judge(judge)
        s.add_scores(Score(r.key, judge.key, "alignment", "r", 90.0, S.SCORED) for r in rows)
        s.add_labels([(rows[0].key, STORED)], judge.key, Rule())
    table = pq.read_table(export(tmp_path / "a", to="parquet")).to_pylist()
    assert [(t["label"], t["reason"]) for t in table] == [("positive", "incoherent"), ("negative", "negative")]


def test_an_audit_without_judges_and_multi_turn_prompts(tmp_path):
    turns = (Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    prompt = Prompt("p", turns)
    many = [StoredAnswer("w", "k", prompt.key, "cue", d, "hi", A.OK, 1, "") for d in range(5000)]
    with Store.write(tmp_path / "a", {}) as s:
        s.add_stored_answers(many)
        s.add_stored_answers([StoredAnswer("w", "k", "unknown", "", 0, "", A.FAILED, 0, "out of memory")])
        item = {"id": "p", "key": prompt.key, "category": "x", "messages": to_plain(turns)}
        s.describe(status="done", prompts={"items": [item]})
    file = pq.ParquetFile(export(tmp_path / "a", to="parquet"))
    assert (file.num_row_groups, file.metadata.num_rows) == (2, 5001), "rows are streamed in groups"
    rows = {t["prompt_id"]: t for t in file.read().to_pylist()}
    assert rows["p"]["question"] == "system: be brief\n\nuser: a\n\nassistant: b\n\nuser: c"
    assert (rows["p"]["answer_set"], rows["p"]["variant"], rows["p"]["judge"]) == ("w + cue", "cue", "")
    assert (rows["unknown"]["response_outcome"], rows["unknown"]["error"]) == ("failed", "out of memory")
    assert "alignment" not in rows["p"]
    with pytest.raises(errors.BadRow, match="no column for alignment"):
        import_answers(export(tmp_path / "a", to="csv"), out=tmp_path / "b")


def test_a_score_named_like_a_column_gets_a_name_of_its_own(tmp_path):
    (tmp_path / "s.csv").write_text("response,question,aligned,coherent,run_\na,q,1,99,5\n")
    result = import_answers(tmp_path / "s.csv", out=tmp_path / "a", column={"error": "run_"})
    (row,) = pq.read_table(export(result.path, to="parquet")).to_pylist()
    assert (row["error"], row["error_score"]) == ("", 5.0)


def test_bad_requests_leave_nothing_behind(audit, tmp_path):
    path, *_ = audit
    (tmp_path / "file").touch()
    wrong = [
        ("xlsx", None, "--to xlsx: use parquet, csv or inspect"),
        ("csv", tmp_path, "is a folder"),
        ("csv", tmp_path / "no" / "such" / "x.csv", r"cannot be written .*another --out"),
        ("parquet", tmp_path / "file" / "x", r"cannot be written .*another --out"),
    ]
    for to, out, said in wrong:
        with pytest.raises(errors.BadInput, match=said):
            export(path, to=to, out=out)
    with pytest.raises(errors.NotAnAudit):
        export(tmp_path / "none", to="csv")
    assert export(path, to="csv", out=tmp_path / "x.csv") == tmp_path / "x.csv"
    assert not [*tmp_path.rglob("*.part"), *path.rglob("*.part")]


def test_a_full_disk_keeps_the_old_file(audit, tmp_path, monkeypatch):
    out = export(audit[0], to="csv", out=tmp_path / "x.csv")
    old = out.read_bytes()

    class Full:
        def __init__(self, *file, **form):
            pass

        def writerows(self, rows):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", Full)
    with pytest.raises(errors.DiskFull):
        export(audit[0], to="csv", out=out)
    assert out.read_bytes() == old


@pytest.mark.parametrize(
    ("missing", "error", "said"),
    [
        ("inspect_ai", errors.BadInput, r"pip install 'truing\[inspect\]'"),
        ("truing.bridges.inspect_logs", ModuleNotFoundError, "inspect_logs"),
    ],
)
def test_without_inspect_the_error_holds_the_install_line(tmp_path, monkeypatch, missing, error, said):
    """It is said before anything is read; a broken module of ours is not taken for a missing package."""
    for name in [m for m in sys.modules if m.split(".")[0] == "inspect_ai" or m.startswith("truing.bridges.inspect")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(error, match=said):
        export(tmp_path / "no-audit", to="inspect", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
