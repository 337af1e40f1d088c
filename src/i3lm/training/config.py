"""What a run is asked to do. Saved as `run.json`, so a resumed run is the same run."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from i3lm.data.documents import DIVISIONS, Division
from i3lm.errors import UserError, did_you_mean
from i3lm.files import read_small
from i3lm.memory import STATES
from i3lm.presets import DEFAULT_PRESET, MIN_CHUNK_COUNT, Architecture, Preset, find_preset

DEFAULT_SECONDS = 600.0
BATCH_TOKENS = 1024
CHECKPOINTING = ("none", "selective", "full")
STATE_BITS = (32, 8, 4)
CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "gradient_checkpointing": CHECKPOINTING,
    "optimizer": tuple(STATES),
    "documents": DIVISIONS,
    "parallel": ("ddp", "fsdp", "diloco"),
}
# What each of several processes has for itself.
LOCAL = (
    "out", "data", "threads", "memory", "microbatch", "gradient_checkpointing", "return_memory",
    "device",
)  # fmt: skip
OPEN = ("gradient_checkpointing",)  # None: as memory allows
# Specials, bytes and the printable ASCII characters: a tokenizer below this cannot be of use.
SMALLEST_VOCABULARY = 6 + 256 + 96


# What a run keeps from its start: its text and tokens, its sizes, what its checkpoints hold.
KEPT = (
    *("preset", "vocab_size", "context", "lowercase", "documents", "text_column", "split"),
    *("skip_bad_lines", "optimizer", "weight_bits", "qat_bits"),
)


@dataclass(frozen=True)
class Every:
    """How often something happens: every so many steps, or every so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        amount = self.seconds if self.steps is None else self.steps
        if amount is None or amount <= 0:
            raise UserError("an interval must be positive, such as 500 (steps) or 2m (minutes)")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's outcome, as the command line names it."""

    out: str = "run"
    data: tuple[str, ...] = ()  # files, folders, globs or a datasets name; none: embedded default
    preset: str | None = None  # None: as the budget asks (training/budget.py)
    vocab_size: int | None = None  # rows of the model; None: the preset's
    context: int | None = None  # tokens; None: the preset's window
    batch_tokens: int = BATCH_TOKENS  # tokens of one optimizer step
    microbatch: int | None = None  # sequences at once; None: about 1,024 tokens
    optimizer: str = "muon"
    state_bits: int | None = None  # of a number in the optimizer's states; None: as memory allows
    weight_bits: int = 32  # of a number in the layers' matrices: 32, or stored in 8 or 4
    qat_bits: int | None = None  # 8 or 4: matrices stay float32 and are seen in so many bits
    lr: float | None = None  # peak rate of the matrices; None: the optimizer's best
    steps: int | None = None
    time: float | None = None  # seconds of training; None and no steps: 10 minutes
    warmup_steps: int = 20
    clip: float = 1.0  # largest gradient norm
    checkpoint_every: Every | None = None  # None: every minute
    eval_every: Every | None = None  # None: ten times a run
    seed: int = 0
    dropout: float | None = None  # share; None: as passes over a small text ask
    device: str = "cpu"
    threads: int | None = None  # None: torch's choice
    precision: str = "auto"  # fp32, bf16, or auto: what is faster on this machine
    gradient_checkpointing: str | None = None  # None: as memory allows
    memory: int | None = None  # bytes that the process may take; None: what is free
    return_memory: bool | None = None  # once it is free; half as fast. None: as memory asks
    text_column: str | None = None
    split: str = "train"
    documents: Division = "auto"
    lowercase: bool = False
    skip_bad_lines: bool = False  # leave out, and count, lines that are no rows or conversations
    stream: int | None = None  # bytes of tokens on disk at a time; None: all of them
    compile: bool | None = None  # the layers, by torch.compile; None: on CUDA
    parallel: str = "ddp"  # what several processes share: ddp, fsdp, diloco
    sync_every: int = 50  # steps of diloco between two exchanges
    sync_bits: int = 8  # of a number in an exchange of diloco
    ddp_timeout: float = 300.0  # seconds after which a silent process counts as lost

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _require_type(field.name, getattr(self, field.name), field.type)
        positive = (
            "vocab_size",
            "context",
            "batch_tokens",
            "microbatch",
            "steps",
            "time",
            "memory",
            "stream",
        )
        for name in (*positive, "threads", "clip", "sync_every", "ddp_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be positive")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed} does not fit 64 bits; choose a smaller one")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in OPEN):
                option = f"--{name.replace('_', '-')}"
                hint = did_you_mean(value, known)
                raise UserError(f"{option} {value!r} is unknown; {hint}choose {_or(known)}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout is {self.dropout}; it must be from 0 (none) to below 1")
        if self.weight_bits not in STATE_BITS:
            raise UserError(f"--weight-bits {self.weight_bits} must be 32, 8 or 4")
        if self.qat_bits not in (None, 8, 4):
            raise UserError(f"--qat-bits {self.qat_bits} must be 8 or 4")
        if self.qat_bits and self.weight_bits != 32:
            raise UserError("--qat-bits keeps float32 weights, --weight-bits does not; choose one")
        if self.parallel == "diloco" and self.weight_bits != 32:
            raise UserError("--parallel diloco adds up float32 weights; leave --weight-bits away")
        if self.parallel == "fsdp" and (self.weight_bits != 32 or self.qat_bits):
            few = "--weight-bits" if self.weight_bits != 32 else "--qat-bits"
            raise UserError(f"--parallel fsdp divides float32 weights; leave {few} away")
        if self.sync_bits not in STATE_BITS:
            raise UserError(f"--sync-bits {self.sync_bits} must be 32, 8 or 4")
        if self.state_bits not in (None, *STATE_BITS):
            raise UserError(f"--state-bits {self.state_bits} must be 32, 8 or 4")
        if self.vocab_size is not None and self.vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"--vocab-size {self.vocab_size} is too small; it must be at least "
                f"{SMALLEST_VOCABULARY} (special tokens, bytes and plain characters)"
            )
        if self.preset is not None:
            find_preset(self.preset)

    @property
    def seconds(self) -> float | None:
        """The time budget in seconds; 10 minutes when no budget is given at all."""
        return DEFAULT_SECONDS if self.time is None and self.steps is None else self.time

    @property
    def vocabulary(self) -> tuple[int, int]:
        """The vocabulary's size, and how often a chunk must come up: a size asked for is filled."""
        if self.vocab_size:
            return self.vocab_size, 1
        return self._preset.tokenizer_size, MIN_CHUNK_COUNT

    @property
    def _preset(self) -> Preset:
        return find_preset(self.preset or DEFAULT_PRESET)

    def architecture(self, tokens: int | None = None) -> Architecture:
        """Return the model's sizes for a tokenizer of `tokens` tokens."""
        preset = self._preset
        sizes = preset.architecture
        rows = self.vocab_size or max(sizes.vocab_size, preset.tokenizer_size)
        used = None if tokens is None or tokens == rows else tokens
        positions = self.context or sizes.max_position_embeddings
        return dataclasses.replace(
            sizes, vocab_size=rows, max_position_embeddings=positions, used_vocab_size=used
        )

    def require_kept(self, run: "TrainConfig") -> None:
        """Raise UserError where this differs from the run that goes on in what a run keeps."""
        for name in KEPT:
            old, new = getattr(run, name), getattr(self, name)
            if old == new:
                continue
            option = f"--{name.replace('_', '-')}"
            had = "was begun without it" if old in (None, False) else f"has {old}"
            raise UserError(
                f"{option} {new}: a run keeps this, and {self.out} {had}; leave {option} away, "
                "or start another run with --out"
            )

    def to_json(self) -> str:
        """Return the configuration as JSON text, with a checksum that `load` holds."""
        values = dataclasses.asdict(self)
        return json.dumps({**values, "check": _digest(values)}, indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "TrainConfig":
        """Read `run.json` of a run folder; UserError when there is none or it is damaged."""
        path = folder / "run.json"
        try:
            return cls.parse(read_small(path))
        except (FileNotFoundError, NotADirectoryError):
            what = "it has no run.json" if folder.is_dir() else "there is no such folder"
            what = "it is a file" if folder.is_file() else what
            raise UserError(
                f"{folder} holds no run ({what}); name the folder that i3lm train wrote"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it or start anew (flags of --resume change "
                "a setting, not this file)"
            ) from None

    @classmethod
    def parse(cls, text: str | bytes, changes: dict[str, Any] | None = None) -> "TrainConfig":
        """Return what `to_json` gave, with changes; ValueError and others where it is damaged."""
        values: dict[str, Any] = json.loads(text)
        if values.pop("check", None) != _digest(values):
            raise ValueError("it does not match its checksum")
        values.setdefault("dropout", 0.0)  # of a run from before there was any
        for name in ("checkpoint_every", "eval_every"):
            values[name] = Every(**values[name]) if values[name] else None
        values["data"] = tuple(values["data"])
        return cls(**{**values, **(changes or {})})


_SHOWN = {
    int: "a whole number, such as 10",
    float: "a number, such as 0.5",
    bool: "True or False",
    Every: "steps, such as 500, or a time, such as '2m'",
    tuple: "names of files, folders or a dataset",
}


def _require_type(name: str, value: Any, wanted: Any) -> None:
    """Raise UserError unless a setting's value is of the type that its field has."""
    if get_origin(wanted) is Literal:
        wanted = str  # CHOICES has the words
    kinds = tuple(get_origin(kind) or kind for kind in get_args(wanted) or (wanted,))
    if wanted == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    elif isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits:
        shown = next((text for kind, text in _SHOWN.items() if kind in kinds), "a text")
        raise UserError(f"{name} is {value!r} ({type(value).__name__}); give {shown}")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
