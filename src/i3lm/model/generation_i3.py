"""`generate` of i3 models: transformers' own, which goes on where the window is full."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging

from .cache_i3 import adopt
from .window_i3 import kept_of_prompt, last_before_move, reserve, starts

logger = logging.get_logger(__name__)

_LENGTHS = ("max_length", "max_new_tokens")


# What transformers would not refuse, or only by a crash: name, what it may be, in words.
_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("temperature", lambda x: 0 <= x < float("inf"), "a finite number, at least 0"),
    ("top_p", lambda x: 0 <= x <= 1, "between 0 and 1"),
    ("num_beams", lambda x: x >= 1, "at least 1"),
    ("num_return_sequences", lambda x: x >= 1, "at least 1"),
)


def _check_settings(kwargs: dict[str, Any], config: GenerationConfig | None) -> None:
    for name, fits, words in _SETTINGS:
        value = kwargs.get(name, getattr(config, name, None))
        if value is not None and not fits(value):
            raise ValueError(f"{name} is {value!r}; it must be {words}")


class _WindowFull(StoppingCriteria):
    """Ends generation where no position is left, at `length` ids."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        full = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), full, device=input_ids.device)


class I3GenerationMixin(GenerationMixin):
    """What `generate` does beyond a window, by the rule of `window_i3`."""

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
        """Generate as transformers does, and beyond the window, with a notice.

        Of a prompt that is too long the newest part is read: whole turns of a conversation, tokens
        of other texts. The prompt comes back whole, but criteria, processors and streamers see the
        part that is read. Text that outgrows the window goes on from its newest half window; behind
        `inputs_embeds`, which cannot be read anew, it ends there. The default length fills the
        window.
        """
        _check_settings(kwargs, generation_config)
        window = self.config.max_position_embeddings
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if kwargs.get("past_key_values") is not None:
            adopt(kwargs["past_key_values"], self.config.num_hidden_layers)
        if (
            ids is not None
            and ids.numel()
            and not 0 <= ids.min() <= ids.max() < self.config.vocab_size
        ):
            raise ValueError(
                f"token {ids.max()} is beyond the model's vocabulary of {self.config.vocab_size}; "
                "take model and tokenizer from one folder"
            )
        criteria = StoppingCriteriaList(stopping_criteria or [])
        shown, columns = ids, 0 if ids is None else ids.shape[1]
        if kwargs.get("inputs_embeds") is not None:
            columns = self._take_newest_embeddings(kwargs)
            given = 0 if ids is None else ids.shape[1]  # ids come back in front of the new ones
            criteria.append(_WindowFull(max(window - columns, 1) + given))
        elif (
            ids is not None
            and ids.ndim == 2
            and not getattr(generation_config, "is_assistant", False)
        ):
            ids = self._take_newest(ids, kwargs)
            columns = ids.shape[1]
            self._shift_lengths(generation_config, kwargs, shown.shape[1] - columns)
        values = [
            getattr(source, name, None)
            for source in (generation_config, self.generation_config)
            for name in _LENGTHS
        ]
        if not any(v is not None for v in (*values, *map(kwargs.get, _LENGTHS))):
            kwargs["max_new_tokens"] = max(window - max(columns, 1), reserve(window), 1)
        out = super().generate(ids, generation_config, logits_processor, criteria, *args, **kwargs)
        return out if ids is shown else _behind(shown, out, columns)

    def _take_newest_embeddings(self, kwargs: dict[str, Any]) -> int:
        """Cut embeddings, and what stands beside them, to the window; return their length."""
        window = self.config.max_position_embeddings
        length = kwargs["inputs_embeds"].shape[1]
        if length > window:
            logger.warning_once(kept_of_prompt([0] * length, window, None)[1])
            for name in ("inputs_embeds", "attention_mask"):
                if kwargs.get(name) is not None:
                    kwargs[name] = kwargs[name][:, -window:]
            kwargs.pop("position_ids", None)
        return min(length, window)

    def _take_newest(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Return what is read of prompts (B, T), padded on the left, with its mask in `kwargs`."""
        window, pad = self.config.max_position_embeddings, self.config.pad_token_id
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if mask is not None and mask.shape != ids.shape:  # only what follows the cache was given
            if getattr(cache, "has_moved", False):
                raise ValueError("the cache has outgrown the window; give generate the whole text")
            return ids
        real = (ids != pad).cumsum(1) > 0 if mask is None else mask.cumsum(1) > 0
        rows = [
            row[int(length) :]
            for row, length in zip(ids.tolist(), (~real).sum(1).tolist(), strict=True)
        ]
        kept, notices = zip(
            *(kept_of_prompt(row, window, self.config.bos_token_id) for row in rows), strict=True
        )
        for notice in filter(None, notices):
            logger.warning_once(notice)
        cut = any(notices) or ids.shape[1] > window
        if cache is not None and (cut or getattr(cache, "has_moved", False)):
            cache.reset()  # it does not hold the text from its beginning on
            cache.has_moved = cut
        if not cut:
            return ids
        width = max(map(len, kept))
        kwargs.pop("position_ids", None)
        kwargs["attention_mask"] = ids.new_tensor(
            [[0] * (width - len(r)) + [1] * len(r) for r in kept]
        )
        return ids.new_tensor([[pad] * (width - len(row)) + row for row in kept])

    def _shift_lengths(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any], dropped: int
    ) -> None:
        """Lengths of the whole text count what is not read, too."""
        for name in ("max_length", "min_length") if dropped else ():
            found = (
                kwargs.get(name),
                getattr(generation_config, name, None),
                getattr(self.generation_config, name, None),
            )
            value = next((v for v in found if v), None)
            if value is not None:
                kwargs[name] = value - dropped

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare a step; where the window is full, read the newest half of it anew."""
        window, length = self.config.max_position_embeddings, input_ids.shape[1]
        if inputs_embeds is None and length > window:
            new = next_sequence_length or length
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            first = input_ids.new_zeros(len(input_ids))
            if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
                first = (attention_mask.cumsum(1) == 0).sum(1)
            begins, before = (starts(first, n, window) for n in (length, length - new))
            if past == 0 or (begins != before).any():
                logger.warning_once(
                    f"past the model's window of {window} tokens: "
                    f"going on from the newest {max(1, window // 2)}"
                )
                new = length - int(begins.min())
                if past_key_values is not None:
                    past_key_values.reset()
                    past_key_values.has_moved = True
                past = 0
            columns = torch.arange(length - past - new, length, device=input_ids.device)
            mask = (columns >= begins[:, None]).long()
            kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
            attention_mask = None if mask.all() else mask
            next_sequence_length = new
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        """Leave out the warning that nothing good comes beyond the window."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if isinstance(criterion, MaxLengthCriteria):
                criterion.max_position_embeddings = None
        return criteria

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """Let drafts end where the text would be read from elsewhere."""
        generator = super()._get_candidate_generator(*args, **kwargs)
        window, inputs = self.config.max_position_embeddings, kwargs.get("model_kwargs", {})
        draft, mask = kwargs.get("assistant_model"), inputs.get("attention_mask")
        padding = 0 if mask is None else int((mask.cumsum(1) == 0).sum())
        if inputs.get("inputs_embeds") is not None:
            padding = kwargs["input_ids"].shape[1] - inputs["inputs_embeds"].shape[1]
        smallest = (
            min(window, getattr(draft.config, "max_position_embeddings", window)) if draft else 0
        )
        candidates: Callable = generator.get_candidates

        def within_window(input_ids: Tensor, **given: Any) -> tuple[Tensor, Tensor | None]:
            length = input_ids.shape[1] - padding
            room = last_before_move(length, window) - length
            if draft is not None:  # its cache counts from the beginning of the text
                room = min(room, smallest - length)
                generator.num_assistant_tokens = min(generator.num_assistant_tokens, max(room, 1))
            if room < 1:
                return input_ids, None
            ids, logits = candidates(input_ids, **given)
            end = input_ids.shape[1] + room
            return ids[:, :end], None if logits is None else logits[:, :room]

        generator.get_candidates = within_window
        return generator


def _behind(prompt: Tensor, out: Any, read: int) -> Any:
    """Put the whole prompts (B, T) in front of what followed their `read` columns."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    new = sequences[:, read:]
    whole = torch.cat([prompt.repeat_interleave(len(new) // len(prompt), 0).to(new), new], dim=1)
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    if out.past_key_values is not None:
        out.past_key_values.has_moved = True
    return out
