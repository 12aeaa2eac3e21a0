"""What a model's folder brings besides weights is tried in a process of its own, within limits, before it is used here.

A chat template is a program, a tokenizer holds regular expressions, and so may an adapter's `target_modules`: each can
be written so that it never ends, or fills the memory. They are tried once per content on fixed short inputs; contents
that passed are remembered in the cache.

What this does not hold off: a template that behaves on these inputs and not on others, since it sees what it renders.
It runs in the sandbox that transformers uses and reaches no file and no network; the worst is an audit that hangs or
runs out of memory, which loses nothing that was committed. A tokenizer without a `tokenizer.json` is made by
transformers, in that process too; code that its folder brings is not run there.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from truing import files
from truing.errors import BadModel
from truing.models.bounds import check_sizes
from truing.models.download import cache_dir
from truing.models.weights import ADAPTER_CONFIG, read_json, weight_files
from truing.models.weights import header as tensors_of

SECONDS = 10
"""of computing that a folder's template, tokenizer and patterns may take together"""
MEMORY = 2 << 30
"""bytes likewise"""
TOKENIZER_LIMIT, TEMPLATE_LIMIT = 256 << 20, 1 << 20
"""bytes of the largest file of either kind"""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json")
"""what decides how a chat is rendered and turned into tokens"""
_OTHERS = ("spiece.model", "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt", "tiktoken.model")
_PARTS = (
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tiktoken.model",
    "added_tokens.json",
)
"""what a tokenizer without a tokenizer.json is made from"""
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
_WAITING = 6  # times the seconds, before a child that does not even compute is ended
_CHILD = Path(__file__).with_name("trial_child.py")
_QUESTION = {"role": "user", "content": "Which way is north?"}
_ANSWER = {"role": "assistant", "content": " Quartz 7 jumps over Kyiv "}
_SYSTEM = {"role": "system", "content": "Be brief."}
_MESSAGES = ([_QUESTION, _ANSWER], [_SYSTEM, _QUESTION, _ANSWER, _QUESTION, _ANSWER], [_QUESTION])
_TEXTS = (
    "Which way is north? Quartz 7 jumps over Kyiv, 3.14 times.\n\n",
    *(unit * 400 for unit in ("a", "a ", " ", "1", "a1", ".", "\n", "Ab-c_d ", "\u00e9", "\u4f60")),
)
_NAMES = tuple(
    f"model.layers.{layer}.{part}"
    for layer in (0, 10)
    for part in ("self_attn.q_proj", "mlp.experts.gate_up_proj", "language_model.self_attn.k_proj.base_layer")
)
_passed: set[str] = set()


def try_folder(folder: Path, template: str | None = None) -> None:
    """See that what a folder brings comes to an end, and of what size its files are.

    Args:
        folder: of a model or an adapter.
        template: the text of one that is used instead of the folder's own.

    Raises:
        BadModel, DamagedWeights: it does not, it needs too much memory, or a file is too large or no file.
    """
    check_sizes(folder)
    read: dict[str, bytes] = {}
    for name in (*TOKENIZER_FILES, *_OTHERS):
        if (folder / name).exists():
            limit = TEMPLATE_LIMIT if name.endswith(".jinja") else TOKENIZER_LIMIT
            read[name] = files.read_bytes(folder / name, limit=limit, error=BadModel)
    settings = _settings(folder) if "tokenizer_config.json" in read else {}
    patterns = _patterns(folder)
    about = {
        "tokenizer": str(folder.absolute() / "tokenizer.json") if "tokenizer.json" in read else "",
        "parts": str(folder.absolute()) if "tokenizer.json" not in read and read.keys() & set(_PARTS) else "",
        "templates": [template] if template is not None else list(_templates(folder, read, settings)),
        "tokens": {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, str)},
        "messages": [*_MESSAGES, *([_in_parts(m) for m in turns] for turns in _MESSAGES)],
        "texts": _TEXTS,
        "patterns": patterns,
        "names": [*_NAMES, *_module_names(folder)] if patterns else [],
    }
    if about["tokenizer"] or about["parts"] or about["templates"] or patterns:
        vocabulary = [read.get(name, b"") for name in ("tokenizer.json", *(_PARTS if about["parts"] else ()))]
        content = [*vocabulary, json.dumps({**about, "tokenizer": "", "parts": ""}).encode(), b"2"]
        _once(folder, about, sha256(b"\0".join(content)).hexdigest())


def _once(folder: Path, about: dict[str, Any], key: str) -> None:
    mark = cache_dir() / "tried" / key
    if key in _passed or files.is_file(mark):
        return
    command = [sys.executable, "-I", str(_CHILD), str(SECONDS), str(MEMORY)]
    environment = {"TOKENIZERS_PARALLELISM": "false", "PATH": "", "HF_HUB_OFFLINE": "1"}  # no keys of the user's
    wait = SECONDS * _WAITING
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        try:
            said, _ = child.communicate(json.dumps(about).encode(), timeout=wait)
        except subprocess.TimeoutExpired:
            child.kill()
            said, _ = child.communicate()
        code = child.returncode
    if code:
        raise BadModel(f"{folder}: {_what(said.decode().split()[-1:], folder)}")
    _passed.add(key)
    with suppress(OSError):  # where nothing can be kept it is tried again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _what(stage: list[str], folder: Path) -> str:
    limits = f"takes over {SECONDS} s or {MEMORY >> 30} GiB for a short question; "
    if stage == ["pattern"]:
        return f"a module pattern in its {ADAPTER_CONFIG} {limits}name the modules one by one in it"
    if stage == ["template"]:
        return f"its chat template {limits}pass a working one with --chat-template FILE"
    return f"its tokenizer {limits}put the tokenizer of the base in its place"


def _settings(folder: Path) -> dict[str, Any]:
    return files.read_object(folder / "tokenizer_config.json", error=BadModel, remedy="copy it again")


def _templates(folder: Path, read: dict[str, bytes], settings: dict[str, Any]) -> Iterator[str]:
    if "chat_template.jinja" in read:
        yield read["chat_template.jinja"].decode("utf-8", "replace")
    given = settings.get("chat_template")
    for found in given if isinstance(given, list) else [given]:
        text = found.get("template") if isinstance(found, dict) else found
        if isinstance(text, str):
            yield text[:TEMPLATE_LIMIT]
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        yield files.read_text(file, limit=TEMPLATE_LIMIT, error=BadModel)


def _patterns(folder: Path) -> list[str]:
    """The regular expressions of an adapter's configuration: of names, and keys of names."""
    if not (folder / ADAPTER_CONFIG).exists():
        return []
    config = read_json(folder / ADAPTER_CONFIG)
    found = [v for k in _PATTERNS for v in [config.get(k)] if isinstance(v, str)]
    found += [key for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or ()]
    for pattern in found:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as e:
            raise BadModel(f"{folder / ADAPTER_CONFIG}: {pattern!r:.80} is no regular expression ({e}); mend it") from e
    return found


def _module_names(folder: Path) -> list[str]:
    found = (t.name.removeprefix("base_model.model.") for file in weight_files(folder) for t in tensors_of(file))
    return list(dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in found))[:1000]


def _in_parts(message: dict[str, str]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
