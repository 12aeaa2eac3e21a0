"""A file that is replaced whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from truing.errors import BadInput, DiskFull


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A neighbour to write to, which takes the place of `path` if all goes well: a reader never sees half a file.

    Raises:
        BadInput: it cannot be written. DiskFull: no space left.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file with --out")
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: no space left on the disk; free some and repeat the command") from e
        raise BadInput(f"{path}: cannot be written ({e.strerror or e}); choose another --out") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
