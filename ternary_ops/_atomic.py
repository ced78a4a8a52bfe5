# SPDX-License-Identifier: Apache-2.0
"""Replacing a file so that every moment, a crash included, shows the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` beside `path`, sync, then rename; an exception leaves no trace.

    A symbolic link stays one, and its target is replaced. Raises what `write` raises, and OSError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}.{os.urandom(4).hex()}{target.suffix}")
    # Made here, so that the name is ours alone and the mode is what the umask says.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
