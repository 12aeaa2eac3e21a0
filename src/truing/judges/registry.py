"""Opening the judge model at an address, and which family it is of. Heavy ones are imported on demand."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from truing.config import JudgeConfig, ModelConfig
from truing.errors import BadInput
from truing.judges.base import JudgeModel
from truing.types.records import PromptSet

SCHEMES = {
    "openai:": ("openai:gpt-4.1-mini", "truing.judges.endpoint:open_endpoint"),
    "http://": ("http://localhost:8000/v1#Qwen2.5-32B-Instruct", "truing.judges.endpoint:open_endpoint"),
    "https://": ("https://example.com/v1#served-name", "truing.judges.endpoint:open_endpoint"),
    "local:": ("local:google/gemma-3-27b-it", "truing.judges.local:open_local_judge"),
    "replay:": ("replay:judged.csv", "truing.judges.replayed:open_replayed"),
    "simulated:": ("simulated:?noise=4&flip=0.02", "truing.judges.simulated:open_simulated_judge"),
}
"""how an address begins -> an example, and the function that opens it"""


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


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What opening a judge may need besides its address."""

    config: JudgeConfig
    """limits of judging"""
    model: ModelConfig
    """how a judge in memory is held"""
    prompts: PromptSet
    """whose reference answers a simulated judge recognises"""
    budget: Any = None
    """shared with other judges of the same command; None for one of its own"""
    second: bool = False
    """the key of a second judge has a variable of its own, so that no key goes to another's host"""
    say: Callable[[str], None] | None = None
    """told what a judge in memory takes, and where a served one is called otherwise"""
    answered: Mapping[str, str] = field(default_factory=dict)
    """name of a served judge -> the model that answered under it before, in this audit"""


def open_judge(address: str, context: JudgeContext) -> JudgeModel:
    """The judge model at an address, which begins with one of `SCHEMES`.

    Raises:
        BadInput: no such kind of judge, or as the judge itself does.
    """
    scheme = next((s for s in SCHEMES if address.lower().startswith(s)), None)
    rest = address[len(scheme) :] if scheme else ""
    if scheme is None or (not rest.strip() and scheme != "simulated:"):
        what = f"{address!r} names no judge" if address.strip() else "no judge is named"
        raise BadInput(f"{what}; give an address like one of these: {', '.join(e for e, _ in SCHEMES.values())}")
    module, _, name = SCHEMES[scheme][1].partition(":")
    return getattr(import_module(module), name)(scheme + rest, context)


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
