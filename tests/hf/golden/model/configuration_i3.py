"""The configuration of i3 models for transformers."""

from typing import Any

from transformers import PreTrainedConfig

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rank",
    "state_size",
)


class I3Config(PreTrainedConfig):
    """Sizes of an i3 model; the defaults are those of i3-12m.

    `rank` is the rank R of attention's projections and of every LoRPt factor pair, `state_size`
    the N of the state space. Rows of the vocabulary from `used_vocab_size` on stand for no token
    and are never generated. With `weight_bits` of 8 or 4 the matrices are stored so, for inference.
    Raises ValueError for sizes that cannot be.
    """

    model_type = "i3"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 (transformers reads it from the class)
        "d_model": "hidden_size",
        "n_embd": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "max_seq_len": "max_position_embeddings",
    }

    def __init__(
        self,
        vocab_size: int = 4466,
        hidden_size: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 256,
        rank: int = 64,
        state_size: int = 32,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        used_vocab_size: int | None = None,
        weight_bits: int = 32,
        use_cache: bool = True,
        bos_token_id: int = 2,
        eos_token_id: int = 3,
        pad_token_id: int = 1,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rank = rank
        self.state_size = state_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.used_vocab_size = used_vocab_size
        self.weight_bits = weight_bits
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self._check_sizes()  # now, when the family's names in kwargs have been taken

    def _check_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.used_vocab_size is not None and not 0 < self.used_vocab_size <= self.vocab_size:
            raise ValueError(f"used_vocab_size must be between 1 and vocab_size {self.vocab_size}")
        if self.weight_bits not in (32, 8, 4):
            raise ValueError(f"weight_bits is {self.weight_bits!r}; it must be 32, 8 or 4")

    @property
    def layer_types(self) -> list[str]:
        """Every layer keeps keys and values and a recurrent state: what caches are built from."""
        return ["hybrid"] * self.num_hidden_layers
