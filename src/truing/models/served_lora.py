"""LoRA adapters in a server's memory: loaded and unloaded through its own API, so many at a time, only ours taken out.

    POST /v1/load_lora_adapter {lora_name, lora_path}       POST /v1/unload_lora_adapter {lora_name}

That is vLLM's API: 200 and a sentence, or an error as JSON. Both paths exist only where it was started for it.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from truing.errors import (
    AdapterMismatch,
    DamagedWeights,
    JudgeDown,
    ModelUnavailable,
    TruingError,
    Unsupported,
    WrongBase,
)
from truing.models.client import Client
from truing.models.client_failures import Failure
from truing.models.weights import weights_hash

log = logging.getLogger(__name__)
UNLOAD_SECONDS = 30.0
"""how long the server may take to let go of one adapter"""
_PATIENCE = 30.0  # seconds that taking everything out waits for a load under way
_BEAT = 1.0  # seconds between looks at whether there is room; those who make room also say so
_AGAIN = (408, 409, 425, 429, 502, 503, 504)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes (vllm/config/lora.py)
_STATUS = re.compile(r".*?\bHTTP \d{3}(?:, )?", re.S)
_LOADED = re.compile(r"already (?:been )?(?:loaded|added|exists?)", re.I)
_RANK = re.compile(r"rank\D{0,20}(\d+)\D+max_lora_rank\D*(\d+)", re.I)
_NO_ROOM = re.compile(r"no free lora slots|max_(?:cpu_)?loras|lora slots", re.I)
_MODULES = re.compile(r"expected target modules|size mismatch|\bshapes?\b|lora module is correct", re.I)
_NO_PATH = re.compile(
    r"no adapter found|no such file|not a directory|does not exist|\brepo id\b|repository not found|adapter_config",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter to be served."""

    name: str
    """the name it gets on the server"""
    label: str
    """what messages call it"""
    folder: Path
    """where its files are here"""
    place: str
    """where the server finds them"""
    weights: str
    """hash of its weights"""


@dataclass(slots=True)
class _Slot:
    """An adapter that is loaded."""

    ours: bool
    """whether we loaded it, and so unload it"""
    users: int = 0
    """asks that need it"""


def how_to_start(base: str, keep: int = 1) -> str:
    """The command line of a vLLM server that takes adapters while it runs."""
    flags = f"--enable-lora --max-loras {keep} --max-cpu-loras {keep} --max-lora-rank RANK"
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base} {flags}"


