"""LoRA adapters in a server's memory: at most so many of ours, the least recently used out first, only ours taken out.

    POST /v1/load_lora_adapter {lora_name, lora_path}       POST /v1/unload_lora_adapter {lora_name}

That is vLLM's API: 200 and a sentence, or an error as JSON. Both paths exist only where it was started for it.

An adapter is served as RUN@STEP-HASH. The hash is in the name because servers remember: under an old name vLLM may
answer from prefix-cache blocks of the weights that the name stood for before.
"""

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.errors import (
    BadEndpoint,
    BadModel,
    DamagedWeights,
    JudgeDown,
    TruingError,
    Unsupported,
)
from truing.models.client import Client
from truing.models.client_errors import Failure
from truing.models.weights import weights_hash
from truing.types.records import Checkpoint

log = logging.getLogger(__name__)
HASH = 12
"""hex digits of the weights' hash in a served name"""
UNLOAD_SECONDS = 30.0
"""how long the server may take to let go of one adapter"""
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_AGAIN = (408, 409, 425, 429, 502, 503, 504)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes (vllm/config/lora.py)
_STATUS = re.compile(r".*?\bHTTP \d{3}(?:, )?", re.S)
_LOADED = re.compile(r"already (?:been )?(?:loaded|added|exists?)", re.I)
_RANK = re.compile(r"rank\D{0,20}(\d+)\D+max_lora_rank\D*(\d+)", re.I)
_START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base} --enable-lora --max-loras {keep} --max-cpu-loras {keep} "
    "--max-lora-rank RANK"
)
_MEANINGS: tuple[tuple[str, type[TruingError], str], ...] = (
    ("not enabled", Unsupported, f"the server was started without --enable-lora: {_START}"),
    (
        r"no free lora slots|max_(?:cpu_)?loras|lora slots",
        Unsupported,
        "the server holds no more adapters; let fewer be loaded than {keep} (--served-adapters), or start it with "
        "--max-loras {keep} --max-cpu-loras {keep}",
    ),
    (
        r"expected target modules|size mismatch|\bshapes?\b|lora module is correct",
        BadModel,
        "the adapter does not fit {base!r}; is it one of another base?",
    ),
    (
        r"no adapter found|no such file|not a directory|does not exist|\brepo id\b|repository not found|adapter_config",
        BadModel,
        "the server does not find the adapter at {place}; that must be a path on the server's machine: copy or mount "
        "the folder there, and where it is called otherwise map it with LOCAL=REMOTE (path_map, --path-map)",
    ),
)  # what the server says, what it means


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How adapters are put on the server."""

    keep: int = 4
    """adapters loaded at a time; not more than the server's --max-cpu-loras, best its --max-loras"""
    path_map: tuple[str, ...] = ()
    """LOCAL=REMOTE: folders that the server sees under another path; the longest LOCAL that fits counts"""
    timeout: float = 600.0
    """seconds that one load may take"""

    def __post_init__(self) -> None:
        """Raises BadEndpoint where a value makes no sense."""
        if self.keep < 1 or not 0 < self.timeout < float("inf"):
            text = f"keep {self.keep}, timeout {self.timeout}"
            raise BadEndpoint(f"adapters on a server: {text}: give at least 1, and seconds above 0")
        for entry in self.path_map:
            local, _, remote = entry.partition("=")
            if not local.strip() or not remote.strip().startswith("/"):
                raise BadEndpoint(f"path_map {entry!r}: give LOCAL=REMOTE, where REMOTE begins with / on the server")


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


def adapter_name(checkpoint: Checkpoint) -> str:
    """RUN@STEP-HASH; where the step is unknown the label stands for it."""
    run = _NOT_IN_NAMES.sub("-", checkpoint.run)
    step = checkpoint.step if checkpoint.step is not None else _NOT_IN_NAMES.sub("-", checkpoint.label)
    return f"{run}@{step}-{checkpoint.weights[:HASH]}"


def served_path(folder: Path, path_map: Sequence[str]) -> str:
    """Where the server finds a folder.

    Args:
        folder: where it is here.
        path_map: entries LOCAL=REMOTE; the longest LOCAL that the folder lies in counts.
    """
    here = folder.absolute()
    best = -1
    place = str(here)
    for entry in path_map:
        local, _, remote = entry.partition("=")
        named = Path(local.strip()).expanduser()
        for root in (named.absolute(), named.resolve()):
            if here.is_relative_to(root) and len(root.parts) > best:
                best = len(root.parts)
                place = (Path(remote.strip()) / here.relative_to(root)).as_posix()
    return place


