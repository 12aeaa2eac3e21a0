"""LoRA adapters in a server's memory: at most so many of ours, the least recently used out first, only ours taken out.

    POST /v1/load_lora_adapter {lora_name, lora_path}       POST /v1/unload_lora_adapter {lora_name}

That is vLLM's API: 200 and a sentence, or an error as JSON. Both paths exist only where it was started for it.

An adapter is served as RUN@STEP-HASH. The hash is in the name because servers remember: under an old name vLLM may
answer from prefix-cache blocks of the weights that the name stood for before.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.errors import BadEndpoint, BadModel, JudgeDown, TruingError, Unsupported
from truing.models.checkpoints import checkpoint_path
from truing.models.client import Client
from truing.models.client_errors import Failure
from truing.models.weights import check_unchanged
from truing.types.records import Checkpoint

log = logging.getLogger(__name__)
LOAD_SECONDS, UNLOAD_SECONDS = 600.0, 30.0  # that the server may take for one adapter
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_AGAIN = (408, 409, 425, 429, 502, 503, 504)
_LOADED = re.compile(r"already (?:been )?(?:loaded|added|exists?)", re.I)
_START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base} --enable-lora --max-loras {keep} --max-cpu-loras {keep} "
    "--max-lora-rank RANK"
)
_MEANINGS: tuple[tuple[str, type[TruingError], str], ...] = (
    ("not enabled", Unsupported, f"the server was started without --enable-lora: {_START}"),
    ("max_lora_rank", Unsupported, "its rank is more than the server takes; start it with a larger --max-lora-rank"),
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


def adapter_name(checkpoint: Checkpoint) -> str:
    """RUN@STEP-HASH; where the step is unknown the label stands for it."""
    run = _NOT_IN_NAMES.sub("-", checkpoint.run)
    step = checkpoint.step if checkpoint.step is not None else _NOT_IN_NAMES.sub("-", checkpoint.label)
    return f"{run}@{step}-{checkpoint.weights[:12]}"


def parse_path_map(entries: Sequence[str]) -> dict[Path, Path]:
    """Local -> remote folder of entries LOCAL=REMOTE, local links followed or not. Raises BadEndpoint."""
    found: dict[Path, Path] = {}
    for entry in entries:
        local, _, remote = (part.strip() for part in entry.partition("="))
        if not local or not remote.startswith("/"):
            raise BadEndpoint(f"path_map {entry!r}: give LOCAL=REMOTE, where REMOTE begins with / on the server")
        named = Path(local).expanduser()
        found |= {named.absolute(): Path(remote), named.resolve(): Path(remote)}
    return found


def served_path(folder: Path, path_map: Mapping[Path, Path]) -> str:
    """Where the server finds a folder; the longest local folder that it lies in counts."""
    here = folder.absolute()
    roots = [root for root in path_map if here.is_relative_to(root)]
    if not roots:
        return str(here)
    root = max(roots, key=lambda r: len(r.parts))
    return (path_map[root] / here.relative_to(root)).as_posix()


class AdapterSet:
    """The adapters that a server holds for us; for one thread at a time.

    Args:
        client: of the server.
        keep: adapters of ours loaded at a time, at least 1.
        path_map: local -> remote folder.
    """

    def __init__(self, client: Client, keep: int, path_map: Mapping[Path, Path]) -> None:
        self._client, self._keep, self._path_map = client, keep, path_map
        self._held: dict[str, bool] = {}  # name -> whether it is ours to take out; least recently used first
        self.left: dict[str, str] = {}  # names that could not be unloaded, and why

    def holds(self, name: str) -> bool:
        """Whether an adapter is loaded, as far as is known here."""
        return name in self._held

    def use(self, adapters: Sequence[Checkpoint]) -> None:
        """Have these adapters loaded, at most `keep`; makes room by unloading the least recently used others.

        Raises:
            DamagedWeights: the files are no longer what was hashed.
            Unsupported: the server cannot load adapters, not this one, or no more of them.
            BadModel: the adapter is not found or does not fit.
            JudgeDown, BadEndpoint: the server does not answer, or not to us.
        """
        names = {adapter_name(a): a for a in adapters}
        for name in names:
            if name in self._held:
                self._held[name] = self._held.pop(name)
        for name, adapter in names.items():
            if name not in self._held:
                ours = [n for n, mine in self._held.items() if mine]
                for old in ours[: max(len(ours) + 1 - self._keep, 0)]:
                    self._unload(old)
                self._load(name, adapter)

    def clear(self) -> None:
        """Unload all that is ours; what cannot be unloaded is noted in `left`."""
        for name in [n for n, mine in self._held.items() if mine]:
            self._unload(name)
        self._held.clear()  # whether others are still there is asked when next needed

    def _load(self, name: str, adapter: Checkpoint) -> None:
        """Load it unless it is there already, and see that the server lists it, as an adapter of our base."""
        check_unchanged(checkpoint_path(adapter), adapter.weights)
        where, base = self._client.address.url, self._client.address.model
        cards = self._client.models()
        # Noted before it is sent: whatever happens from here on, it is taken out.
        self._held[name] = name not in cards or name in self.left
        self.left.pop(name, None)
        if name not in cards:
            self._send_load(name, adapter)
            cards = self._client.models()
        if name not in cards:
            raise BadModel(
                f"{adapter.label}: {where} says that it loaded {name!r} but does not list it; several servers behind "
                "one address cannot be used, give the address of one"
            )
        parent = cards[name].get("parent")
        roots = [cards.get(str(n), {}).get("root") for n in (parent, base)]  # one model may have several names
        if parent and parent != base and not (roots[0] and roots[0] == roots[1]):
            raise BadModel(
                f"{adapter.label}: {where} serves {name!r} as an adapter of {parent!r}, not of {base!r}; give that "
                "name as the base, or start a server for the right one"
            )

    def _send_load(self, name: str, adapter: Checkpoint) -> None:
        place = served_path(checkpoint_path(adapter), self._path_map)
        failure = self._client.post("/load_lora_adapter", {"lora_name": name, "lora_path": place}, LOAD_SECONDS)
        loaded = failure is None or bool(failure.status and _LOADED.search(failure.text))
        if failure is None or (loaded and failure.unsure):  # by an attempt that was cut off
            return
        if loaded:  # by somebody else, a moment ago
            self._held[name] = False
            return
        if not failure.unsure:  # refused, or never sent: there is nothing to take out
            del self._held[name]
        known = {"base": self._client.address.model, "keep": self._keep, "place": place}
        raise _load_error(failure, adapter.label, name, known)

    def _unload(self, name: str) -> None:
        """Let go of one; a failure is noted, never raised, since answers must not be lost over it."""
        del self._held[name]
        self.left[name] = "it was not answered"
        failure = self._client.post("/unload_lora_adapter", {"lora_name": name}, UNLOAD_SECONDS, retries=0)
        if failure is None or (failure.status == 404 and name in failure.text):
            del self.left[name]
        else:
            self.left[name] = failure.text
            log.warning("could not unload the adapter %r, which stays on the server: %s", name, failure.text)


def _load_error(failure: Failure, label: str, name: str, known: Mapping[str, Any]) -> TruingError:
    """What a refusal to load means, and what to do about it."""
    text = failure.text
    about = text.partition("HTTP ")[2].replace(known["place"], "").replace(name, "")  # its own words
    if failure.fatal is not None and failure.status in (401, 402, 403):
        return failure.fatal
    if not failure.status or failure.status in _AGAIN:
        return JudgeDown(f"{label}: the adapter could not be loaded. {text}")
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, about, re.I):
            return kind(f"{label}: {meaning.format(**known)}. {text}")
    if failure.status in (404, 405, 501) and not re.search("lora|adapter", about, re.I):
        start = _START.format(**known)
        return Unsupported(f"{label}: the server does not load adapters while it runs; start it as {start}. {text}")
    return BadModel(f"{label}: the server did not load the adapter at {known['place']}. {text}")