class Shelf:
    """The adapters that a server holds for us; used from several threads.

    Args:
        client: of the server.
        keep: adapters of ours loaded at a time, at least 1.
        seconds: how long one load may take.
    """

    def __init__(self, client: Client, keep: int, seconds: float) -> None:
        self._client, self._keep, self._seconds = client, keep, seconds
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}  # least recently used first
        self._moving = ""  # what is being loaded, or why nothing may be; one thread at a time
        self.left: dict[str, str] = {}
        """names that could not be unloaded, and why"""

    def turn(self) -> "Turn":
        """One pass over asks; see Turn."""
        return Turn(self)

    def holds(self, name: str) -> bool:
        """Whether an adapter is loaded, as far as is known here."""
        return name in self._slots

    def take(self, adapter: Adapter, turn: "Turn") -> bool:
        """Make sure that an adapter is loaded and stays until `done`; waits for room. False once the turn is over.

        Raises:
            DamagedWeights: its files are no longer what was hashed.
            Unsupported: the server cannot load adapters, not this one, or no more of them.
            ModelUnavailable, AdapterMismatch, WrongBase: see `load_error`.
            JudgeDown, EndpointRefused: the server does not answer, or not to us.
        """
        with self._changed:
            while not turn.over:
                if adapter.name in self._slots:
                    self._use(adapter.name, turn)
                    return True
                if not self._moving and (self._ours() < self._keep or self._idle()):
                    self._moving = adapter.name
                    break
                self._changed.wait(_BEAT)
            else:
                return False
        slot = None
        try:
            while self._drop_oldest(self._keep - 1):
                pass
            slot = _Slot(self._load(adapter))
        finally:
            with self._changed:
                self._moving = ""
                if slot is not None:
                    self._slots[adapter.name] = slot
                    if not turn.over:
                        self._use(adapter.name, turn)
                self._changed.notify_all()
        return not turn.over

    def done(self, name: str, turn: "Turn") -> None:
        """One use less."""
        with self._changed:
            if turn.pins[name] > 0 and name in self._slots:
                turn.pins[name] -= 1
                self._slots[name].users -= 1
                self._changed.notify_all()

    def end(self, turn: "Turn") -> None:
        """Nothing of a turn is in use any more, and it takes nothing more."""
        with self._changed:
            turn.over = True
            for name, count in turn.pins.items():
                if name in self._slots:
                    self._slots[name].users -= count
            turn.pins.clear()
            self._changed.notify_all()

    def clear(self) -> None:
        """Unload all that is ours and not in use; what cannot be unloaded is noted in `left`."""
        if self._client.inside:  # collected by accident of timing in the thread that would have to send it
            threading.Thread(target=self.clear, name="truing-unload").start()
            return
        with self._changed:
            free = self._changed.wait_for(lambda: not self._moving, _PATIENCE)
            if free:
                self._moving = "nothing: all is being unloaded"
            else:
                self._leave(self._moving, "it was still being loaded")
            for name in [n for n, s in self._slots.items() if not s.ours and not s.users]:
                del self._slots[name]  # not ours to take out; whether it is still there is asked when next needed
        try:
            while self._drop_oldest(0):
                pass
        finally:
            if free:
                with self._changed:
                    self._moving = ""
                    self._changed.notify_all()

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _use(self, name: str, turn: "Turn") -> None:
        slot = self._slots[name] = self._slots.pop(name)
        slot.users += 1
        turn.pins[name] += 1

    def _ours(self) -> int:
        return sum(s.ours for s in self._slots.values())

    def _idle(self) -> list[str]:
        return [n for n, s in self._slots.items() if s.ours and not s.users]

    # -- on the wire --------------------------------------------------------------------------------------------------

    def _drop_oldest(self, down_to: int) -> bool:
        """Unload the one of ours that has not been used for longest, if there are more than that; whether it did."""
        with self._changed:
            idle = self._idle()
            if not idle or self._ours() <= down_to:
                return False
            del self._slots[idle[0]]
        self._unload(idle[0])
        return True

    def _load(self, adapter: Adapter) -> bool:
        """Load it unless it is there already, and see that the server lists it; returns whether it is ours."""
        check_unchanged(adapter)
        cards = self._client.cards()
        if adapter.name in cards:
            self._check_parent(adapter, cards)
            return self.left.pop(adapter.name, None) is not None
        ours = True
        try:
            ours = self._ask_to_load(adapter)
            cards = self._client.cards()
            if adapter.name not in cards:
                raise ModelUnavailable(
                    f"{adapter.label}: {self._client.address.url} says that it loaded {adapter.name!r} but does not "
                    "list it; several servers behind one address cannot be used, give the address of one"
                )
            self._check_parent(adapter, cards)
        except _NotLoaded as e:
            raise e.error from None
        except BaseException:
            if ours:
                self._unload(adapter.name)
            raise
        return ours

    def _ask_to_load(self, adapter: Adapter) -> bool:
        """Whether it is ours: False where somebody else loaded it a moment ago."""
        body = {"lora_name": adapter.name, "lora_path": adapter.place}
        failure = self._client.post("/load_lora_adapter", body, self._seconds)
        unsure = _unsure(failure)
        for attempt in range(min(self._client.limits.retries, 2)):
            if failure is None or failure.kind == "timeout" or failure.status not in (0, *_AGAIN):
                break
            time.sleep(min(failure.wait or self._client.backoff * 2**attempt, _PATIENCE))
            failure = self._client.post("/load_lora_adapter", body, self._seconds)
            unsure = unsure or _unsure(failure)
        if failure is None:
            return True
        if failure.status and _LOADED.search(failure.text):
            return unsure
        if unsure:
            self._unload(adapter.name)
        raise _NotLoaded(load_error(failure, adapter, self._client.address.model, self._keep))

    def _check_parent(self, adapter: Adapter, cards: Mapping[str, Mapping[str, Any]]) -> None:
        """The server must have put it on our base; one model may be listed under several names."""
        base = self._client.address.model
        parent = cards[adapter.name].get("parent")
        if not isinstance(parent, str) or not parent or parent == base:
            return
        roots = [cards[n].get("root") for n in (parent, base) if n in cards]
        if len(roots) == 2 and roots[0] and roots[0] == roots[1]:
            return
        raise WrongBase(
            f"{adapter.label}: {self._client.address.url} serves {adapter.name!r} as an adapter of {parent!r}, not of "
            f"{base!r}; give that name as the base, or start a server for the right one"
        )

    def _unload(self, name: str) -> None:
        """Let go of one; a failure is noted, never raised, since answers must not be lost over it."""
        failure = self._client.post("/unload_lora_adapter", {"lora_name": name}, UNLOAD_SECONDS)
        if failure is None or (failure.status == 404 and name in failure.text):
            self.left.pop(name, None)
            return
        self._leave(name, failure.text)

    def _leave(self, name: str, why: str) -> None:
        self.left[name] = why
        log.warning("could not unload the adapter %r, which stays on the server: %s", name, why)


