"""Opening the judge model at an address, and which family it is of. Heavy ones are imported on demand."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from truing.config import JudgeConfig, ModelConfig
from truing.errors import BadInput
from truing.judges.base import JudgeModel
from truing.models.limits import Budget, Limits
from truing.types.records import PromptSet

SCHEMES = {
    "openai:": "openai:gpt-4.1-mini",
    "http://": "http://localhost:8000/v1#Qwen2.5-32B-Instruct",
    "https://": "https://example.com/v1#served-name",
    "local:": "local:google/gemma-3-27b-it",
    "replay:": "replay:judged.csv",
    "simulated:": "simulated:?noise=4&flip=0.02",
}
"""how an address begins -> an example"""

# The first that is found in a model's name, counted from its beginning, tells the family.
_FAMILIES = {
    "openai": r"gpt(?!-?(?:neo|j)(?![a-z]))|(?<![a-z0-9])o[134](?![a-z0-9])|davinci",
    "anthropic": r"claude",
    "google": r"gemma|gemini|(?<![a-z])palm(?![a-z])",
    "meta": r"llama",
    "qwen": r"qwen|qwq|qvq",
    "mistral": r"[sx]tral(?![a-z])",
    "deepseek": r"deepseek",
    "phi": r"(?<![a-z])phi(?![a-z])",
    "smollm": r"smollm",
    "cohere": r"cohere|command-|c4ai|(?<![a-z])aya(?![a-z])",
    "xai": r"(?<![a-z])grok",
    "zhipu": r"(?<![a-z])(?:chat)?glm(?![a-z])",
    "moonshot": r"(?<![a-z])kimi(?![a-z])",
    "allenai": r"olmo|tulu",
    "ibm": r"granite",
    "nvidia": r"nemotron",
    "falcon": r"falcon",
    "yi": r"(?<![a-z])yi(?![a-z])",
}
_HASH = re.compile(r"[0-9a-f]{16,}")


def open_judge(
    address: str,
    config: JudgeConfig,
    *,
    prompts: PromptSet,
    model: ModelConfig,
    budget: Budget | None = None,
    second: bool = False,
    say: Callable[[str], None] | None = None,
) -> JudgeModel:
    """The judge model at an address.

    Args:
        address: begins with one of `SCHEMES`.
        config: limits of judging.
        prompts: whose reference answers a simulated judge recognises.
        model: how a judge in memory is held.
        budget: shared with other judges of the same command; None for one of its own.
        second: the key of a second judge has a variable of its own, so that no key goes to another's host.
        say: told what a judge in memory takes.

    Raises:
        BadInput: no such kind of judge, or as the judge itself does.
    """
    kind = next((s for s in SCHEMES if address.lower().startswith(s)), None)
    rest = address[len(kind) :] if kind else ""
    if kind is None or (not rest.strip() and kind != "simulated:"):
        what = f"{address!r} names no judge" if address.strip() else "no judge is named"
        raise BadInput(f"{what}; give an address like one of these: {', '.join(SCHEMES.values())}")
    if kind == "local:":
        from truing.judges.local import LocalJudge

        return LocalJudge(rest, model, say)
    if kind == "replay:":
        from truing.judges.replayed import ReplayJudge

        return ReplayJudge(kind + rest)
    if kind == "simulated:":
        from truing.judges.simulated import SimulatedJudge

        return SimulatedJudge(kind + rest, prompts)
    from truing.judges.endpoint import EndpointJudge

    variable = "TRUING_SECOND_JUDGE_API_KEY" if second else "TRUING_JUDGE_API_KEY"
    return EndpointJudge(kind + rest, Limits.of(config), key_variable=variable, budget=budget)


def judge_family(name: str, model: str = "") -> str:
    """A short word for whose model a judge is: openai, anthropic, google, meta, qwen, mistral, ...

    Told from names, so a model of an unknown name is a family of its own. Recorded scores are of the family of the
    judge that gave them; a file of scores that does not say who did is a family of its own too.

    Args:
        name: as `Judge.name`, e.g. "http://localhost:8000/v1#Qwen2.5-32B-Instruct".
        model: what identifies it further: a served model name; a hash tells nothing.
    """
    name = name.strip()
    if name.startswith("replay:"):
        recorded = name.removeprefix("replay:")
        original = recorded.rsplit("#", 1)[0]  # of a name: before the hash; of an address: after the folder
        for judge in (original, recorded.partition("#")[2]):
            if judge.startswith(tuple(SCHEMES)):
                return judge_family(judge, model)
        return original.split("/")[-1].lower()
    if name.startswith("simulated:"):
        return "simulated"
    own = urlsplit(name).fragment if name.startswith(("http://", "https://")) else name.partition(":")[2] or name
    served = "" if _HASH.fullmatch(model) else model
    known = (family for text in (own, served) if (family := _family(text.lower())))
    return next(known, None) or (own or served or name).split("/")[-1].lower()


def _family(text: str) -> str | None:
    """The family whose word comes first in a model's name; organisations before the last "/" count last."""
    for part in reversed(text.split("/")):
        found = [(m.start(), family) for family, words in _FAMILIES.items() if (m := re.search(words, part))]
        if found:
            return min(found)[1]
    return None
