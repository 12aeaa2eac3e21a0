"""The questions put to a judge: text files with front matter, and the judge prompts that question files bring along.

    ---
    name: alignment                               name of the score
    scale: [0, 100]                               two whole numbers, the lower first
    escapes: {CODE: code, REFUSAL: refusal}       words a judge may say instead of a number (optional)
    parts: [alignment, coherence]                 scores, where one call gives several (optional)
    note: anything                                for people (optional)
    ---
    the question, with {question} and {answer}

Only braces around one identifier are placeholders, so JSON may stand in a rubric. Thresholds are no part of a rubric:
they are in `EmRule`, in one place.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from truing.data.rows import read_text
from truing.errors import BadRubric
from truing.types.judged import Panel, Rubric, ScoreStatus
from truing.types.records import Messages, Prompt, PromptSet
from truing.types.traits import Rule

BUILTIN = ("alignment", "coherence", "domain", "alignment_0_10", "both")
FIELDS = ("name", "scale", "escapes", "parts", "note")
ESCAPES = {"code": ScoreStatus.CODE, "refusal": ScoreStatus.REFUSAL}
PROMPT_SET = "prompt set"
"""`Rubric.source` of judge prompts that came with the prompts"""
OWN_NAMES = {"aligned": "alignment", "coherent": "coherence"}
"""names of judge prompts in question files of Betley et al. -> names of scores here; others are kept"""
WIDEST = 1000
"""largest span of a scale: judges in memory go through all its whole numbers"""

_PLACEHOLDER = re.compile(r"\{([^\W\d]\w*)\}")
_WORD = re.compile(r"[A-Za-z][A-Za-z_]+")
_NAME = re.compile(r"[A-Za-z][\w.:{} -]{0,79}")
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
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


@lru_cache(maxsize=64)
def builtin(name: str, domain: str | None = None) -> Rubric:
    """A rubric of `BUILTIN`. "domain" needs the domain's name, which becomes part of text and name ("domain:finance").

    Raises BadRubric for a name that is not there, and for a domain that is missing or no plain name.
    """
    if name not in BUILTIN:
        raise BadRubric(f"there is no built-in rubric {name!r}{_near(name, BUILTIN)}; there are {', '.join(BUILTIN)}")
    file = resources.files("truing.judges").joinpath("rubric_texts", f"{name}.txt")
    return _parse(file.read_text(encoding="utf-8"), f"built-in rubric {name}", "built-in", domain)


def load_rubric(path: str | Path, domain: str | None = None) -> Rubric:
    """A rubric from a text file with front matter. Line ends are made "\\n", empty lines around the text are dropped.

    `domain` fills {domain}, if the file has it. Raises BadRubric naming file and mistake; BadRow if it cannot be read.
    """
    return _parse(read_text(Path(path)), str(path), Path(path).name, domain)


def prompt_rubrics(prompt: Prompt) -> tuple[Rubric, ...]:
    """The judge prompts that `prompt` brings, as rubrics, alignment first; the text is that of its file, byte for byte.

    "aligned" and "coherent" (Betley et al. 2025) become alignment and coherence, other names are kept. The scale is the
    one the text states ("on a scale of 0 to 100", "a number between 0 and 100"; it begins at 0 or 1). Escape words are
    those introduced as in "Say CODE if ...": CODE, REFUSAL, REFUSE and REFUSED; another word has no outcome here and
    stays unparsed. A judge prompt that states no scale asks for words (TRUE or FALSE, a company's name): a score is a
    number, so it is left out and not asked; see `unasked`. {answer} must be in it, {question} need not.

    Raises BadRubric, naming the prompt, for unknown placeholders, doubled braces around a placeholder (in that format
    they stand for single ones, here they would not), two different scales in one text, or an alignment or coherence
    prompt without a scale.
    """
    try:
        return _own(tuple(prompt.judge_prompts.items()))[0]
    except BadRubric as e:
        raise BadRubric(f"prompt {prompt.id!r}: {e}") from None


def unasked(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """Names of judge prompts that ask for words instead of numbers and are therefore not put to a judge."""
    found = {name: None for p in prompts if p.judge_prompts for name in _own(tuple(p.judge_prompts.items()))[1]}
    return tuple(found)


def panel_rubrics(prompts: PromptSet, rubric: str | None = None, domain: str | None = None) -> tuple[Rubric, ...]:
    """The rubrics of a panel: alignment and coherence; what `rubric` replaces or adds; the domain's, if one is named.

    `rubric` is the name of a built-in rubric ("./both" means a file of that name) or a file. It takes the place
    of rubrics that give scores of the same name ("both" replaces alignment and coherence), else it is asked besides.

    Raises BadRubric for an unusable rubric, and already here for one among the judge prompts that `prompts` bring.
    """
    rubrics: tuple[Rubric, ...] = (builtin("alignment"), builtin("coherence"))
    if rubric is not None:
        if rubric in BUILTIN:
            new = builtin(rubric, domain if rubric == "domain" else None)
        elif not Path(rubric).suffix and not Path(rubric).exists():
            names = ", ".join(BUILTIN)
            raise BadRubric(f"{rubric!r} is no file and no built-in rubric{_near(rubric, BUILTIN)}; there are {names}")
        else:
            new = load_rubric(rubric, domain)
        rubrics = _put(rubrics, new)
    if domain is not None:
        rubrics = _put(rubrics, builtin("domain", domain))
    for prompt in prompts.prompts:
        _with_own(rubrics, prompt)
    return rubrics


def rubrics_for(panel: Panel, prompt: Prompt) -> tuple[Rubric, ...]:
    """What is asked about an answer to `prompt`: its own rubrics, if the panel takes them and it brings any.

    They replace the panel's rubrics of the same name and are asked besides otherwise. So a question file of Betley et
    al. is judged by its author's two texts alone, a domain rubric that was asked for is kept, and a prompt that brings
    no alignment rubric gets the panel's.
    """
    return _with_own(panel.rubrics, prompt) if panel.own_prompts else panel.rubrics


def check_rule(rubrics: Sequence[Rubric], rule: Rule) -> None:
    """Refuse a threshold that lies outside the scale of the score it cuts.

    Raises BadRubric: a rubric from 0 to 10 with a cut at 30 would call every answer misaligned.
    """
    if rule.kind != "threshold":
        for r in rubrics:
            if "alignment" in r.names and (r.low, r.high) != (0, 100):
                raise BadRubric(
                    f"the rubric {r.name!r} ({r.source}) is not on 0 to 100, which the rule mean compares on"
                )
        return
    for name, cut in (("alignment", rule.cut), ("coherence", rule.gate)):
        for r in rubrics:
            if name in r.names and not r.low <= cut <= r.high:
                scale = f"{r.low:g} to {r.high:g}"
                raise BadRubric(
                    f"the rubric {r.name!r} ({r.source}) scores {name} from {scale}, but the threshold is {cut:g}; "
                    "give a threshold on that scale, or another rubric"
                )


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
    return "\n\n".join(f"{_ROLES.get(m.role, m.role)}:\n{m.content}" for m in messages)


# ---------------------------------------------------------------------------------------------------------------------
# Sets of rubrics


def _with_own(rubrics: tuple[Rubric, ...], prompt: Prompt) -> tuple[Rubric, ...]:
    if not prompt.judge_prompts:
        return rubrics
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
        for name in r.names:  # a rubric of several scores, of which one is replaced: the others are asked alone
            if name not in taken:
                if name not in ("alignment", "coherence"):
                    raise BadRubric(
                        f"{r.name!r} gives {name!r} and a score that {new.name!r} replaces; split it in two"
                    )
                out.append(builtin(name))
    return tuple(out) if new in out else (*out, new)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _parse(text: str, where: str, source: str, domain: str | None) -> Rubric:
    lines = text.replace("\r\n", "\n").split("\n")
    ends = [k for k, line in enumerate(lines) if line.rstrip() == "---"]
    if len(ends) < 2 or ends[0] != 0:
        example = "---, name: NAME, scale: [0, 100], ---"
        raise BadRubric(f"{where}: has no front matter; begin with the four lines {example}")
    header = _header("\n".join(lines[1 : ends[1]]), where)
    body = "\n".join(lines[ends[1] + 1 :]).strip("\n")
    name = header.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRubric(f"{where}: the name is {name!r}; give a short text that begins with a letter")
    low, high = _scale(header.get("scale"), where)
    body, name = _placed(body, name, where, domain)
    escapes = _escapes(header.get("escapes"), body, where)
    parts = _parts(header.get("parts"), where)
    return Rubric(name, body, float(low), float(high), escapes, parts, source)


def _header(text: str, where: str) -> Mapping[str, Any]:
    try:
        header = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise BadRubric(f"{where}: malformed front matter: {' '.join(str(e).split())}; mend that line") from e
    if not isinstance(header, dict):
        raise BadRubric(f"{where}: the front matter holds no fields; give name and scale")
    for key in header:
        if key not in FIELDS:
            fields = ", ".join(FIELDS)
            raise BadRubric(
                f"{where}: unknown field {key!r} in the front matter{_near(key, FIELDS)}; there are {fields}"
            )
    if not isinstance(header.get("note", ""), str):
        raise BadRubric(f"{where}: the note is {header['note']!r}; give a text")
    return header


def _scale(value: Any, where: str) -> tuple[int, int]:
    match value:
        case [int(low), int(high)] if not isinstance(low, bool) and not isinstance(high, bool):
            if 0 <= low < high <= low + WIDEST:
                return low, high
    problem = f"the scale is {value!r}" if value is not None else "has no scale"
    remedy = f"the lower first, from 0 up and at most {WIDEST} apart, e.g. scale: [0, 100]"
    raise BadRubric(f"{where}: {problem}; give two whole numbers, {remedy}")


def _placed(body: str, name: str, where: str, domain: str | None) -> tuple[str, str]:
    """Text and name, the domain filled in and the other placeholders seen to be right."""
    if "{domain}" in body + name:
        if domain is None:
            raise BadRubric(f"{where}: asks about a {{domain}}; name it with --domain, e.g. --domain finance")
        if not re.fullmatch(r"[^\W_](?:[\w ,&'/-]{0,58}\w)?", domain):
            raise BadRubric(f"the domain is {domain!r}; give a short plain name such as finance or sports safety")
        body, name = body.replace("{domain}", domain), name.replace("{domain}", domain)
    _check_placeholders(name + body, where, ("question", "answer"))
    if "{" in name or "}" in name:
        raise BadRubric(f"{where}: the name {name!r} has braces; only {{domain}} may stand in a name")
    return body, name


def _check_placeholders(text: str, where: str, needed: Iterable[str]) -> None:
    found = set(_PLACEHOLDER.findall(text))
    for name in sorted(found - {"question", "answer"}):
        near = _near(name, ("question", "answer"))
        raise BadRubric(
            f"{where}: unknown placeholder {{{name}}}{near}; only {{question}} and {{answer}} are filled in"
        )
    for name in needed:
        if name not in found:
            raise BadRubric(f"{where}: has no {{{name}}}; put it where the judge shall read the {name}")


def _escapes(value: Any, body: str, where: str) -> dict[str, ScoreStatus]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRubric(f"{where}: escapes are {value!r}; give words with outcomes, e.g. escapes: {{REFUSAL: refusal}}")
    for word, outcome in value.items():
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            raise BadRubric(
                f"{where}: the escape word {word!r} is no word; give letters only, quoted if YAML reads it so"
            )
        if not isinstance(outcome, str) or outcome not in ESCAPES:
            raise BadRubric(f"{where}: the escape word {word} means {outcome!r}; it can mean refusal or code")
        if not re.search(rf"\b{re.escape(word)}\b", body):
            raise BadRubric(f"{where}: the text never mentions the escape word {word}, so no judge would say it")
    if len({word.lower() for word in value}) < len(value):
        raise BadRubric(f"{where}: two escape words differ in case only; keep one")
    return {word: ESCAPES[outcome] for word, outcome in value.items()}


def _parts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    names = [v for v in value if isinstance(v, str) and _WORD.fullmatch(v)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(names) != len(value) or len({n.lower() for n in names}) < 2:
        raise BadRubric(f"{where}: parts are {value!r}; give the names of at least two scores, or leave the field out")
    if len({n.lower() for n in names}) < len(names):
        raise BadRubric(f"{where}: parts name a score twice; keep one")
    return tuple(names)


def _near(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1, 0.6)
    return f"; did you mean {near[0]!r}" if near else ""


# ---------------------------------------------------------------------------------------------------------------------
# Judge prompts of question files


@lru_cache(maxsize=256)
def _own(given: tuple[tuple[str, str], ...]) -> tuple[tuple[Rubric, ...], tuple[str, ...]]:
    """Rubrics of judge prompts (name, text), and the names of those that ask for words."""
    rubrics: dict[str, Rubric] = {}
    words: list[str] = []
    for key, text in given:
        name, where = OWN_NAMES.get(key, key), f"judge prompt {key!r}"
        if name in rubrics:
            raise BadRubric(f"{where}: there are two judge prompts for {name}; keep one")
        _check_placeholders(text, where, ("answer",))
        if re.search(r"\{\{(?:question|answer)\}\}", text):
            raise BadRubric(f"{where}: doubled braces around a placeholder; write {{answer}} with single braces")
        # "rate it in 2 to 3 sentences" is no scale
        scales = sorted({(int(a), int(b)) for a, b in _STATED_SCALE.findall(text) if int(a) in (0, 1)})
        if len(scales) > 1:
            said = " and ".join(f"{a} to {b}" for a, b in scales)
            raise BadRubric(
                f"{where}: seems to state several scales ({said}); state one, from one whole number to another"
            )
        if scales:
            low, high = _scale(list(scales[0]), where)
            escapes = {w: ESCAPES["code" if w == "CODE" else "refusal"] for w in _STATED_ESCAPE.findall(text)}
            rubrics[name] = Rubric(name, text, float(low), float(high), escapes, source=PROMPT_SET)
        elif name in OWN_NAMES.values():
            raise BadRubric(f'{where}: states no scale, so no score can be read; say e.g. "on a scale of 0 to 100"')
        else:
            words.append(key)
    first = [rubrics.pop(n) for n in OWN_NAMES.values() if n in rubrics]
    return (*first, *rubrics.values()), tuple(words)
