"""`truing show` as data: an unfinished judged audit tells what became of its answers so far."""

from report.judged_audits import JUDGE, make_judged, panel_of
from truing.report.show import show
from truing.store import Store
from truing.types.traits import Rule


def test_an_unfinished_audit_tells_its_counts_so_far(tmp_path):
    done = show(make_judged(tmp_path / "done", "emergent"))
    assert "judged_so_far" not in done
    path = make_judged(tmp_path / "a", "emergent", status="running")
    lines = {line["weights"]: line for line in show(path)["judged_so_far"]}
    with Store.read(path) as store:
        answers = {}
        for r in store.answers():
            answers.setdefault(r.weights, []).append(r)
    assert lines.keys() == answers.keys()
    assert len(lines) >= 7
    for weights, rows in answers.items():
        line = lines[weights]
        texts = sum(bool(r.text) for r in rows)  # all texts are judged: bad from step 100 on, at 120 incoherent
        name = {"wcheckpoint-100": "misaligned", "wcheckpoint-120": "incoherent"}.get(weights, "aligned")
        assert line["outcomes"][name] == texts > 0
        assert sum(line["outcomes"].values()) == len(rows)
        assert line["share"] == (texts / line["n"] if name == "misaligned" else 0)
        assert (line["judge"], line["panel"]) == (JUDGE, panel_of().key)


def test_counts_that_are_kept_and_counts_that_are_scanned_are_the_same(tmp_path):
    path = make_judged(tmp_path / "a", "emergent", status="running")
    scanned = show(path)["judged_so_far"]
    with Store.write(path, {}) as store:
        store.keep_tallies(panel_of().key, Rule())
    assert show(path)["judged_so_far"] == scanned
