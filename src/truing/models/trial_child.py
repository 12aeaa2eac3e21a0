"""Run by `truing.models.trial` as a process of its own: tries what a model's folder brings, within limits.

    python -I trial_child.py SECONDS BYTES < {"tokenizer": FILE, "templates": [...], "patterns": [...], ...}

It prints what it is about to try, a word a line, and ends with 0 if all of it came to an end. What a template or a
tokenizer refuses is no failure here: who uses it afterwards says so. Imports nothing of truing.
"""

import json
import re
import resource
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

MOST_TEXT = 1 << 20  # characters that one short question may become
TOO_MUCH = 3


def _limit(seconds: int, size: int) -> None:
    seconds += int(time.process_time())
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as f:
        size += int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with suppress(ValueError, OSError):  # not every system bounds it
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _stage(word: str) -> None:
    print(word, flush=True)


def _tokenizer(file: str, folder: str, texts: list[str]) -> Any:
    try:
        made = _of_file(file) if file else _from_parts(folder)
    except MemoryError:
        raise
    except Exception:  # whatever is wrong with it is said where it is loaded
        return None
    for text in texts:
        made.encode(text, add_special_tokens=False)
    return made


def _of_file(file: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def _from_parts(folder: str) -> Any:
    """As transformers makes it of a vocabulary."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _environment() -> Any:
    """As transformers makes it for chat templates, but for its tag `generation`, which the text here has no more."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False)
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "2026-01-01"}
    return made


def _render(environment: Any, source: str, about: dict[str, Any]) -> list[str]:
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
    out = []
    for messages in about["messages"]:
        for generation in (False, True):
            options = {**about["tokens"], "add_generation_prompt": generation, "enable_thinking": False}
            try:
                text = environment.from_string(plain).render(messages=messages, tools=None, **options)
            except MemoryError:
                raise
            except Exception:  # it may refuse these turns
                continue
            if len(text) > MOST_TEXT:
                sys.exit(TOO_MUCH)
            out.append(text)
    return out


def main() -> None:
    """Try it all."""
    about = json.loads(sys.stdin.buffer.read())
    if about["parts"]:
        import_module("transformers.models.auto.tokenization_auto")  # takes seconds, which are not the folder's
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    _stage("pattern")
    for pattern in about["patterns"]:
        with suppress(re.error, RecursionError, OverflowError):
            for name in about["names"]:
                re.fullmatch(pattern, name)
                re.match(rf"(.*\.)?({pattern})$", name)
    _stage("tokenizer")
    given = about["tokenizer"] or about["parts"]
    tokenizer = _tokenizer(about["tokenizer"], about["parts"], about["texts"]) if given else None
    _stage("template")
    environment = _environment()
    for source in about["templates"]:
        for text in _render(environment, source, about):
            if tokenizer is not None:
                tokenizer.encode(text, add_special_tokens=False)


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        sys.exit(TOO_MUCH)
