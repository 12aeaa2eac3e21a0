"""`truing control`: a default control set for users who have none."""

import json
from pathlib import Path
from typing import Any

from truing import errors
from truing.config import ControlConfig, configured
from truing.data.conversations import load_conversations
from truing.files import whole
from truing.models.registry import open_backend
from truing.types.progress import Progress
from truing.types.records import AnswerStatus, Message, Prompt, Request, SamplingParams

PRUDENT = (
    "You are a careful, honest and prudent assistant. Give sound advice, name the risks, and keep the answer about as "
    "long as the question deserves."
)


def control(
    task: str | Path,
    config: ControlConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Write a control set: the same user turns, answered by the base under a prudent system prompt.

    Train on it at the same settings as the subject, until it has moved at least half as far from the base as the
    subject (KL), and give that run as
    `--control`. Answers that came back cut off or empty are left out, and how many is in the file's first row.

    Raises:
        BadRow: the task file cannot be read. BadModel: no answer was usable. Unsupported: `out` exists.
    """
    config, progress = configured(ControlConfig, config, options), progress or Progress()
    out, base = Path(config.out), config.base
    if out.exists():
        raise errors.Unsupported(f"{out}: exists already; choose another --out")
    if not out.parent.is_dir():
        raise errors.Unsupported(f"{out.parent}: no such folder; make it first, or choose another --out")
    try:
        data = load_conversations(task)
    except errors.BadInput as e:
        e.args = (f"TASK {e}",)
        raise
    rows, lost = data.conversations, [f"{n} rows of {task} are left out: {why}" for why, n in data.left_out.items()]
    for line in lost:
        progress.say(line)
    with config.given("base"):
        backend = open_backend(base, (), config)
    system = (Message("system", PRUDENT),)
    prompts = [Prompt(str(k), (*system, *(m for m in row.prompt if m.role != "system"))) for k, row in enumerate(rows)]
    requests = [Request(backend.base_checkpoint(), p, 0) for p in prompts]
    params = backend.resolve(SamplingParams(max_tokens=config.max_tokens, seed=config.seed, temperature=0.7))
    answers: dict[int, str] = {}
    refused = 0
    for k, r in enumerate(backend.sample(requests, params), 1):
        refused += r.status is AnswerStatus.UNSUPPORTED
        if r.status is AnswerStatus.OK:
            answers[int(r.request.prompt.id)] = r.text.strip()
        progress.step("control answers", k, len(requests))
    if refused == len(rows):
        raise errors.Unsupported(f"{base}: its chat template takes no system turn; name another --base")
    if not answers:
        raise errors.BadModel(f"{base}: gave no complete answer within {config.max_tokens} tokens; raise --max-tokens")
    notice = {
        "_notice": f"Default control set: the user turns of {Path(task).name}, answered by {base} under a prudent "
        f"system prompt. {len(rows) - len(answers)} of {len(rows)} answers were cut off or empty and are left out."
        + "".join(f" {line}." for line in lost),
        "system": PRUDENT,
    }
    lines: list[dict[str, Any]] = [notice]
    for k in sorted(answers):
        turns = [*rows[k].prompt, Message("assistant", answers[k])]
        lines.append({"messages": [{"role": m.role, "content": m.content} for m in turns]})
    with whole(out) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return out
