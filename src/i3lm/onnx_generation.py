"""Generate text with an exported ONNX folder: onnxruntime, numpy and the tokenizer, no torch.

The window rule, stop strings and the end of a prompt are those of `i3lm.generation`
(`i3lm.streaming` holds them for both).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from i3lm.errors import UserError
from i3lm.files import read_small
from i3lm.presets import TEMPERATURE, TOP_P
from i3lm.streaming import Notify, SamplingRule, TokenText, WindowDecoder, ignore, split_prompt
from i3lm.tokenizer import EOS, INST, ChunkTokenizer

PREFILL, DECODE, WEIGHTS = "prefill.onnx", "decode.onnx", "weights.bin"
STATES = ("keys", "values", "h", "s")
INSTALL = "pip install 'i3lm[export]'"


def is_onnx_folder(folder: str | Path) -> bool:
    """Say whether `folder` is one that `i3lm export --to onnx` wrote."""
    return (Path(folder) / DECODE).is_file()


class OnnxModel:
    """An exported folder in memory: two graphs, the tokenizer, the window in tokens.

    `threads` are those of onnxruntime; by default it chooses. UserError, in one line, where
    onnxruntime is missing or the folder is not sound.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime as runtime
        except ImportError:
            raise UserError(f"onnxruntime is not installed: {INSTALL}") from None
        folder = Path(folder)
        if not is_onnx_folder(folder):
            raise UserError(f"{folder} has no {DECODE}; make it with i3lm export --to onnx")
        self.tokenizer = ChunkTokenizer.load(folder)
        path = folder / "config.json"
        try:
            config = json.loads(read_small(path))
            self.window, rows = (
                int(config[name]) for name in ("max_position_embeddings", "vocab_size")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); export the model anew") from None
        if not len(self.tokenizer) <= rows:
            raise UserError(f"{folder}: its tokenizer and its config.json differ; export anew")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._prefill, self._decode = (
                runtime.InferenceSession(
                    str(folder / name), options, providers=["CPUExecutionProvider"]
                )
                for name in (PREFILL, DECODE)
            )
        except Exception as error:  # onnxruntime has a class for each of its codes
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"{folder} is damaged ({reason}); export the model anew") from None

    def prefill(
        self, ids: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return logits (B, T, V) of ids (B, T) int64, and the state after them.

        mask: (B, T) int64, 0 for padding, which must stand on the left. At most a window of ids.
        """
        mask = np.ones_like(ids) if mask is None else mask
        logits, *state = self._prefill.run(None, {"input_ids": ids, "attention_mask": mask})
        return logits, state

    def decode(
        self, ids: np.ndarray, state: Sequence[np.ndarray], mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return logits (B, 1, V) of one more id each, (B, 1) int64, and the state after it.

        mask: (B, P + 1) int64 with the P positions held before and the new one.
        """
        if mask is None:
            mask = np.ones((len(ids), state[0].shape[3] + 1), np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, **dict(zip(STATES, state, strict=True))}
        logits, *new = self._decode.run(None, feeds)
        return logits, new


class OnnxDecoder(WindowDecoder):
    """Feeds tokens to an `OnnxModel` as `i3lm.generation.Decoder` does to a network."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model.window)
        self._model = model
        self._state: list[np.ndarray] | None = None

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Return the logits (V,) after `ids`, float32. At most a window of them."""
        ids = self._within_window(ids)
        if self._state is None:
            logits, self._state = self._model.prefill(np.array([ids], np.int64))
        else:
            for one in ids:
                logits, self._state = self._model.decode(np.array([[one]], np.int64), self._state)
        if np.isnan(logits).any():
            raise UserError("the model's output is not a number; export it anew")
        return logits[0, -1]

    def _held(self) -> int:
        return 0 if self._state is None else self._state[0].shape[3]

    def _forget(self) -> None:
        self._state = None


def pick(rule: SamplingRule, logits: np.ndarray, generator: np.random.Generator) -> int:
    """Draw a token from logits (V,), by the rule of `i3lm.generation.Sampling`."""
    if rule.temperature == 0:
        return int(logits.argmax())
    scores = (logits - logits.max()) / max(rule.temperature, 1e-30)  # not 0 in float32
    if rule.top_k is not None and rule.top_k < len(scores):
        scores[scores < np.partition(scores, -rule.top_k)[-rule.top_k]] = -np.inf
    weights = np.exp(scores, dtype=np.float64)
    order = np.argsort(-weights, kind="stable")
    share = weights[order] / weights.sum()
    before = share.cumsum() - share
    if rule.top_p is not None:
        share[before >= rule.top_p] = 0
    ends = share.cumsum()
    return int(order[np.searchsorted(ends, generator.random() * ends[-1], side="right")])


Model: TypeAlias = str | Path | OnnxModel


def stream(
    model: Model,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 128,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = TOP_P,
    seed: int | None = None,
    stop: Sequence[str] = (),
    notify: Notify = ignore,
) -> TokenText:
    """Return the continuation of a text, or the reply to chat messages, piece by piece.

    The arguments are those of `i3lm.generate`. At temperature 0 the tokens are those of the
    original model; a seed gives other text than there, since numpy draws. UserError.
    """
    opened = model if isinstance(model, OnnxModel) else OnnxModel(model)
    if isinstance(prompt, str):
        ids, begin_with = split_prompt(opened.tokenizer, prompt)
        ends: tuple[int, ...] = (EOS,)
    else:
        ids = [int(i) for i in opened.tokenizer.encode_conversation(prompt, True)]
        begin_with, ends = b"", (EOS, INST)
    return follow(
        opened,
        ids,
        SamplingRule(temperature, top_k, top_p),
        make_generator(seed),
        max_new_tokens=max_new_tokens,
        ends=ends,
        stop=stop,
        begin_with=begin_with,
        notify=notify,
    )


def make_generator(seed: int | None) -> np.random.Generator:
    """Return numpy's random numbers for a seed; others each time without one."""
    return np.random.default_rng(None if seed is None else seed % 2**64)


def follow(
    opened: OnnxModel,
    ids: Sequence[int],
    rule: SamplingRule,
    generator: np.random.Generator,
    **settings: Any,
) -> TokenText:
    """Return the text that follows the tokens `ids`; `settings` are those of `TokenText`."""
    return TokenText(
        opened.tokenizer,
        lambda: OnnxDecoder(opened),
        lambda logits: pick(rule, logits, generator),
        ids,
        **settings,
    )


def generate(model: Model, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> str:
    """Return what `stream` gives, in one piece."""
    return "".join(stream(model, prompt, **settings))