class AdapterSet:
    """The adapters that a server holds for us; for one thread at a time.

    Args:
        client: of the server.
        keep: adapters of ours loaded at a time, at least 1.
        seconds: how long one load may take.
    """

    def __init__(self, client: Client, keep: int, seconds: float) -> None:
        self._client, self._keep, self._seconds = client, keep, seconds
        self._ours: dict[str, None] = {}  # least recently used first
        self._theirs: set[str] = set()
        self.left: dict[str, str] = {}
        """names that could not be unloaded, and why"""

    def holds(self, name: str) -> bool:
        """Whether an adapter is loaded, as far as is known here."""
        return name in self._ours or name in self._theirs

    def use(self, adapters: Sequence[Adapter]) -> None:
        """Have these adapters loaded, at most `keep`; makes room by unloading the least recently used others.

        Raises:
            DamagedWeights: the files are no longer what was hashed.
            Unsupported: the server cannot load adapters, not this one, or no more of them.
            BadModel: see `load_error`.
            JudgeDown, BadEndpoint: the server does not answer, or not to us.
        """
        for adapter in adapters:
            if adapter.name in self._ours:
                self._ours[adapter.name] = self._ours.pop(adapter.name)
        for adapter in adapters:
            if not self.holds(adapter.name):
                while len(self._ours) >= self._keep:
                    self._unload(next(iter(self._ours)))
                self._load(adapter)

    def clear(self) -> None:
        """Unload all that is ours; what cannot be unloaded is noted in `left`."""
        if self._client.inside:  # collected by accident of timing in the thread that would have to send it
            threading.Thread(target=self.clear, name="truing-unload").start()
            return
        self._theirs.clear()  # whether they are still there is asked when next needed
        while self._ours:
            self._unload(next(iter(self._ours)))

    def _load(self, adapter: Adapter) -> None:
        """Load it unless it is there already, and see that the server lists it."""
        _check_unchanged(adapter)
        name, where = adapter.name, self._client.address.url
        cards = self._client.models()
        if name not in cards:
            self._ours[name] = None  # before it is sent: whatever happens from here on, it is taken out
            self._send_load(adapter)
            cards = self._client.models()
        elif self.left.pop(name, None) is not None:
            self._ours[name] = None
        else:
            self._theirs.add(name)
        if name not in cards:
            raise BadModel(
                f"{adapter.label}: {where} says that it loaded {name!r} but does not list it; several servers behind "
                "one address cannot be used, give the address of one"
            )
        self._check_parent(adapter, cards)

    def _send_load(self, adapter: Adapter) -> None:
        body = {"lora_name": adapter.name, "lora_path": adapter.place}
        failure = self._client.post("/load_lora_adapter", body, self._seconds)
        if failure is None:
            return
        there = bool(failure.status) and _LOADED.search(failure.text) is not None
        if not failure.unsure:  # then somebody else loaded it a moment ago, or it was refused
            del self._ours[adapter.name]
        if not there:
            raise load_error(failure, adapter, self._client.address.model, self._keep)
        if not failure.unsure:
            self._theirs.add(adapter.name)

    def _check_parent(self, adapter: Adapter, cards: Mapping[str, Mapping[str, Any]]) -> None:
        """The server must have put it on our base; one model may be listed under several names."""
        base = self._client.address.model
        parent = cards[adapter.name].get("parent")
        if not isinstance(parent, str) or not parent or parent == base:
            return
        roots = [cards[n].get("root") for n in (parent, base) if n in cards]
        if len(roots) == 2 and roots[0] and roots[0] == roots[1]:
            return
        raise BadModel(
            f"{adapter.label}: {self._client.address.url} serves {adapter.name!r} as an adapter of {parent!r}, not of "
            f"{base!r}; give that name as the base, or start a server for the right one"
        )

    def _unload(self, name: str) -> None:
        """Let go of one; a failure is noted, never raised, since answers must not be lost over it."""
        del self._ours[name]
        self.left[name] = "it was not answered"
        failure = self._client.post("/unload_lora_adapter", {"lora_name": name}, UNLOAD_SECONDS, retries=0)
        if failure is None or (failure.status == 404 and name in failure.text):
            del self.left[name]
        else:
            self.left[name] = failure.text
            log.warning("could not unload the adapter %r, which stays on the server: %s", name, failure.text)


def _check_unchanged(adapter: Adapter) -> None:
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
    known = {"base": base, "keep": keep, "place": adapter.place}
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, about, re.I):
            return kind(f"{label}: {meaning.format(**known)}. {text}")
    if failure.status in (404, 405, 501) and not re.search("lora|adapter", about, re.I):
        start = _START.format(**known)
        return Unsupported(f"{label}: the server does not load adapters while it runs; start it as {start}. {text}")
    return BadModel(f"{label}: the server did not load the adapter at {adapter.place}. {text}")
