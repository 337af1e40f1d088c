"""`i3lm.train` and `i3lm.resume`: a run from Python."""

from pathlib import Path
from typing import Unpack

from i3lm.errors import UserError
from i3lm.training.config import TrainConfig
from i3lm.training.events import Callback
from i3lm.training.run import TrainResult
from i3lm.training.run import train as run
from i3lm.training.settings import Settings, configure, reconfigure


def train(
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    listener: Callback | None = None,
    **settings: Unpack[Settings],
) -> TrainResult:
    """Pretrain a model and leave a complete model folder in `out`.

    Give a `TrainConfig`, or its fields by name, in your own units: `data="my_text.txt"`,
    `time="30m"`, `memory="450MB"`, `eval_every="1m"`. With no `data` it trains on the built-in
    conversations. `listener` hears of each event (`i3lm.training.events`). `resume` goes on from
    the newest sound checkpoint of `config.out`; `i3lm.resume` is the short way.

    The folder then holds the model (loadable by transformers), `run.json`, `metrics.jsonl`,
    `report.html`, `data/` (the token files) and `checkpoints/`. Ctrl-C saves and returns a result
    that says `interrupted`. Raises UserError for anything the user can mend.
    """
    if config is not None and settings:
        raise UserError("give a TrainConfig or settings by name, not both")
    if config is None:
        if resume:
            return _resume(settings.pop("out", None) or TrainConfig.out, listener, settings)
        config = configure(**settings)
    return run(config, resume=resume, listener=listener)


def resume(
    folder: str | Path, *, listener: Callback | None = None, **changes: Unpack[Settings]
) -> TrainResult:
    """Go on with the run in `folder`, bit for bit, or further: `steps=2000`, `time="1h"`."""
    return _resume(folder, listener, changes)


def _resume(folder: str | Path, listener: Callback | None, changes: Settings) -> TrainResult:
    return run(reconfigure(folder, **changes), resume=True, listener=listener)
