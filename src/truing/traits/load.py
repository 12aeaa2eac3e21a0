"""Traits from folders: `trait.toml` with a rule, and prompts, rubrics or a scorer beside it."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from truing.errors import BadInput
from truing.files import CONFIG_LIMIT, is_file, is_folder, parse_toml, read_text
from truing.traits.scorers import check_scorer
from truing.types.hashing import digest
from truing.types.traits import Rule, Trait

BUILTIN = ("misalignment", "domain_leak", "technical_form", "refusal", "untruthfulness")
"""names that need no folder"""
_FIELDS = ("prompts", "rubrics", "scorer", "rule", "decoding")
_DECODING = ("temperature", "top_p", "max_tokens")


def load_trait(spec: str | Path) -> Trait:
    """A trait by its built-in name, or from a folder that holds a `trait.toml`.

    Files that it names (prompts, rubrics) are looked for beside it.

    Raises:
        BadInput: no such trait, or one that nothing could be decided by; the message names file and field.
    """
    name = str(spec)
    if name in BUILTIN:
        text = resources.files("truing.traits").joinpath("builtin", name, "trait.toml").read_text(encoding="utf-8")
        return _trait(name, text, None)
    folder = Path(spec)
    file = folder / "trait.toml" if is_folder(folder) else folder
    if file.name != "trait.toml" or not is_file(file):
        what = "the folder holds no trait.toml, so it is no such trait" if is_folder(folder) else "no such trait"
        raise BadInput(f"--trait {name}: {what}; give a folder with a trait.toml, or one of {', '.join(BUILTIN)}")
    text = read_text(file, limit=CONFIG_LIMIT).replace("\r\n", "\n")  # one hash, however lines end
    return _trait(file.parent.name, text, file.parent)


def _trait(name: str, text: str, folder: Path | None) -> Trait:
    where = f"{folder / 'trait.toml'}" if folder is not None else name
    plain = parse_toml(text, where)
    _known(plain, _FIELDS, where)
    for table, known in (("rule", [f.name for f in fields(Rule)]), ("decoding", _DECODING)):
        if not isinstance(plain.get(table, {}), dict):
            raise BadInput(f"{where}: {table} is not a table; write [{table}]")
        _known(plain.get(table, {}), known, f"{where}: {table}")
    rubrics = plain.get("rubrics", [])
    if not isinstance(rubrics, list) or not all(isinstance(r, str) for r in rubrics):
        raise BadInput(f"{where}: rubrics is not a list of names or files")
    scorer = plain.get("scorer")
    if scorer is not None:
        check_scorer(scorer, where)
    if "prompts" not in plain:
        raise BadInput(f"{where}: names no prompts; give a file beside it, or a built-in set")
    trait = Trait(
        name=name,
        rule=_rule(plain.get("rule", {}), where, scored=scorer is not None),
        prompts=_beside(str(plain["prompts"]), folder),
        scorer=scorer,
        rubrics=() if scorer is not None else tuple(_beside(r, folder) for r in rubrics),
        decoding=plain.get("decoding", {}),
        folder=str(folder) if folder is not None else "",
        sha256=digest(text),
    )
    if scorer is None and not trait.rubrics:
        raise BadInput(f"{where}: neither a scorer nor rubrics; one of them says what an answer is")
    return trait


def _rule(plain: Mapping[str, Any], where: str, *, scored: bool) -> Rule:
    """The rule; a scorer's answers are positive over 0.5 unless it says otherwise, and nothing gates them."""
    usual: dict[str, Any] = {}
    if scored:
        usual = {"score": "match", "side": "above", "cut": 0.5, "gate_score": None, "low": 0.0, "high": 1.0}
    given = {k: (v or None) if k == "gate_score" else v for k, v in plain.items()}
    try:
        rule = TypeAdapter(Rule).validate_python({**usual, **given})
        rule.check()
    except ValidationError as e:
        first = e.errors()[0]
        raise BadInput(f"{where}: rule: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e
    return rule


def _known(plain: Mapping[str, Any], known: Collection[str], where: str) -> None:
    if unknown := [k for k in plain if k not in known]:
        raise BadInput(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(known)}")


def _beside(name: str, folder: Path | None) -> str:
    """A file beside the trait, by its path; else the name of something built in."""
    return str(folder / name) if folder is not None and (folder / name).is_file() else name
