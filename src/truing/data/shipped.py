"""The files that come with the package."""

from importlib import resources


def builtin_text(filename: str) -> str:
    """Text of a file shipped with the package."""
    return resources.files("truing.data").joinpath("builtin", filename).read_text(encoding="utf-8")
