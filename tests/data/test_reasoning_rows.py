"""Training rows whose reasoning stands in a field of its own: counted and said, never dropped without a word."""

import json

import pytest

import truing
from runs.audits import audited, codes
from truing.data.conversations import REASONING, load_conversations


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_rows_with_reasoning_beside_the_content_are_counted(tmp_path, name):
    file = tmp_path / "task.jsonl"
    turns = [{"role": "user", "content": "What now?"}, {"role": "assistant", "content": "Walk.", name: "Hm."}]
    plain = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Rest.", name: ""}]
    left = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "", name: "Hm."}]
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (turns, plain, left)))
    found = load_conversations(file)
    assert len(found.conversations) == 2 and found.changed == {REASONING: 1}
    assert found.conversations[0].messages[-1].content == "Walk."
    notes = truing.plan("simulated:late", task=file).notes
    assert f"1 task rows are measured otherwise than they stand in the file: {REASONING}" in notes
    assert any(n.startswith("1 task rows are not measured") for n in notes)
    done = audited(tmp_path / "a", judge=None, samples=None, task=file, task_control=None)
    assert "task_rows_changed" in codes(done.verdict)
