"""An audit folder as what a reader needs: records from audit.json, numbers and words as text, nothing untrusted raw.

audit.json holds the verdict as plain JSON (`records.to_plain`); here it becomes a `Verdict` again. Every text that
came from outside passes `clean` before it is shown anywhere.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from truing.errors import NotAnAudit
from truing.types.verdicts import CheckpointVerdict, Estimate, Status, Verdict

MISSING = "–"


def tone(line: CheckpointVerdict) -> str:
    """Which of four tones a status is set in; the word itself always stands beside it."""
    if line.status is Status.CLEAN:
        return "calm"
    if line.status is Status.FAILED or line.health.broken:
        return "broken"
    unknown = (Status.NO_CHANGE_SEEN, Status.UNDECIDED, Status.UNTESTED)
    return "unknown" if line.status in unknown else "bad"


# ---------------------------------------------------------------------------------------------------------------------
# Untrusted text


def clean(value: object) -> str:
    """Text safe to print: control, direction-changing and invisible characters become escapes, newlines and tabs stay.

    This is the one place where text from outside is made harmless; everything that goes to a terminal passes it.
    """
    return _NOT_ASCII.sub(_shown, str(value).replace("\r\n", "\n"))


def one_line(value: object) -> str:
    """`clean` on one line."""
    return re.sub(r"\s+", " ", clean(value)).strip()


_NOT_ASCII = re.compile(r"[^ -~\n\t]")
_JOINERS = "\u200c\u200d"
_BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0"  # letters and marks by category, and nothing to see
_JOINED = ("Lo", "Mn", "Mc", "So", "Sk")  # what a joiner shapes: emoji, Indic and Arabic script


def _shown(found: re.Match[str]) -> str:
    char, category = found[0], unicodedata.category(found[0])
    hidden = category in ("Cc", "Cs", "Cf", "Zl", "Zp") or char in _BLANK
    if char in _JOINERS and found.start():
        hidden = unicodedata.category(found.string[found.start() - 1]) not in _JOINED
    return char.encode("unicode_escape").decode() if hidden else char


# ---------------------------------------------------------------------------------------------------------------------
# Records from audit.json


def verdict_of(about: Mapping[str, Any]) -> Verdict | None:
    """The verdict of an audit, None while there is none yet.

    Raises:
        NotAnAudit: audit.json holds a verdict that cannot be read.
    """
    plain = about.get("verdict")
    return None if plain is None else Verdict.from_plain(plain)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and short phrases


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash; never a zero for something missing, never a minus zero."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval(e: Estimate | None, digits: int = 2, scale: float = 1.0, *, of: Literal["", "set_"] = "") -> str:
    """`value [low, high]`, for items like these or (set_) for exactly these; no bracket where there is no interval."""
    if e is None or e.value is None:
        return MISSING
    inner = ends(getattr(e, f"{of}low"), getattr(e, f"{of}high"), digits, scale)
    return number(e.value * scale, digits) + (f" [{inner}]" if inner else "")


def plain_estimate(plain: Mapping[str, Any]) -> Estimate:
    """An estimate again from its plain form: the number and its two intervals."""
    return Estimate(*(plain[k] for k in ("value", "low", "high", "set_low", "set_high")))


def percent(value: float | None, digits: int = 1) -> str:
    """`11.0 %`, or a dash."""
    return MISSING if value is None else f"{number(100 * value, digits)} %"


def ends(low: float | None, high: float | None, digits: int = 1, scale: float = 100.0) -> str:
    """`8.5, 14.2`; empty without an interval."""
    if low is None or high is None:
        return ""
    return f"{number(low * scale, digits)}, {number(high * scale, digits)}"


def judge_name(judge: object) -> str:
    """A judge's name for people; the simulated one has nothing after its colon."""
    return one_line(judge or "an unnamed judge").rstrip(":")


def step_name(line: CheckpointVerdict) -> str:
    """`step 40`, with the label where it says more than the step does; the label alone without a step."""
    if line.step is None:
        return one_line(line.label)
    return f"step {line.step}" + (f" ({one_line(line.label)})" if not plain_label(line) else "")


def plain_label(line: CheckpointVerdict) -> bool:
    """Whether the label only repeats the step."""
    return line.step is not None and line.label in (f"checkpoint-{line.step}", str(line.step))


def distinct(texts: Iterable[object]) -> list[str]:
    """Texts on one line each, every one once, in their order."""
    return list(dict.fromkeys(one_line(t) for t in texts))


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


class PromptItem(NamedTuple):
    """One prompt as audit.json lists it, safe to print but for its key."""

    key: str
    """what its answers are stored under"""
    id: str
    """unique in its set"""
    category: str
    """kind of question"""
    turns: list[tuple[str, str]]
    """(role, text) of each turn"""


def prompt_items(about: Mapping[str, Any]) -> list[PromptItem]:
    """The prompts of an audit, in the order of their set.

    Raises:
        NotAnAudit: the list in audit.json cannot be read.
    """
    try:
        return [
            PromptItem(
                str(item["key"]),
                one_line(item["id"]),
                one_line(item.get("category") or "uncategorised"),
                [(one_line(m["role"]), clean(m["content"])) for m in item["messages"]],
            )
            for item in (about.get("prompts") or {}).get("items") or ()
        ]
    except (KeyError, TypeError, AttributeError) as e:
        text = f"audit.json: its list of prompts cannot be read ({type(e).__name__}: {e}); run the audit again"
        raise NotAnAudit(text) from e
