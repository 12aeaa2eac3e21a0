"""One prompt's stored answers in a terminal, by run and step, with what judges said of each."""

import difflib
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from truing.errors import BadInput
from truing.report.fitting import say, text
from truing.report.reading import MISSING, clean, one_line, prompt_items
from truing.report.scores import Judges
from truing.store import Store, StoredAnswer
from truing.types.records import AnswerStatus, Checkpoint, Role


def print_answers(about: Mapping[str, Any], store: Store, prompt_id: str, console: Console) -> None:
    """One prompt's stored answers at every checkpoint.

    Raises:
        BadInput: no prompt of that id in the audit (near ids are named), or no answer to it is stored.
    """
    items = {p.id: p for p in prompt_items(about)}
    item = items.get(prompt_id)
    if item is None:
        near = difflib.get_close_matches(prompt_id, items, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {len(items)} prompts"
        raise BadInput(f"prompt {one_line(prompt_id)!r}: not in this audit; {one_line(hint)}")
    answers: dict[str, list[StoredAnswer]] = {}
    for r in store.answers(prompt=item.key):
        answers.setdefault(r.weights, []).append(r)
    if not answers:
        raise BadInput(
            f"prompt {one_line(prompt_id)!r}: no answers stored; health is sampled on a few prompts only, which the "
            "report lists"
        )
    say(console, f"{one_line(item.id)}  {one_line(item.category)}", "bold")
    for role, content in item.messages:
        say(console, f"{one_line(role)}: {clean(content)}")
    judges = Judges(store, about)
    known: dict[str, Checkpoint] = {}
    for c in store.checkpoints():
        known.setdefault(c.weights, c)
    for c in known.values():
        if c.weights not in answers:
            continue
        step = "no step" if c.step is None else f"step {c.step}"
        run = "" if c.role is Role.SUBJECT else f", {c.role.value} run {one_line(c.run)}"
        console.print()
        console.rule(text(console.options, f"{step}, {one_line(c.label)}{run}"), align="left", characters="-")
        for r in answers[c.weights]:
            tag = "" if r.outcome is AnswerStatus.OK else f"[{r.outcome.value}] "
            name = f" ({one_line(r.transform)})" if r.transform else ""
            say(console, f"{r.sample + 1}{name}. {tag}{clean(r.text or r.error) or MISSING}")
            for found in judges.of(r):
                say(console, f"   {judges.words(found)}", "red" if found.positive else "dim")
