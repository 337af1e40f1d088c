"""How much memory training takes, and what to give up where that is too much.

The estimate counts tensors; what the process takes beside them (Python, torch, its code and
caches) is measured. `make bench-memory` compares it with runs. No torch here.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from i3lm.errors import UserError
from i3lm.presets import Architecture
from i3lm.units import format_bytes

# Code and caches of the matrix products, at the first ones: torch's, and our own. Measured, as all
# shares of the heap below (docs/memory.md).
PRODUCTS_BYTES = 44_000_000
OWN_PRODUCTS_BYTES = 16_000_000
RUN_BYTES = 8_000_000  # evaluating, samples, checkpoints, the terminal
BARE_BYTES, BARE_HEAP = 4_000_000, 0.1  # all of these, and the heap, in a process without torch
HEAP = 0.2  # of the gradients' size: what lies unused among all that stays
STORED_HEAP = 0.35  # where float32 matrices were there before they were stored
RETURNED_HEAP = 0.05
HEAD_ROWS = 256  # tokens whose logits exist at once: as `ops_i3.head_loss`
HEAD_LOGITS = 1 << 22  # as `whole_head.LOGITS`
MUON_NUMBERS = 1 << 20  # of momenta in blocks that are float32 at once: `stored.UPDATED`
STORED_SCALE_BYTES = 2 / 32  # of a number in stored weights
ROUNDING_BYTES = 24  # of room for a number of a matrix that is rounded to the nearest
SCALE_BYTES = 4 / 128  # of a number in states of 8 or 4 bits
STATES = {"muon": (1, 2), "adamw": (2, 2), "lion": (1, 1)}  # a matrix's, another parameter's

# Share of the full speed that is left, measured for i3-12m on two cores (docs/memory.md).
CHECKPOINTING_SPEED = {"none": 1.0, "selective": 0.95, "full": 0.82}
FILLED_POWER = 0.35  # of the speed in the share of FULL_SPEED_TOKENS that a microbatch has
RETURNING_SPEED = 0.6  # every page that comes back has to be cleared first
# Fewer bits are slower by nothing to speak of; they come after what only costs time up to this.
STATE_BITS_WORTH = {32: 1.0, 8: 0.97, 4: 0.9}
FULL_SPEED_TOKENS = 1024  # of a microbatch: more is no faster


def _holes(choice: "Choice", whole: bool) -> float:
    """What the heap keeps of freed activations, as a share of them."""
    if choice.return_memory:
        return 0.0
    if choice.processes > 1:  # large tensors go back to the system at once
        return 0.25
    if choice.low_bytes == 2:
        if whole:
            return 0.05
        return 1.0 if choice.uneven else 0.42
    return {"none": 0.55, "selective": 1.25, "full": 0.6}[choice.gradient_checkpointing]


@dataclass(frozen=True)
class Choice:
    """What decides the memory of a run besides its model."""

    microbatch: int  # sequences
    context: int  # tokens
    gradient_checkpointing: str = "none"
    optimizer: str = "muon"
    state_bits: int = 32
    low_bytes: int = 2  # of an operand of the products: 2 for bf16, 4 for fp32
    weight_bits: int = 32  # of the layers' matrices
    rounded: bool = False  # float32 matrices that are seen in few bits
    return_memory: bool = False  # freed memory goes back to the system at once
    processes: int = 1  # that divide weights, gradients and states among them (training/sharded.py)
    kernels: bool = True  # our own products run on this processor
    torch: bool = True  # the process has it (`i3lm.bare`)
    threads: int = 2
    uneven: bool = False  # a step's last microbatch is smaller, which leaves other holes

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch."""
        return self.microbatch * self.context

    @property
    def worth(self) -> float:
        """Estimated share of the full speed, with a discount for fewer bits."""
        fill = min(1.0, self.tokens / FULL_SPEED_TOKENS)
        speed = CHECKPOINTING_SPEED[self.gradient_checkpointing] * fill**FILLED_POWER
        speed *= RETURNING_SPEED if self.return_memory else 1.0
        return speed * STATE_BITS_WORTH[self.state_bits]


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a training step, by what they are for."""

    runtime: int  # Python, torch, code and caches, what lies unused in the heap
    weights: int
    gradients: int
    states: int  # of the optimizer
    activations: int  # of a microbatch, or the optimizer's own room where that is more

    @property
    def total(self) -> int:
        """The whole process."""
        return sum(dataclasses.astuple(self))


def estimate(sizes: Architecture, choice: Choice, runtime: int) -> Estimate:
    """Estimate a run's peak. `runtime`: resident bytes of the process before the model is made."""
    total = sizes.parameters
    per_matrix, per_other = STATES[choice.optimizer]
    matrices = sizes.matrix_parameters
    own = choice.processes == 1 and _is_whole(sizes, choice)
    activations = round(_activations(sizes, choice) * (1 + _holes(choice, own)))
    numbers = per_matrix * matrices + per_other * (total - matrices)
    width = 4.0 if choice.state_bits == 32 else choice.state_bits / 8 + SCALE_BYTES
    whole = 0 if choice.processes == 1 else _whole(sizes)
    code = RUN_BYTES + (OWN_PRODUCTS_BYTES if own else PRODUCTS_BYTES)
    heap = HEAP if choice.weight_bits == 32 else STORED_HEAP
    if not choice.torch:
        code, heap = BARE_BYTES, BARE_HEAP
    heap = RETURNED_HEAP if choice.return_memory else heap
    unused = round(heap * 4 * total) if own else 0  # elsewhere holes of activations hide it
    return Estimate(
        runtime=runtime + code + unused,
        weights=_weights(sizes, choice) // choice.processes + whole,
        gradients=4 * total // choice.processes + whole,
        states=round(numbers * width / choice.processes),
        activations=max(activations, _optimizer_room(sizes, choice)),
    )


