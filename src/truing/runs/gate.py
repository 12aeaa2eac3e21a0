"""`truing.gate`: whether a checkpoint of a finished audit may go out, by what the evidence in the store gives.

audit -> its evidence -> the verdict again -> the one that is stored? -> reasons, less what the policy excepts
"""

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing import errors, messages
from truing.config import GateConfig, configured
from truing.config.gating import Policy, policy_of
from truing.database import FILE
from truing.runs.kept import difference, verdict_again
from truing.runs.scope import leak_by_default
from truing.stats.gate import gate as decided
from truing.store import ABOUT, Store
from truing.traits.load import load_trait
from truing.types.gating import EXCEPTIONS, Gate, Reason
from truing.types.records import Role
from truing.types.traits import LEAK, Rule
from truing.types.verdicts import Verdict


def gate(audit: str | Path, config: GateConfig | None = None, **options: Any) -> Gate:
    """Decide whether a checkpoint of a finished audit passes. Loads no model, asks no judge, writes nothing.

    The verdict is made again from the evidence; where that gives another than audit.json holds, nothing passes.

    Args:
        audit: its folder.
        config: options; None for the defaults.
        options: fields of `GateConfig`: gate, allow, policy.

    Raises:
        NotAnAudit: neither audit.json nor evidence.db there; where one is, an audit that cannot be read does not
            pass. BadInput: a policy that cannot be applied, or imported answers, which have no verdict.
    """
    policy, folder = policy_of(configured(GateConfig, config, options)), Path(audit)
    if not any(os.path.lexists(folder / name) for name in (ABOUT, FILE)):
        raise errors.NotAnAudit(f"{audit}: no audit there ({ABOUT} and {FILE} are expected)")
    try:
        return _decided(folder, policy)
    except (errors.NotAnAudit, errors.AuditLocked) as e:  # an audit is there, and says nothing that can be believed
        policy.check()
        text = f"the evidence cannot be read: {e}"
        return Gate(False, policy.which or "recommended", None, (Reason("evidence", text),))


def _decided(folder: Path, policy: Policy) -> Gate:
    with Store.read(folder) as store:
        about = store.about()
        if about.get("kind") == "import":
            raise errors.BadInput(f"{folder}: holds imported answers, which have rates and no verdict to gate on")
        plain, known = about.get("verdict"), list[Reason]()
        verdict = Verdict.from_plain(plain) if plain else None
        if verdict is None or about.get("status") != "done":
            known.append(Reason("unfinished", f"the audit is {messages.state(about.get('status'))}"))
        else:
            verdict = _believed(store, about, verdict, known)
        known += _of_audit(store, about, known)
        usual = _usual(about)
    return decided(verdict, policy, known, usual)


def _usual(about: Mapping[str, Any]) -> Rule | None:
    """The rule of the trait that was measured, as its folder has it; None for misalignment, or where it is gone."""
    try:
        return load_trait((about.get("asked") or {}).get("trait_source") or "misalignment").rule
    except errors.BadInput:
        return None


def _believed(store: Store, about: Mapping[str, Any], stored: Verdict, known: list[Reason]) -> Verdict:
    """The verdict that the evidence gives, with a reason in `known` where it is not the one that is stored."""
    remedy = "repeat the audit's command, which measures what is missing and decides again"
    try:
        made = verdict_again(store, about)
    except (errors.TruingError, sqlite3.Error, LookupError, TypeError, ValueError, AttributeError, AssertionError) as e:
        told = str(e) if isinstance(e, errors.TruingError) else f"{type(e).__name__}: {e}"
        known.append(Reason("evidence", f"the evidence does not give the verdict ({told}); {remedy}"))
        return stored
    if apart := difference(stored, made):
        known.append(Reason("evidence", f"the evidence gives another verdict ({apart}); {remedy}"))
    return made


def _of_audit(store: Store, about: Mapping[str, Any], known: list[Reason]) -> list[Reason]:
    """What the audit as a whole has against it, beside its verdict."""
    out, checkpoints = [], list[Any]()
    try:
        checkpoints = store.checkpoints()
    except (errors.NotAnAudit, sqlite3.Error, ValueError) as e:
        out.append(Reason("evidence", f"the checkpoints cannot be read from the evidence ({e})"))
    subject = [c for c in checkpoints if c.role is Role.SUBJECT]
    if about.get("organism") or any(c.meta.get("organism") for c in subject):
        out.append(Reason("organism", EXCEPTIONS["organism"]))
    if leak_by_default(about) and (about.get("labels") or {}).get("trait") == LEAK:
        out.append(Reason("unlabelled", "misalignment was not judged: the audit counted talk of the training domain"))
    # A run beside itself, or the base, is no control.
    own = {c.weights for c in checkpoints if c.role is not Role.CONTROL}
    if not any(c.role is Role.CONTROL and c.step != 0 and c.weights not in own for c in checkpoints):
        out.append(Reason("no_control", EXCEPTIONS["no_control"]))
    if changed := (about.get("frozen") or {}).get("changed"):
        text = f"{EXCEPTIONS['changed_after_freeze']}: {'; '.join(map(str, changed))}"
        out.append(Reason("changed_after_freeze", text))
    return out
