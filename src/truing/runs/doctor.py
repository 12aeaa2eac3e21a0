"""`truing doctor`: what is installed, what the machine offers, and what is missing for what."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from truing._version import __version__
from truing.models.cache import cache_dir

_NEEDED = ("torch", "transformers", "peft", "safetensors", "gguf", "numpy", "scipy", "pydantic", "click", "jinja2")
_OPTIONAL = {"bitsandbytes": ("--load-in-4bit", "pip install 'truing[4bit]'")}


def doctor() -> dict[str, Any]:
    """Versions, devices, cache and disk, and for each thing that is missing, what it is for and how to get it."""
    packages = {name: _version(name) for name in _NEEDED}
    missing = [{"what": n, "for": "everything", "remedy": f"pip install {n}"} for n, v in packages.items() if v is None]
    for name, (purpose, remedy) in _OPTIONAL.items():
        if find_spec(name) is None:
            missing.append({"what": name, "for": purpose, "remedy": remedy})
    cache = cache_dir()
    model = cache / "models" / "smollm2-135m"
    if not model.exists():
        missing.append({"what": "smollm2-135m", "for": "truing demo", "remedy": "truing models get smollm2-135m"})
    place = next((p for p in (cache, *cache.parents) if p.exists()), cache)
    return {
        "truing": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": _devices(),
        "cache": str(cache),
        "cache_free_gib": round(shutil.disk_usage(place).free / 2**30, 1),
        "missing": missing,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    out: dict[str, Any] = {"cpu_cores": os.cpu_count()}
    if find_spec("torch") is None:
        return out
    import torch

    out["torch_threads"] = torch.get_num_threads()
    out["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    out["mps"] = torch.backends.mps.is_available()
    from truing.models.loading import automatic_dtype

    out["automatic_dtype"] = automatic_dtype()
    return out