def _whole(sizes: Architecture) -> int:
    """What is whole at once of divided weights: all outside the layers, and two of the layers."""
    outside = sizes.parameters - sizes.layer_parameters
    return 4 * (outside + 2 * sizes.layer_parameters // sizes.num_hidden_layers)


def _weights(sizes: Architecture, choice: Choice) -> int:
    layers = sizes.matrix_parameters - sizes.rank * sizes.hidden_size
    held = 4 * layers // sizes.num_hidden_layers  # one layer's, in float32
    if choice.rounded:
        largest = max(sizes.hidden_size, 4 * sizes.rank) * sizes.hidden_size
        return 4 * sizes.parameters + held + ROUNDING_BYTES * largest
    if choice.weight_bits == 32:
        return 4 * sizes.parameters
    width = choice.weight_bits / 8 + STORED_SCALE_BYTES
    return 4 * (sizes.parameters - layers) + round(width * layers) + held


def _activations(sizes: Architecture, choice: Choice) -> int:
    """What a microbatch keeps of each layer, what a layer's way back needs, and the head."""
    d, f, r, n = sizes.hidden_size, sizes.intermediate_size, sizes.rank, sizes.state_size
    v = sizes.vocab_size
    low, layers = choice.low_bytes, sizes.num_hidden_layers
    layer = (sizes.matrix_parameters - r * d) // layers
    lean = 4 * d + low * (d + 5 * r) + 4 * (n + sizes.num_attention_heads) + 24
    if _is_whole(sizes, choice):  # `model.whole_layer`, `whole_head` share their room
        lean += 2 * low * d
        wide, back = 0, 8 * d  # dropout's third gradient takes the place of `ends`
        room = choice.tokens * (10 * d + max(8 * r + 4 * f, 26 * d + 12 * r))
        room += low * (layer + r * (3 * d + f))
        rows = min(choice.tokens, HEAD_LOGITS // v)
        room = max(room, rows * (low * (v + d + 2 * r) + v // 8) + 4 * r * (d + v))
        beside = 0  # gradients are added where they belong
    else:  # `model.fused` and `ops_i3.head_loss`
        lean += 8 * d
        wide, back = low * (4 * d + f), 8 * d + low * (4 * d + 2 * f)
        room = min(choice.tokens, HEAD_ROWS) * v * low
        beside = layer * (4 + low)
    kept = {"full": 4 * d, "selective": lean, "none": lean + wide}[choice.gradient_checkpointing]
    if low == 2 and choice.kernels:
        beside += _attention_room(sizes, choice)
    once = {"full": lean + wide, "selective": wide, "none": 0}[choice.gradient_checkpointing]
    ends = 16 * d  # embedded tokens, the last norm, their gradients
    per_token = layers * kept + once + back + ends
    return choice.tokens * per_token + room + beside + 12 * r * v


def _attention_room(sizes: Architecture, choice: Choice) -> int:
    """What a head's way back takes of each thread (`Scratch` in attention.c), beyond that of a
    window of 256 tokens, which the constants above hold."""
    size = sizes.hidden_size // sizes.num_attention_heads
    return choice.threads * max(0, choice.context - 256) * (22 * size + 768)


def _is_whole(sizes: Architecture, choice: Choice) -> bool:
    return choice.low_bytes == 2 and choice.kernels and is_whole(sizes, choice.context)


def is_whole(sizes: Architecture, context: int) -> bool:
    """Say whether layers of these sizes are computed as a whole; see `whole_layer.fits`."""
    d, f, r, n = sizes.hidden_size, sizes.intermediate_size, sizes.rank, sizes.state_size
    blocks = not any(size % 32 for size in (d, f, r, n, context))  # of one sequence, too
    return blocks and n <= 256 and d // sizes.num_attention_heads % 16 == 0


def _optimizer_room(sizes: Architecture, choice: Choice) -> int:
    matrices = sizes.matrix_parameters
    blocks = choice.optimizer == "muon" and choice.state_bits != 32
    return 4 * min(MUON_NUMBERS, matrices) if blocks else 0


@dataclass(frozen=True)
class Wanted:
    """What the user has fixed; None leaves it to the planner."""

    sequences: int  # of a step: the largest microbatch
    context: int
    optimizer: str
    low_bytes: int
    microbatch: int | None = None
    gradient_checkpointing: str | None = None
    state_bits: int | None = None
    weight_bits: int = 32
    rounded: bool = False
    return_memory: bool | None = None
    processes: int = 1
    kernels: bool = True
    torch: bool = True
    threads: int = 2


class TooLittle(UserError):
    """No way to train fits the limit; `least` bytes would."""

    def __init__(self, least: int, text: str) -> None:
        super().__init__(text)
        self.least = least


def plan(
    sizes: Architecture, wanted: Wanted, limit: int, runtime: int, to_come: int = 0
) -> tuple[Choice, Estimate]:
    """Return the fastest and most precise way to train within `limit` bytes.

    UserError where there is none; the limit that it names has room for `to_come` more.
    """
    options = [(choice, estimate(sizes, choice, runtime)) for choice in _choices(wanted)]
    fitting = [(choice, cost) for choice, cost in options if cost.total <= limit]
    if not fitting:
        least = min(cost.total for _, cost in options)
        smallest = -(-(least + to_come) // 10**6)
        raise TooLittle(
            least,
            f"--memory {format_bytes(limit)} is too little for this model; the least that can be "
            f"kept is --memory {smallest}MB (or take a smaller --preset or --context)",
        )
    return max(fitting, key=lambda pair: (pair[0].worth, -pair[1].total))


def _choices(wanted: Wanted) -> Iterator[Choice]:
    largest = max(1, min(wanted.sequences, FULL_SPEED_TOKENS // wanted.context))
    microbatches = [wanted.microbatch] if wanted.microbatch else range(1, largest + 1)
    modes = (
        [wanted.gradient_checkpointing] if wanted.gradient_checkpointing else [*CHECKPOINTING_SPEED]
    )
    widths = [wanted.state_bits] if wanted.state_bits else [*STATE_BITS_WORTH]
    returns = [False, True] if wanted.return_memory is None else [wanted.return_memory]
    for microbatch, mode, bits, back in itertools.product(microbatches, modes, widths, returns):
        together = min(microbatch, wanted.sequences)
        yield Choice(
            together,
            wanted.context,
            mode,
            wanted.optimizer,
            bits,
            wanted.low_bytes,
            wanted.weight_bits,
            wanted.rounded,
            back,
            wanted.processes,
            wanted.kernels,
            wanted.torch,
            wanted.threads,
            wanted.sequences % together != 0,
        )
