"""Content hashes. Identity here is always content, never a path."""

import hashlib
import json
from pathlib import Path
from typing import Any

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""JSON with sorted keys and no spaces: equal values give equal text"""


def digest(value: Any, length: int = 64) -> str:
    """sha256 (hex, first `length` digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
