"""Generate text with an exported folder: a runtime, numpy and the tokenizer.

An ONNX folder needs no torch. The window rule, stop strings and the end of a prompt are those of
`i3lm.generation` (`i3lm.streaming` holds them for both).
"""

import contextlib
import io
import json
import logging
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from i3lm.errors import UserError
from i3lm.files import read_small
from i3lm.presets import TEMPERATURE, TOP_P
from i3lm.streaming import (
    Notify,
    Sampling,
    TokenText,
    WindowDecoder,
    ignore,
    make_generator,
    split_prompt,
)
from i3lm.tokenizer import EOS, INST, ChunkTokenizer

PREFILL, DECODE, WEIGHTS = "prefill.onnx", "decode.onnx", "weights.bin"
PROGRAM = "model.pte"
INPUTS = ("input_ids", "attention_mask")
STATES = ("keys", "values", "h", "s")
ONNX_INSTALL = "pip install 'i3lm[export]'"
EXECUTORCH_INSTALL = (
    "pip install 'i3lm[executorch]', which is there for Linux, Windows on x86-64, macOS 14 on ARM"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries tell of themselves back; what goes wrong in them is raised, too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class ExportedModel(ABC):
    """An exported folder in memory: two graphs, the tokenizer, the window in tokens.

    `threads` are those of the runtime; by default it chooses. UserError, in one line, where the
    runtime is missing or the folder is not sound.
    """

    file: str  # by which such a folder is known
    rows: int  # texts that are worth reading at once

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        if not (folder / self.file).is_file():
            raise UserError(f"{folder} has no {self.file}; make it with i3lm export")
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
        try:
            self._open(folder, threads)
        except UserError:
            raise
        except Exception as error:  # runtimes have classes of their own
            reason = str(error).partition("\n")[0][:200]
            raise UserError(f"{folder} is damaged ({reason}); export the model anew") from None

    @abstractmethod
    def _open(self, folder: Path, threads: int | None) -> None:
        """Load the graphs."""

    @abstractmethod
    def _run(self, graph: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph "prefill" or "decode"."""

    def prefill(
        self, ids: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return logits (B, T, V) of ids (B, T) int64, and the state after them.

        mask: (B, T) int64, 0 for padding, which must stand on the left. At most a window of ids.
        """
        mask = np.ones_like(ids) if mask is None else mask
        logits, *state = self._run("prefill", (ids, mask))
        return logits, state

    def decode(
        self, ids: np.ndarray, state: Sequence[np.ndarray], mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return logits (B, 1, V) of one more id each, (B, 1) int64, and the state after it.

        mask: (B, P + 1) int64 with the P positions held before and the new one.
        """
        if mask is None:
            mask = np.ones((len(ids), state[0].shape[3] + 1), np.int64)
        logits, *new = self._run("decode", (ids, mask, *state))
        return logits, new


class OnnxModel(ExportedModel):
    """Two graphs for onnxruntime, for any number of texts at once."""

    file, rows = DECODE, 8

    def _open(self, folder: Path, threads: int | None) -> None:
        try:
            import onnxruntime as runtime
        except ImportError:
            raise UserError(f"onnxruntime is not installed: {ONNX_INSTALL}") from None
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, too
        if threads is not None:
            options.intra_op_num_threads = threads
        self._sessions = {
            graph: runtime.InferenceSession(
                str(folder / name), options, providers=["CPUExecutionProvider"]
            )
            for graph, name in (("prefill", PREFILL), ("decode", DECODE))
        }

    def _run(self, graph: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._sessions[graph].run(None, dict(zip((*INPUTS, *STATES), inputs, strict=False)))


class ExecutorchModel(ExportedModel):
    """One program for ExecuTorch's runtime, which takes one text (B = 1) and, in Python, torch.

    `threads` are those of the whole process.
    """

    file, rows = PROGRAM, 1

    def _open(self, folder: Path, threads: int | None) -> None:
        with quiet():
            try:
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime
            except ImportError as error:  # it is not there, or made for another torch
                raise UserError(f"no executorch ({error}): {EXECUTORCH_INSTALL}") from None
            if threads is not None:
                portable_lib._unsafe_reset_threadpool(threads)
            program = Runtime.get().load_program(folder / self.file)
            self._methods = {name: program.load_method(name) for name in ("prefill", "decode")}

    def _run(self, graph: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        method = self._methods[graph]
        assert method is not None
        tensors = [torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in inputs]
        return [tensor.numpy() for tensor in method.execute(tensors)]


KINDS: tuple[type[ExportedModel], ...] = (OnnxModel, ExecutorchModel)


def is_exported(folder: str | Path) -> bool:
    """Say whether `folder` is one that `i3lm export` wrote for another runtime."""
    return any((Path(folder) / kind.file).is_file() for kind in KINDS)


def needs_torch(folder: str | Path) -> bool:
    """Say whether what runs an exported folder has its numbers from torch: ExecuTorch."""
    return (Path(folder) / PROGRAM).is_file()


def open_exported(folder: str | Path, threads: int | None = None) -> ExportedModel:
    """Return the model of an exported folder, of either kind; UserError as for `ExportedModel`."""
    for kind in KINDS:
        if (Path(folder) / kind.file).is_file():
            return kind(folder, threads)
    files = " or ".join(kind.file for kind in KINDS)
    raise UserError(f"{folder} has no {files}; make it with i3lm export --to onnx or executorch")


class ExportedDecoder(WindowDecoder):
    """Feeds tokens to an `ExportedModel` as `i3lm.generation.Decoder` does to a network."""

    def __init__(self, model: ExportedModel) -> None:
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


Model: TypeAlias = str | Path | ExportedModel


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
    original model; a seed draws the same ones while logits differ in their last places. UserError.
    """
    opened = model if isinstance(model, ExportedModel) else open_exported(model)
    if isinstance(prompt, str):
        ids, begin_with = split_prompt(opened.tokenizer, prompt)
        ends: tuple[int, ...] = (EOS,)
    else:
        ids = [int(i) for i in opened.tokenizer.encode_conversation(prompt, True)]
        begin_with, ends = b"", (EOS, INST)
    return follow(
        opened,
        ids,
        Sampling(temperature, top_k, top_p),
        make_generator(seed),
        max_new_tokens=max_new_tokens,
        ends=ends,
        stop=stop,
        begin_with=begin_with,
        notify=notify,
    )


def follow(
    opened: ExportedModel,
    ids: Sequence[int],
    sampling: Sampling,
    generator: random.Random,
    **settings: Any,
) -> TokenText:
    """Return the text that follows the tokens `ids`; `settings` are those of `TokenText`."""
    return TokenText(
        opened.tokenizer,
        lambda: ExportedDecoder(opened),
        lambda logits: sampling.pick(logits, generator),
        ids,
        **settings,
    )


def generate(model: Model, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> str:
    """Return what `stream` gives, in one piece."""
    return "".join(stream(model, prompt, **settings))
