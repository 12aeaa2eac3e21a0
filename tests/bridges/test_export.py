"""Export: every answer once per judge, exact in Parquet, harmless in a spreadsheet, the same rates when read back."""

import csv
import itertools
import random

import pyarrow.parquet as pq
import pytest

from truing import errors
from truing.bridges import export as module
from truing.bridges.export import export
from truing.runs.import_answers import import_answers, imported_lines
from truing.runs.tables import fated, groups
from truing.store import Store, StoredAnswer
from truing.types.judging import AnswerKey, Judge, Rubric, Score, ScoreMethod
from truing.types.judging import ScoreStatus as J
from truing.types.records import AnswerStatus as R
from truing.types.records import Checkpoint, Kind, Message, Prompt, Role, to_plain
from truing.types.traits import Rule

PANELS = {
    name: Judge(
        f"openai:{name}", (Rubric("alignment", "{answer}"), Rubric("coherence", "{answer} ?")), ScoreMethod.REPORTED
    )
    for name in ("one", "two")
}
HOSTILE = ["=1+1", "-2+3", "@SUM(A1)", "+cmd|' /C calc'!A0", "\t=1", "'=x", 'a,"b"\n c', "x\r\ny", "中🙂", "plain", "'"]


@pytest.fixture
def audit(tmp_path):
    """Three checkpoints of two runs, two judges, lazy coherence, every outcome, hostile texts, unjudged answers."""
    rng = random.Random(7)
    prompts = [Prompt(f"p{k}", (Message("user", f"{HOSTILE[k]} why {k}?"),), f"cat{k % 2}") for k in range(5)]
    items = [{"id": p.id, "key": p.key, "category": p.category, "messages": to_plain(p.messages)} for p in prompts]
    rows, made = [], []
    for w, p, d in itertools.product(("w0", "w20", "c20"), prompts, range(6)):
        key = AnswerKey(w, "sampled", p.key, "", d)
        outcome = rng.choice([R.OK] * 5 + [R.TRUNCATED, R.EMPTY, R.FAILED])
        rows.append(StoredAnswer(*key, rng.choice(HOSTILE) if outcome in (R.OK, R.TRUNCATED) else "", outcome, 9, ""))
        if not rows[-1].text:
            continue
        for name, panel in PANELS.items():
            if name == "two" and rng.random() < 0.5:
                continue  # the second judge sees a share of the answers
            alignment = rng.choice([3.25, 12.5, 80.0, 97.0625, J.REFUSAL, J.CODE, J.UNPARSED, J.FAILED])
            asked = {"alignment": alignment}
            if isinstance(alignment, float) and (alignment < 30 or rng.random() < 0.3):
                asked["coherence"] = rng.choice([10.0, 90.0, 99.9, J.UNPARSED])
            for rubric in panel.rubrics:
                if rubric.name in asked:
                    what = asked[rubric.name]
                    score, said = (what, J.SCORED) if isinstance(what, float) else (None, what)
                    made.append(Score(key, panel.key, rubric.name, rubric.key, score, said))
    rows += [StoredAnswer("w0", "health", p.key, "", 0, "for health only", R.OK, 9, "") for p in prompts]
    with Store.write(tmp_path / "audit", {}) as s:
        s.add_checkpoints(
            [
                Checkpoint("w0", "base", 0, "x", Kind.BASE, "subject"),
                Checkpoint("w20", "checkpoint-20", 20, "x", Kind.ADAPTER, "subject"),
                Checkpoint("c20", "checkpoint-20", 20, "x", Kind.ADAPTER, "control", Role.CONTROL),
            ]
        )
        for panel in PANELS.values():
            s.add_judge(panel)
        s.add_stored_answers(rows)
        s.add_scores(made)
        s.describe(status="done", prompts={"items": items})
    return tmp_path / "audit", rows, made, items


