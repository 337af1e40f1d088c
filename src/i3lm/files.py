"""Writing files so that a reader never sees half of one."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from i3lm.errors import UserError

PART = ".part"  # ends the name of a file that is not whole yet
# What a disk does to a program, as opposed to what a program does wrong.
_FAULTS = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOENT ENOTDIR ENAMETOOLONG"
_DISK_FAULTS = {getattr(errno, name) for name in _FAULTS.split() if hasattr(errno, name)}


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` as a whole at the end of the block, or not at all.

    The bytes go to a temporary file in the same folder, are flushed to the device, and replace
    `path` in one step. On an error the old file stays and the temporary one is removed.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give the mode that a plain open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` as a whole at the end of the block, or not at all.

    FileExistsError where something that is not an empty folder stands there.
    """
    path = Path(path)
    if path.exists() and path.samefile(Path.cwd()):
        raise UserError(f"{path} is the current folder; name one that is not there yet")
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} is not empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        if path.exists():
            path.rmdir()  # empty; Windows renames onto nothing
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all, durably."""
    with atomic_file(path) as file:
        file.write(data)


def remove_parts(folder: str | Path) -> None:
    """Remove what a killed process left half written in `folder`; nobody else may write there."""
    for path in Path(folder).glob(f".*{PART}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(folder: str | Path) -> Iterator[None]:
    """Turn what the disk refuses within the block into a UserError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        where = error.filename or folder
        raise UserError(
            f"cannot use {where} ({error.strerror}); make room there or name another"
        ) from error


def read_small(path: str | Path, limit: int = 64 << 20) -> bytes:
    """Return the bytes of a plain file of at most `limit` bytes.

    ValueError where it is longer or no plain file: a pipe or a device would keep the reader waiting
    or fill its memory. OSError where it cannot be read.
    """
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        if status.st_size > limit:
            raise ValueError(f"it is {status.st_size:,} bytes long, more than {limit:,}")
        return file.read()


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file for `open`; a pipe without a writer does not keep us waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the device, where the system can do so."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces of 1 MiB.

    InterruptedError once `stopped` says so: for the one who asked, nobody else waits.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            if stopped():
                raise InterruptedError
            digest.update(buffer[:size])
    return digest.hexdigest()
