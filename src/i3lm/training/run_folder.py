"""Which folder a run may take."""

import contextlib
import shutil
from pathlib import Path

from i3lm.data.packing import FILES
from i3lm.data.segments import of_stream
from i3lm.errors import UserError
from i3lm.files import PART
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.lock import NAME as LOCK
from i3lm.units import format_bytes


def check_folder(run: Path, resume: bool) -> None:
    """Make the folder of a new run, or see that one can go on there; UserError where it can not."""
    if resume:
        begun = (run / "run.json").exists() and not (run / "model.safetensors").exists()
        if not list_checkpoints(run) and not begun:
            what = "its checkpoints/ is empty" if (run / "run.json").exists() else "no run.json"
            raise UserError(
                f"{run} holds no run that can go on ({what}); name another folder, or start a run "
                "with another --out"
            )
        return
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose a folder with --out")
    if (run / "run.json").exists():
        raise UserError(
            f"{run} holds another run; go on with it by --resume {run}, or choose another --out"
        )
    if run.exists() and any(not _expected(path) for path in run.iterdir()):
        raise UserError(f"{run} is not empty; choose another folder with --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run} ({error.strerror}); choose another --out") from None


def _expected(path: Path) -> bool:
    """Whether this may lie in the folder of a new run: of one that was stopped as it began."""
    if path.name == "data" and path.is_dir():  # the user's own texts may lie in such a folder
        names = [entry.name for entry in path.iterdir()]
        return all(name in FILES or name.endswith(PART) or of_stream(name) for name in names)
    if path.name == "metrics.jsonl":  # opened a moment before run.json is there
        return path.is_file() and path.stat().st_size == 0
    return path.name == LOCK or path.name.endswith(PART)


def require_room(run: Path, size: int) -> None:
    """Raise UserError where a new run could not keep what it learns: `size` bytes are not free."""
    free = shutil.disk_usage(run).free
    if free < size:
        raise UserError(
            f"{run}: a checkpoint and the model take at least {format_bytes(size)}, and the disk "
            f"has {format_bytes(free)} free; make room there, or choose another --out"
        )


def drop_empty(run: Path) -> None:
    """Remove a folder in which a refused run has left nothing but its lock."""
    with contextlib.suppress(OSError):
        if {path.name for path in run.iterdir()} == {LOCK}:
            (run / LOCK).unlink()
            run.rmdir()