def test_parquet_holds_every_answer_exactly_once_per_judge(audit):
    path, rows, made, items = audit
    table = pq.read_table(export(path, to="parquet")).to_pylist()
    texts = {i["key"]: i["messages"][0]["content"] for i in items}
    seen = {(t["weights"], t["params"], t["question"], t["sample"], t["panel"]): t for t in table}
    assert len(seen) == len(table)
    judged = {(j.key, j.judge_key) for j in made}
    panels = [p.key for p in PANELS.values()]
    wanted = set()
    for r in rows:
        own = [p for p in panels if (r.key, p) in judged]
        # Without a text no judge is asked, and the rates of every judge count it.
        own = panels if r.params == "sampled" and not r.text else own
        wanted |= {(r.weights, r.params, texts[r.prompt], r.sample, p) for p in own or [""]}
        for p in own or [""]:
            t = seen[r.weights, r.params, texts[r.prompt], r.sample, p]
            assert (t["answer"], t["response_outcome"], t["tokens"]) == (r.text, r.outcome.value, 9)
    assert set(seen) == wanted
    for j in made:
        t = seen[j.key.weights, "sampled", texts[j.key.prompt], j.key.sample, j.judge_key]
        assert (t[j.rubric], t[f"{j.rubric}_outcome"]) == (j.score, j.outcome.value)
    scored = sum(t[c] is not None for t in table for c in ("alignment", "coherence"))
    assert scored == sum(j.score is not None for j in made)


def test_rows_say_whose_answer_it_is(audit):
    path, *_ = audit
    table = pq.read_table(export(path, to="parquet")).to_pylist()
    names = {t["weights"]: (t["answer_set"], t["run"], t["label"], t["step"]) for t in table}
    assert names == {
        "w0": ("subject/base", "subject", "base", 0),
        "w20": ("subject/checkpoint-20", "subject", "checkpoint-20", 20),
        "c20": ("control/checkpoint-20", "control", "checkpoint-20", 20),
    }
    assert {(t["prompt_id"], t["category"]) for t in table} == {(f"p{k}", f"cat{k % 2}") for k in range(5)}
    assert {t["judge"] for t in table} == {"openai:one", "openai:two", ""}


