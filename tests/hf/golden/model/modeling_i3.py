"""i3 for transformers: the modules of `layers_i3` with caches, masks and `generate`."""

import contextlib
import copy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple

from .cache_i3 import CachedState, adopt
from .card_i3 import model_card, placed
from .configuration_i3 import I3Config
from .generation_i3 import I3GenerationMixin
from .layers_i3 import LoRPtLinear, build_backbone, head_logits, init_module, used_rows
from .stored_i3 import store_for_inference


class I3PreTrainedModel(PreTrainedModel):
    """What i3 models share: initialisation and what transformers may do with them."""

    config_class = I3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["I3Layer"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if not getattr(module, "is_stored", False):
            init_module(module, self.config)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Save as transformers does, with the model card of the folder that this came from."""
        card = self._card()  # first: it may be saved where it came from
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "README.md"
        if path.parent.is_dir() and not path.exists():
            path.write_text(card, encoding="utf-8")

    def _card(self) -> str:
        name, found = str(self.config._name_or_path), None
        if name:
            with contextlib.suppress(OSError, ValueError):  # it is gone, or never was a place
                found = cached_file(name, "README.md")
        if found is not None:
            return Path(found).read_text(encoding="utf-8")
        config = copy.deepcopy(self.config)
        config.weight_bits = 32  # else matrices are buffers, and not counted
        with torch.device("meta"):
            parameters = type(self)(config).num_parameters()
        return model_card(config.to_dict(), parameters, None)

    def _upload_modified_files(
        self, working_dir: str | PathLike, repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Upload with our card where transformers would put a form that nobody has filled in."""
        path = Path(working_dir) / "README.md"
        if path.exists():
            card = placed(self._card(), repo_id, path.read_text(encoding="utf-8"))
            path.write_text(card, encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _store(self) -> None:
        if self.config.weight_bits != 32:
            store_for_inference(self, self.config.weight_bits)


class I3Model(I3PreTrainedModel):
    """Embeddings, layers and final norm: token ids (B, T) to hidden states (B, T, D)."""

    def __init__(self, config: I3Config) -> None:
        super().__init__(config)
        build_backbone(self, config)
        self.gradient_checkpointing = False
        self._store()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Run the backbone.

        attention_mask: (B, T_all), 0 for padding, which must stand on the left. position_ids:
        (B, T), counted over unpadded tokens by default. With `output_attentions` each layer's
        probabilities (B, H, T, T_all) are returned. Raises ValueError for wrong inputs and for more
        tokens than the window holds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            adopt(past_key_values, len(self.layers))

        if position_ids is None:
            position_ids = self._positions(x, attention_mask, past_key_values)
        elif (
            position_ids.shape[-1] > 1
            and not torch.compiler.is_compiling()
            and (position_ids.diff() < 0).any()
        ):
            raise ValueError(
                "positions go backwards: several texts in one row would run into one another; "
                "give each text a row of its own, padded on the left"
            )
        self._check_window(x.shape[1], position_ids, past_key_values)
        if isinstance(attention_mask, dict):
            mask, kept = attention_mask["full_attention"], attention_mask["linear_attention"]
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
            )
            # Not transformers' recurrent mask, which takes a single new token for unpadded.
            kept = (
                attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
            )
        padding = None if kept is None else kept[:, -x.shape[1] :, None].to(x.dtype)

        x = x + self.embed_positions(position_ids)
        hidden_states: tuple[Tensor, ...] = (x,)
        weights: list[Tensor] | None = None
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            weights = []
        for index, layer in enumerate(self.layers):
            state = None
            if past_key_values is not None:
                state = CachedState(past_key_values, index, self.config.hidden_size)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(
                    layer.__call__, x, mask, padding, None, weights
                )
            else:
                x = layer(x, mask, padding, state, weights)
            hidden_states += (x,)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states[:-1], x)
            if self.config.output_hidden_states or output_hidden_states
            else None,
            attentions=None if weights is None else tuple(weights),
        )

    def _check_window(self, new: int, position_ids: Tensor, cache: Cache | None) -> None:
        window = self.config.max_position_embeddings
        if torch.compiler.is_compiling():
            return
        past = 0 if cache is None else int(cache.get_seq_length())
        if past + new > window and position_ids.max() >= window:
            raise ValueError(
                f"{past + new} tokens are more than the model's window of {window}; "
                "generate goes on from a part of them where it is given the whole text"
            )

    def _positions(
        self, x: Tensor, attention_mask: Tensor | dict | None, cache: Cache | None
    ) -> Tensor:
        past = 0 if cache is None else cache.get_seq_length()
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            counted = attention_mask.long().cumsum(-1) - 1
            return counted.clamp(min=0)[:, past : past + x.shape[1]]
        return torch.arange(x.shape[1], device=x.device)[None] + past


class I3ForCausalLM(I3PreTrainedModel, I3GenerationMixin):
    """i3 with its LoRPt head, for generation and training."""

    def __init__(self, config: I3Config) -> None:
        super().__init__(config)
        self.model = I3Model(config)
        self.lm_head = LoRPtLinear(config.hidden_size, config.vocab_size, config.rank)
        self._store()
        self.post_init()

    def _get_resized_lm_head(
        self, old_lm_head: nn.Module, new_num_tokens: int, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if not isinstance(old_lm_head, LoRPtLinear):
            return super()._get_resized_lm_head(old_lm_head, new_num_tokens, *args, **kwargs)
        old_lm_head.resize(new_num_tokens)
        return old_lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits (B, T, V) and, with labels (B, T), the mean loss in nats a token.

        Labels of -100 are ignored; they are moved by one position here. `logits_to_keep` keeps the
        last so many positions, or those of an index.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = head_logits(self.lm_head, outputs.last_hidden_state[:, kept], self.config)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Give the vocabulary `new_num_tokens` rows: those of the embedding, and of the head.

        The head's factor A (V, R) and its bias (V) change with the embedding (V, D). All rows are
        tokens then, but for those that only pad to a multiple. Rows of new tokens are the mean of
        the old tokens' rows; without `mean_resizing` those of the embedding are drawn at random.
        ValueError where matrices are stored in 4 or 8 bits.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        if self.config.weight_bits != 32:
            raise ValueError(
                f"matrices of {self.config.weight_bits} bits cannot be resized; "
                "resize the original model and quantize it again"
            )
        before = used_rows(self.config)
        after = before if new_num_tokens is None else new_num_tokens
        with torch.enable_grad():  # else transformers takes the head for a frozen one
            embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, False)
        with torch.no_grad():
            tables = [p for name, p in self.lm_head.named_parameters() if name != "B"]
            for table in [embeddings.weight, *tables] if mean_resizing else tables:
                table[before:after] = table[:before].mean(0)
        self.config.used_vocab_size = after
        return embeddings


I3Config.register_for_auto_class()
I3Model.register_for_auto_class("AutoModel")
I3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
