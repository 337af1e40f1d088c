"""Model sizes by name, and what each costs. No torch here: `i3lm info` must start at once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from i3lm.errors import UserError, did_you_mean

# How replies are drawn where nobody says otherwise: in every command, in Python, over HTTP, and in
# a folder's generation_config.json. Models this small wander at the usual 0.7 to 1.
TEMPERATURE, TOP_P = 0.5, 0.95


@dataclass(frozen=True)
class Architecture:
    """The sizes of an i3 model, under the names of `I3Config`."""

    vocab_size: int = 4466
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 256
    rank: int = 64
    state_size: int = 32
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    used_vocab_size: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{field.name} is {value}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; choose a number of heads that divides it"
            )
        if self.used_vocab_size is not None and self.used_vocab_size > self.vocab_size:
            raise UserError(
                f"the tokenizer has {self.used_vocab_size} tokens but the model {self.vocab_size} "
                "rows; give the model at least as many with --vocab-size"
            )

    def parameters_by_part(self) -> dict[str, int]:
        """Return parameter counts; the parts sum to the total (docs/math.md)."""
        v, d, f = self.vocab_size, self.hidden_size, self.intermediate_size
        r, n, layers = self.rank, self.state_size, self.num_hidden_layers
        return {
            "token embedding": v * d,
            "position embedding": self.max_position_embeddings * d,
            "layer norms": layers * 3 * 2 * d + 2 * d,
            "recurrence": layers * (2 * d + n * n + 2 * n * d),
            "attention": layers * (3 * (2 * d * r + r + d) + d * d + d),
            "feed-forward": layers * (2 * r * (d + f) + f + d),
            "head": r * (d + v) + v,
        }

    @property
    def parameters(self) -> int:
        """The total number of parameters."""
        return sum(self.parameters_by_part().values())

    @property
    def layer_parameters(self) -> int:
        """The parameters of all layers, without embeddings, the last norm and the head."""
        parts = self.parameters_by_part()
        outside = ("token embedding", "position embedding", "head")
        return self.parameters - sum(parts[name] for name in outside) - 2 * self.hidden_size

    @property
    def matrix_parameters(self) -> int:
        """The entries of all matrices but the embeddings, the head's rows and A (n, n)."""
        d, r, f = self.hidden_size, self.rank, self.intermediate_size
        layer = 2 * self.state_size * d + 6 * d * r + d * d + 2 * r * (d + f)
        return self.num_hidden_layers * layer + r * d

    def flops_per_token(self, context: int | None = None) -> int:
        """Return the floating-point operations of training on one token: forward and backward.

        Matrix products at 2 FLOPs a multiply-add, backward twice the forward, causal attention at
        its mean length (context + 1) / 2. Element-wise work and recomputation are not counted.
        """
        t = context or self.max_position_embeddings
        d, f, r, n = self.hidden_size, self.intermediate_size, self.rank, self.state_size
        products = 6 * d * r + d * d + 2 * r * (d + f) + 2 * n * d + n * n
        attention = 2 * d * (t + 1) // 2
        return 6 * (self.num_hidden_layers * (products + attention) + r * (d + self.vocab_size))


@dataclass(frozen=True)
class DenseArchitecture(Architecture):
    """The sizes of a model whose LoRPt pairs were merged to plain linear maps; not for training."""

    dense: bool = True

    def parameters_by_part(self) -> dict[str, int]:
        """Return parameter counts; the parts sum to the total."""
        v, d, f = self.vocab_size, self.hidden_size, self.intermediate_size
        merged = {"feed-forward": self.num_hidden_layers * (2 * d * f + f + d), "head": v * d + v}
        return super().parameters_by_part() | merged


def architecture_class(config: Mapping[str, Any]) -> type[Architecture]:
    """Return what holds the sizes in a config.json; ValueError where `dense` is no truth value."""
    dense = config.get("dense", False)
    if not isinstance(dense, bool):
        raise ValueError(f"dense is {dense!r}")
    return DenseArchitecture if dense else Architecture


@dataclass(frozen=True)
class Preset:
    """A named size, with the vocabulary size that training aims at by default."""

    architecture: Architecture
    tokenizer_size: int
    about: str


PRESETS: dict[str, Preset] = {
    "i3-tiny": Preset(
        Architecture(
            vocab_size=34,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=128,
            rank=8,
            state_size=16,
        ),
        1024,
        "the published character-level size; training gives it rows for 1,024 chunks",
    ),
    "i3-mini": Preset(
        Architecture(
            vocab_size=2048,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=1024,
            rank=128,
        ),
        2048,
        "minutes on a laptop: the size of `make demo`",
    ),
    "i3-small": Preset(
        Architecture(
            vocab_size=4096,
            hidden_size=384,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=1536,
            rank=192,
        ),
        4096,
        "an hour on a laptop",
    ),
    "i3-12m": Preset(Architecture(), 4466, "the published 12M model"),
    "i3-22m": Preset(Architecture(num_hidden_layers=24), 4466, "the published 22M model"),
}
DEFAULT_PRESET = "i3-12m"
# A chunk must come up so often in the training text to get a row of its own: rarer ones cost more
# bits than they save (docs/results.md).
MIN_CHUNK_COUNT = 400


def find_preset(name: str) -> Preset:
    """Return a preset by name; UserError with the nearest name when there is none."""
    if name in PRESETS:
        return PRESETS[name]
    hint = did_you_mean(name, PRESETS)
    raise UserError(f"no preset is named {name!r}; {hint}known: {', '.join(PRESETS)}")