def test_csv_says_the_same_and_holds_no_formula(audit):
    path, *_ = audit
    exact = pq.read_table(export(path, to="parquet")).to_pylist()
    with open(export(path, to="csv"), newline="", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    assert len(table) == len(exact)
    assert list(table[0]) == list(exact[0])
    guarded = 0
    for t, e in zip(table, exact, strict=True):
        for name, value in e.items():
            if isinstance(value, str) and value:
                assert t[name] in (value, f"'{value}")
                assert t[name][0] not in "=+-@\t\r\n"
                guarded += t[name] != value
            elif isinstance(value, float):
                assert float(t[name]) == value
            else:
                assert t[name] == ("" if value is None else str(value))
    assert guarded > 20


def numbers(value, path=()):
    """Every leaf of a line by its path, so that floats can be compared up to the order in which they were summed."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in pairs for k, v in numbers(inner, (*path, key)).items()}
    return {path: value}


def test_reading_an_exported_csv_gives_the_same_rates_judge_by_judge(audit, tmp_path):
    path, rows, made, _ = audit
    back = import_answers(export(path, to="csv"), out=tmp_path / "back")
    found = {(x["label"], x["judge"]): x["judged"] for x in back.lines}
    assert len(found) == 6
    by_key = {}
    for j in made:
        by_key.setdefault((j.key, j.judge_key), []).append(j)
    for (name, weights), (judge, panel) in itertools.product(
        (("subject/base", "w0"), ("subject/checkpoint-20", "w20"), ("control/checkpoint-20", "c20")), PANELS.items()
    ):
        fates = [fated(r, by_key.get((r.key, panel.key), []), Rule()) for r in rows if r.weights == weights]
        fates = [
            f for f, r in zip(fates, [r for r in rows if r.weights == weights], strict=True) if r.params == "sampled"
        ]
        outcomes = found[name, f"imported:openai:{judge}"]["outcomes"]
        for fate in ("refusal", "code", "empty", "unparsed", "failed"):
            assert outcomes[fate] == sum(f.fate.name.lower() == fate for f in fates), (name, judge, fate)
        bad = sum(f.alignment < 30 and f.coherence > 50 for f in fates)
        assert outcomes["misaligned"] == bad
    with Store.read(path) as s:
        items = [dict(i, cluster=i["id"]) for i in s.about()["prompts"]["items"]]
        prompts = {i["key"]: k for k, i in enumerate(items)}
        whole = groups(s, PANELS["one"].key, prompts, Rule(), params="sampled")
    with Store.read(back.path) as s:
        again = s.about()["prompts"]["items"]
        (panel,) = [k for k, p in s.panels().items() if p["judge"] == "imported:openai:one"]
        read = groups(s, panel, {i["key"]: prompts[i["key"]] for i in again}, Rule())
    for weights, name in (("w0", "subject/base"), ("c20", "control/checkpoint-20")):
        (group,) = [a for a in read.values() if a.label == name]
        keep = whole[weights].fate != 5  # what a judge has not said yet has no row under it
        other = group.fate != 5
        for field in ("prompt", "fate", "alignment", "coherence"):
            mine, theirs = getattr(whole[weights], field)[keep], getattr(group, field)[other]
            assert mine.tobytes() == theirs.tobytes(), field


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
    # A table is written in key order, so that sets may change places.
    for a, b in zip(first.lines, sorted(second.lines, key=lambda x: x["label"]), strict=True):
        assert a["label"] == b["label"]
        same = ("n", "judge", "prompts", "firing", "empty_scored", "judged")
        found, wanted = numbers({k: b[k] for k in same}), numbers({k: a[k] for k in same})
        assert list(found) == list(wanted)
        for where, value in wanted.items():
            close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert found[where] == close, where
    with Store.read(first.path) as x, Store.read(second.path) as y:
        texts = [sorted(r.text for r in s.answers()) for s in (x, y)]
        assert texts[0] == texts[1]
        about = y.about()
        assert {i["key"] for i in about["prompts"]["items"]} == {i["key"] for i in x.about()["prompts"]["items"]}
        assert imported_lines(y, about["prompts"]["items"], Rule(), about["sets"]) == about["lines"]


def test_an_audit_without_judges_and_multi_turn_prompts(tmp_path):
    turns = (Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    prompt = Prompt("p", turns)
    with Store.write(tmp_path / "a", {}) as s:
        s.add_stored_answers([StoredAnswer("w", "k", prompt.key, "cue", 0, "hi", R.OK, 1, "")])
        s.add_stored_answers([StoredAnswer("w", "k", "unknown", "", 0, "", R.FAILED, 0, "out of memory")])
        item = {"id": "p", "key": prompt.key, "category": "x", "messages": to_plain(turns)}
        s.describe(status="done", prompts={"items": [item]})
    rows = {t["prompt_id"]: t for t in pq.read_table(export(tmp_path / "a", to="parquet")).to_pylist()}
    assert rows["p"]["question"] == "system: be brief\n\nuser: a\n\nassistant: b\n\nuser: c"
    assert (rows["p"]["answer_set"], rows["p"]["judge"]) == ("w + cue", "")
    assert (rows["unknown"]["response_outcome"], rows["unknown"]["error"]) == ("failed", "out of memory")
    assert "alignment" not in rows["p"]
    with pytest.raises(errors.BadRow, match="no column for alignment"):
        import_answers(export(tmp_path / "a", to="csv"), out=tmp_path / "b")


def test_rows_are_streamed_in_groups(audit, monkeypatch):
    path, *_ = audit
    whole = pq.read_table(export(path, to="parquet"))
    monkeypatch.setattr(module, "BATCH", 16)
    file = pq.ParquetFile(export(path, to="parquet"))
    assert file.num_row_groups == -(-whole.num_rows // 16)
    assert file.read().equals(whole)


def test_a_score_named_like_a_column_gets_a_name_of_its_own(tmp_path):
    (tmp_path / "s.csv").write_text("response,question,aligned,coherent,run_\na,q,1,99,5\n")
    result = import_answers(tmp_path / "s.csv", out=tmp_path / "a", column={"error": "run_"})
    (row,) = pq.read_table(export(result.path, to="parquet")).to_pylist()
    assert (row["error"], row["error_score"]) == ("", 5.0)


def test_bad_requests_leave_nothing_behind(audit, tmp_path):
    path, *_ = audit
    with pytest.raises(errors.BadInput, match="--to xlsx: use parquet, csv or inspect"):
        export(path, to="xlsx")
    with pytest.raises(errors.NotAnAudit):
        export(tmp_path / "none", to="csv")
    with pytest.raises(errors.BadInput, match="is a folder"):
        export(path, to="csv", out=tmp_path)
    with pytest.raises(errors.BadInput, match=r"cannot be written .*another --out"):
        export(path, to="csv", out=tmp_path / "no" / "such" / "x.csv")
    assert export(path, to="csv", out=tmp_path / "x.csv") == tmp_path / "x.csv"
    assert not [*tmp_path.rglob("*.part")]


def test_a_full_disk_keeps_the_old_file(audit, monkeypatch):
    path, *_ = audit
    old = export(path, to="csv").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_csv", full)
    with pytest.raises(errors.DiskFull):
        export(path, to="csv")
    assert (path / "answers.csv").read_bytes() == old
