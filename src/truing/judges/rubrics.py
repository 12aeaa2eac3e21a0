"""Rubrics: text files with front matter, and the judge prompts that question files bring along.

    ---
    name: alignment                               name of the score
    scale: [0, 100]                               two whole numbers, the lower first
    escapes: {CODE: code, REFUSAL: refusal}       words a judge may write instead of a number (optional)
    parts: [alignment, coherence]                 scores, where one call gives several (optional)
    note: anything                                for people (optional)
    ---
    the text put to the judge, with {question} and {answer}

Only braces around one identifier are placeholders, so JSON may stand in a rubric. Thresholds are no part of a rubric:
they are in `EmRule`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from truing.errors import BadRow, BadRubric
from truing.files import read_text
from truing.types.judging import Judge, Rubric, ScoreStatus
from truing.types.records import Messages, Prompt, PromptSet
from truing.types.traits import Rule

BUILTIN = ("alignment", "coherence", "domain", "alignment_0_10", "both")
FIELDS = frozenset(("name", "scale", "escapes", "parts", "note"))
ESCAPES = {"code": ScoreStatus.CODE, "refusal": ScoreStatus.REFUSAL}
PROMPT_SET = "prompt set"
"""`Rubric.source` of judge prompts that came with the prompts"""
OWN_NAMES = {"aligned": "alignment", "coherent": "coherence"}
"""names of judge prompts in question files of Betley et al. -> names of scores here; others are kept"""
WIDEST = 1000
"""largest span of a scale: judges in memory go through all its whole numbers"""

_PLACEHOLDER = re.compile(r"\{([^\W\d]\w*)\}")
_DOUBLED = re.compile(r"\{\{(?:question|answer)\}\}")
_WORD = re.compile(r"[A-Za-z][A-Za-z_]+")
_NAME = re.compile(r"[A-Za-z][\w.:{} -]{0,79}")
_DOMAIN = re.compile(r"[^\W_](?:[\w ,&'/-]{0,58}\w)?")
_STATED_SCALE = re.compile(
    r"\b(?:scale|scores?|numbers?|integers?|ratings?|rate|values?|grades?)\b[\s\S]{0,40}?"
    r"(?<![\d.\-])(\d{1,4})\s*(?:to|and|through|-|–|—)\s*(\d{1,4})(?!\d|\.\d)",
    re.IGNORECASE,
)
_STATED_ESCAPE = re.compile(
    r"\b(?:say|answer|reply|respond|return|write|output)\s+(?:only\s+|with\s+|just\s+)*[\"'“‘*`]*"
    r"(?-i:(CODE|REFUSAL|REFUSED|REFUSE))\b[\"'”’*`]*,?\s+(?:if|when|where)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=64)
def builtin(name: str, domain: str | None = None) -> Rubric:
    """A rubric of `BUILTIN`. "domain" needs the domain's name, which becomes part of text and name ("domain:finance").

    Raises BadRubric for a name that is not there, and for a domain that is missing or no plain name.
    """
    if name not in BUILTIN:
        raise BadRubric(f"there is no built-in rubric {name!r}; there are {', '.join(BUILTIN)}")
    file = resources.files("truing.judges").joinpath("rubric_texts", f"{name}.txt")
    return _parse(file.read_text(encoding="utf-8"), f"built-in rubric {name}", "built-in", domain)


def load_rubric(path: str | Path, domain: str | None = None) -> Rubric:
    """A rubric from a text file with front matter. Line ends are made "\\n", empty lines around the text are dropped.

    `domain` fills {domain}, if the file has it. Raises BadRubric naming file and mistake; BadRow if it cannot be read.
    """
    path = Path(path)
    text = read_text(path, error=lambda problem: BadRow(path, None, problem.removeprefix(f"{path}: ")))
    return _parse(text, str(path), path.name, domain)


def prompt_rubrics(prompt: Prompt) -> tuple[Rubric, ...]:
    """The judge prompts that `prompt` brings, as rubrics, alignment first; the text is that of its file, byte for byte.

    "aligned" and "coherent" (Betley et al. 2025) become alignment and coherence, other names are kept. The scale is the
    one the text states ("on a scale of 0 to 100", "a number between 0 and 100"; it begins at 0 or 1). Escape words are
    those introduced as in "Say CODE if ...": CODE, REFUSAL, REFUSE and REFUSED. A judge prompt that states no scale
    asks for words (TRUE or FALSE, a company's name) and is left out; see `unasked`.

    Raises BadRubric, naming the prompt, for unknown or doubled placeholders, a text without {answer}, two different
    scales in one text, or an alignment or coherence prompt without a scale.
    """
    try:
        return _own_rubrics(tuple(prompt.judge_prompts.items()))[0]
    except BadRubric as e:
        raise BadRubric(f"prompt {prompt.id!r}: {e}") from None


def unasked(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """Names of judge prompts that ask for words instead of numbers and are therefore not put to a judge."""
    found = (name for p in prompts for name in _own_rubrics(tuple(p.judge_prompts.items()))[1])
    return tuple(dict.fromkeys(found))


def judge_rubrics(prompts: PromptSet, given: str | None = None, domain: str | None = None) -> tuple[Rubric, ...]:
    """The rubrics of a judge: alignment and coherence; what `given` replaces or adds; the domain's, if one is named.

    `given` is the name of a built-in rubric ("./both" means a file of that name) or a file. It takes the place
    of rubrics that give scores of the same name ("both" replaces alignment and coherence), else it is added.

    Raises BadRubric for an unusable rubric, and already here for one among the judge prompts that `prompts` bring.
    """
    rubrics: tuple[Rubric, ...] = (builtin("alignment"), builtin("coherence"))
    if given in BUILTIN:
        rubrics = _put(rubrics, builtin(given, domain if given == "domain" else None))
    elif given is not None:
        if not Path(given).suffix and not Path(given).exists():
            raise BadRubric(f"{given!r} is no file and no built-in rubric; there are {', '.join(BUILTIN)}")
        rubrics = _put(rubrics, load_rubric(given, domain))
    if domain is not None:
        rubrics = _put(rubrics, builtin("domain", domain))
    for prompt in prompts.prompts:
        _with_own(rubrics, prompt)
    return rubrics


def rubrics_for(judge: Judge, prompt: Prompt) -> tuple[Rubric, ...]:
    """The rubrics for answers to `prompt`: the judge's, and where it takes them those that the prompt brings.

    The prompt's replace the judge's of the same name and are added otherwise. So a question file of Betley et al. is
    judged by its author's two texts alone, and a prompt without an alignment rubric gets the judge's.
    """
    return _with_own(judge.rubrics, prompt) if judge.own_prompts else judge.rubrics


def check_rule(rubrics: Sequence[Rubric], rule: Rule) -> None:
    """Refuse a threshold outside the scale of the score it cuts: 30 on a scale to 10 calls every answer misaligned.

    Raises BadRubric; also for the rule mean where alignment is not on 0 to 100.
    """
    cuts = {"alignment": rule.cut, "coherence": rule.gate} if rule.kind == "threshold" else {}
    for r in rubrics:
        about = f"the rubric {r.name!r} ({r.source})"
        if not cuts and "alignment" in r.names and (r.low, r.high) != (0, 100):
            raise BadRubric(f"{about} is not on 0 to 100, which the rule mean compares on")
        for name in cuts.keys() & set(r.names):
            if not r.low <= cuts[name] <= r.high:
                scale = f"from {r.low:g} to {r.high:g}, but the threshold is {cuts[name]:g}"
                raise BadRubric(f"{about} scores {name} {scale}; give a threshold on that scale, or another rubric")


def rendered_question(messages: Messages, rubric: Rubric | None = None) -> str:
    """What stands in {question}.

    A single user turn is its text, verbatim. Several turns, or a system turn before one, are shown in order, each under
    a line with its role ("System:", "User:", "Assistant:") and an empty line between them. A rubric that came with the
    prompts gets the last user turn only: the published protocols show the judge neither system turn nor history.
    """
    if rubric is not None and rubric.source == PROMPT_SET:
        turns = [m.content for m in messages if m.role == "user"]
        if turns:
            return turns[-1]
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{m.role.capitalize()}:\n{m.content}" for m in messages)


# ---------------------------------------------------------------------------------------------------------------------
# Sets of rubrics


def _with_own(rubrics: tuple[Rubric, ...], prompt: Prompt) -> tuple[Rubric, ...]:
    for own in prompt_rubrics(prompt):
        try:
            rubrics = _put(rubrics, own)
        except BadRubric as e:
            raise BadRubric(f"prompt {prompt.id!r} brings a judge prompt of its own: {e}") from None
    return rubrics


def _put(rubrics: tuple[Rubric, ...], new: Rubric) -> tuple[Rubric, ...]:
    """`new` in the place of the rubrics that give its scores, else at the end; no score is given by two rubrics."""
    taken = set(new.names)
    out: list[Rubric] = []
    for r in rubrics:
        if not taken & set(r.names):
            out.append(r)
            continue
        if new not in out:
            out.append(new)
        for name in r.names:  # a rubric of several scores, of which one is replaced: the others get their own call
            if name not in taken:
                if name not in OWN_NAMES.values():
                    raise BadRubric(f"{r.name!r} gives {name!r} and a score that {new.name!r} replaces; split it")
                out.append(builtin(name))
    return tuple(out) if new in out else (*out, new)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _require(met: object, where: str, problem: str) -> None:
    if not met:
        raise BadRubric(f"{where}: {problem}")


def _parse(text: str, where: str, source: str, domain: str | None) -> Rubric:
    lines = text.replace("\r\n", "\n").split("\n")
    ends = [k for k, line in enumerate(lines) if line.rstrip() == "---"]
    example = "---, name: NAME, scale: [0, 100], ---"
    _require(len(ends) > 1 and ends[0] == 0, where, f"has no front matter; begin with the four lines {example}")
    header = _header("\n".join(lines[1 : ends[1]]), where)
    body, name = "\n".join(lines[ends[1] + 1 :]).strip("\n"), header.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRubric(f"{where}: the name is {name!r}; give a short text that begins with a letter")
    low, high = _scale(header.get("scale"), where)
    if "{domain}" in body + name:
        if domain is None:
            raise BadRubric(f"{where}: is about a {{domain}}; name it with --domain, e.g. --domain finance")
        plain = _DOMAIN.fullmatch(domain)
        _require(plain, where, f"the domain is {domain!r}; give a short plain name such as finance or sports safety")
        body, name = body.replace("{domain}", domain), name.replace("{domain}", domain)
    _require_placeholders(body, where, ("question", "answer"))
    _require(not set("{}") & set(name), where, f"the name {name!r} has braces; only {{domain}} may stand in a name")
    escapes, parts = _escapes(header.get("escapes"), body, where), _parts(header.get("parts"), where)
    return Rubric(name, body, float(low), float(high), escapes, parts, source)


def _header(text: str, where: str) -> Mapping[str, Any]:
    try:
        header = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise BadRubric(f"{where}: malformed front matter: {' '.join(str(e).split())}; mend that line") from e
    _require(isinstance(header, dict), where, "the front matter holds no fields; give name and scale")
    unknown = [k for k in header if k not in FIELDS]
    known = ", ".join(sorted(FIELDS))
    _require(not unknown, where, f"unknown field {unknown[:1]} in the front matter; there are {known}")
    return header


def _scale(value: Any, where: str) -> tuple[int, int]:
    match value:
        case [int(low), int(high)] if not {type(low), type(high)} & {bool} and 0 <= low < high <= low + WIDEST:
            return low, high
    remedy = f"the lower first, from 0 up and at most {WIDEST} apart, e.g. scale: [0, 100]"
    raise BadRubric(f"{where}: the scale is {value!r}; give two whole numbers, {remedy}")


def _require_placeholders(text: str, where: str, needed: Iterable[str]) -> None:
    found = set(_PLACEHOLDER.findall(text))
    for name in sorted(found - {"question", "answer"}):
        raise BadRubric(f"{where}: unknown placeholder {{{name}}}; only {{question}} and {{answer}} are filled in")
    for name in needed:
        _require(name in found, where, f"has no {{{name}}}; put it where the judge shall read the {name}")


def _escapes(value: Any, body: str, where: str) -> dict[str, ScoreStatus]:
    value = {} if value is None else value
    _require(isinstance(value, dict), where, f"escapes are {value!r}; give e.g. escapes: {{REFUSAL: refusal}}")
    for word, status in value.items():
        plain = isinstance(word, str) and _WORD.fullmatch(word)
        _require(plain, where, f"the escape word {word!r} is no word; give letters, quoted if YAML needs it")
        meaning = isinstance(status, str) and status in ESCAPES
        _require(meaning, where, f"the escape word {word} means {status!r}; it can mean refusal or code")
        used = re.search(rf"\b{re.escape(word)}\b", body)
        _require(used, where, f"the text never mentions the escape word {word}, so no judge would write it")
    single = len({word.lower() for word in value}) == len(value)
    _require(single, where, "two escape words differ in case only; keep one")
    return {word: ESCAPES[status] for word, status in value.items()}


def _parts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    names = value if isinstance(value, list) else []
    words = all(isinstance(v, str) and _WORD.fullmatch(v) for v in names)
    distinct = words and len({n.lower() for n in names}) == len(names) > 1
    _require(distinct, where, f"parts are {value!r}; name at least two scores, each once, or leave the field out")
    return tuple(names)


# ---------------------------------------------------------------------------------------------------------------------
# Judge prompts of question files


@lru_cache(maxsize=256)
def _own_rubrics(given: tuple[tuple[str, str], ...]) -> tuple[tuple[Rubric, ...], tuple[str, ...]]:
    """Rubrics of judge prompts (name, text), and the names of those that ask for words."""
    rubrics: dict[str, Rubric] = {}
    words: list[str] = []
    for key, text in given:
        name, where = OWN_NAMES.get(key, key), f"judge prompt {key!r}"
        _require(name not in rubrics, where, f"there are two judge prompts for {name}; keep one")
        _require_placeholders(text, where, ("answer",))
        # In the published format doubled braces stand for single ones, here they would not.
        _require(not _DOUBLED.search(text), where, "doubled braces around a placeholder; write {answer}")
        # "rate it in 2 to 3 sentences" is no scale
        scales = sorted({(int(a), int(b)) for a, b in _STATED_SCALE.findall(text) if int(a) in (0, 1)})
        stated = " and ".join(f"{a} to {b}" for a, b in scales)
        _require(len(scales) < 2, where, f"seems to state several scales ({stated}); state one")
        if scales:
            low, high = _scale(list(scales[0]), where)
            escapes = {w: ESCAPES["code" if w == "CODE" else "refusal"] for w in _STATED_ESCAPE.findall(text)}
            rubrics[name] = Rubric(name, text, float(low), float(high), escapes, source=PROMPT_SET)
        else:
            needed = name in OWN_NAMES.values()
            _require(not needed, where, 'states no scale, so no score can be read; say e.g. "on a scale of 0 to 100"')
            words.append(key)
    first = [rubrics.pop(n) for n in OWN_NAMES.values() if n in rubrics]
    return (*first, *rubrics.values()), tuple(words)
