"""One process at a time trains into a folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from i3lm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock is taken
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
UNLOCKED = "this folder cannot be locked here; let no second process train into it"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[str | None]:
    """Hold `folder` for this process; UserError, with pid and host, where another one does.

    The kernel drops the lock with its process, so one that was killed leaves nothing stale. Gives
    None, or a sentence where there are no locks: on Windows, on some network drives.
    """
    if fcntl is None:
        yield UNLOCKED
        return
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another") from None
    try:
        note = None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise UserError(f"{folder} is in use by {owner}; wait for it or stop it") from None
        except OSError:  # the file system has no locks
            note = UNLOCKED
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its text is missing
            os.ftruncate(handle, 0)
            who = f"process {os.getpid()} on {socket.gethostname()}"
            os.pwrite(handle, f"{who}{_started_by()}\n".encode(), 0)
        yield note
    finally:
        # The file stays: to unlink it could take the name from one who waits on it.
        os.close(handle)


def started_by_same(folder: Path) -> bool:
    """Say whether the last to hold `folder` was started by the torchrun that started this process.

    torchrun starts its processes anew when one has failed: they then go on with their run.
    """
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    mine = _started_by()
    return bool(mine) and text.strip().endswith(f"on {socket.gethostname()}{mine}")


def _started_by() -> str:
    return f" of torchrun {os.getppid()}" if "TORCHELASTIC_RUN_ID" in os.environ else ""
