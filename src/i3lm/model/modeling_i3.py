"""i3 for transformers: the modules of `layers_i3` with caches, masks and `generate`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_i3 import I3Config
from .layers_i3 import build_backbone, head_logits, init_module, lorpt_map
from .stored_i3 import store_for_inference

_LENGTHS = ("max_length", "max_new_tokens")


class _CachedState:
    """One layer's part of a transformers cache, as the `State` that `I3Layer` goes on from."""

    def __init__(self, cache: Cache, index: int, hidden_size: int) -> None:
        self.cache, self.index, self.hidden_size = cache, index, hidden_size

    @property
    def recurrent(self) -> tuple[Tensor, Tensor] | None:
        joined = self.cache.layers[self.index].recurrent_states[0]
        if joined is None:
            return None
        return joined[:, : self.hidden_size], joined[:, self.hidden_size :]

    @recurrent.setter
    def recurrent(self, state: tuple[Tensor, Tensor]) -> None:
        self.cache.update_recurrent_state(torch.cat(state, dim=-1), self.index)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(keys, values, self.index)


class _WindowFull(StoppingCriteria):
    """Ends generation where no position is left, at `length` ids."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        full = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), full, device=input_ids.device)


class I3PreTrainedModel(PreTrainedModel):
    """What i3 models share: initialisation and what transformers may do with them."""

    config_class = I3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["I3Layer"]  # noqa: RUF012
    _supports_sdpa = True
    # A cache cannot be cut back: the recurrent state holds the past in sum.
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        if not getattr(module, "is_stored", False):
            init_module(module, self.config)

    def _store(self) -> None:
        if self.config.weight_bits != 32:
            store_for_inference(self, self.config.weight_bits)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse with NotImplementedError: transformers would leave the factored head behind."""
        raise NotImplementedError(
            "the vocabulary of an i3 model cannot be resized; train one with a larger --vocab-size"
        )


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
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Run the backbone.

        attention_mask: (B, T_all), 0 for padding, which must stand on the left. position_ids:
        (B, T), counted over unpadded tokens by default. Raises ValueError for wrong inputs and for
        more tokens than the window holds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        if position_ids is None:
            position_ids = self._positions(x, attention_mask, past_key_values)
        window = self.config.max_position_embeddings
        if x.shape[1] > window and position_ids.max() >= window:
            raise ValueError(f"{x.shape[1]} tokens are more than the model's window of {window}")
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
        for index, layer in enumerate(self.layers):
            state = None
            if past_key_values is not None:
                state = _CachedState(past_key_values, index, self.config.hidden_size)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, mask, padding, None)
            else:
                x = layer(x, mask, padding, state)
            hidden_states += (x,)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states[:-1], x)
            if self.config.output_hidden_states or output_hidden_states
            else None,
        )

    def _positions(
        self, x: Tensor, attention_mask: Tensor | dict | None, cache: Cache | None
    ) -> Tensor:
        past = 0 if cache is None else cache.get_seq_length()
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            counted = attention_mask.long().cumsum(-1) - 1
            return counted.clamp(min=0)[:, past : past + x.shape[1]]
        return torch.arange(x.shape[1], device=x.device)[None] + past


class I3ForCausalLM(I3PreTrainedModel, GenerationMixin):
    """i3 with its LoRPt head, for generation and training."""

    def __init__(self, config: I3Config) -> None:
        super().__init__(config)
        self.model = I3Model(config)
        self.lm_head = lorpt_map(config, config.hidden_size, config.vocab_size)
        self._store()
        self.post_init()

    def get_output_embeddings(self) -> None:
        """Return None: the head is a pair of factors, not one matrix that could be tied."""

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
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does, ending at the latest where the window is full.

        That is also the default length. Raises ValueError for a prompt that leaves no room.
        """
        window = self.config.max_position_embeddings
        ids = kwargs.get("input_ids") if inputs is None else inputs
        embeds = kwargs.get("inputs_embeds")
        given = 0 if ids is None else ids.shape[1]  # ids come back in front of the new ones
        prompt = given if embeds is None else embeds.shape[1]
        if prompt >= window:
            raise ValueError(
                f"the prompt has {prompt} tokens and the model's window {window}: "
                f"shorten it to {window - 1} tokens or fewer, or use `i3lm generate`, which goes on"
            )
        criteria = StoppingCriteriaList(stopping_criteria or [])
        criteria.append(_WindowFull(window - prompt + given))
        lengths = (getattr(self.generation_config, name) for name in _LENGTHS)
        if generation_config is None and all(
            value is None for value in (*lengths, *map(kwargs.get, _LENGTHS))
        ):
            kwargs["max_new_tokens"] = window - prompt
        return super().generate(
            inputs, generation_config, logits_processor, criteria, *args, **kwargs
        )


I3Config.register_for_auto_class()
I3Model.register_for_auto_class("AutoModel")
I3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