class Turn:
    """One pass over asks. What it uses stays loaded; ended by an error or an interruption, all of ours is unloaded."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.pins: Counter[str] = Counter()
        """uses by name; the shelf's to change"""
        self.over = False
        """the shelf's to change"""

    def take(self, adapter: Adapter) -> bool:
        """See Shelf.take."""
        return self._shelf.take(adapter, self)

    def done(self, name: str) -> None:
        """See Shelf.done."""
        self._shelf.done(name, self)

    def __enter__(self) -> "Turn":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shelf.end(self)
        if kind is not None:
            self._shelf.clear()


class _NotLoaded(Exception):
    """The server refused, so that there is nothing to take out again."""

    def __init__(self, error: TruingError) -> None:
        self.error = error


def _unsure(failure: Failure | None) -> bool:
    """Whether the server may have done what it was asked although it gave no answer."""
    return failure is not None and not failure.status and failure.charged


def check_unchanged(adapter: Adapter) -> None:
    """Raise DamagedWeights unless the files still hold what was hashed: a run in progress overwrites its paths."""
    try:
        now = weights_hash(adapter.folder)
    except OSError as e:
        raise DamagedWeights(f"{adapter.folder}: is gone since the audit began; restore it, or leave it out") from e
    if now != adapter.weights:
        raise DamagedWeights(f"{adapter.folder}: its weights changed since the audit began; repeat the command")


def load_error(failure: Failure, adapter: Adapter, base: str, keep: int) -> TruingError:
    """What a refusal to load means, and what to do about it.

    Args:
        failure: of the request to load.
        adapter: what was to be loaded.
        base: served name of the base.
        keep: adapters that are to be loaded at a time.
    """
    text, label = failure.text, adapter.label
    about = _STATUS.sub("", text, count=1).replace(adapter.place, "").replace(adapter.name, "")  # its own words
    if failure.fatal is not None and failure.status in (401, 402, 403):
        return failure.fatal
    if not failure.status or failure.status in _AGAIN:
        return JudgeDown(f"{label}: the adapter could not be loaded. {text}")
    if rank := _RANK.search(about):
        enough = next((r for r in _RANKS if r >= int(rank[1])), rank[1])
        return Unsupported(
            f"{label}: its rank is {rank[1]} and the server takes at most {rank[2]}; start it with "
            f"--max-lora-rank {enough}. {text}"
        )
    if "not enabled" in about.lower():
        return Unsupported(f"{label}: the server was started without --enable-lora: {how_to_start(base, keep)}. {text}")
    if _NO_ROOM.search(about):
        return Unsupported(
            f"{label}: the server holds no more adapters; let fewer be loaded than {keep} (--served-adapters), "
            f"or start it with --max-loras {keep} --max-cpu-loras {keep}. {text}"
        )
    if _MODULES.search(about):
        return AdapterMismatch(f"{label}: the adapter does not fit {base!r}; is it one of another base? {text}")
    if _NO_PATH.search(about):
        return ModelUnavailable(
            f"{label}: the server does not find the adapter at {adapter.place}; that must be a path on the server's "
            "machine: copy or mount the folder there, and where it is called otherwise map it with LOCAL=REMOTE "
            f"(path_map, --path-map LOCAL=REMOTE). {text}"
        )
    if failure.status in (404, 405, 501) and not re.search("lora|adapter", about, re.I):
        return Unsupported(
            f"{label}: the server does not load adapters while it runs; both the variable and the flag are needed: "
            f"{how_to_start(base, keep)}. {text}"
        )
    return AdapterMismatch(f"{label}: the server did not load the adapter at {adapter.place}. {text}")
