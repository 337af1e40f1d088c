"""Is an export like its original, and what does it cost: bytes, tokens a second, bits."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from i3lm.data import Corpus, open_source
from i3lm.data.conversations import held_out
from i3lm.data.documents import Document
from i3lm.errors import UserError
from i3lm.exported import ExportedDecoder, ExportedModel, is_exported, open_exported
from i3lm.folder import Loaded, load_folder
from i3lm.generation import Decoder
from i3lm.model.network import I3Network
from i3lm.scoring import batches, check_window, score_tokens, window_rule
from i3lm.tokenizer import ChunkTokenizer
from i3lm.training.heldout import FINAL_TOKENS, first_documents

CONVERSATIONS = 300  # of the default text, about 70,000 characters
CLOSE = 1e-3  # logits: what float32 sums in another order may differ by, and much more
ROUNDS = 3  # of the speed, in turn; the best counts
_FILES = ("*.json", "*.jinja", "*.py", "*.safetensors", "*.onnx", "*.pte", "weights.bin")
_RUN = {"run.json", "manifest.json"}


class Exact(Decoder):
    """Feeds a network in float32 alone, as graphs compute, not by the step of bfloat16 factors."""

    def __init__(self, network: I3Network) -> None:
        super().__init__(network)
        self._step = None


def same_tokens(loaded: Loaded, exported: ExportedModel, prompts: int = 3) -> dict[str, Any]:
    """Hold greedy tokens of exported graphs against our own path, past the window's end.

    Returns `tokens` compared, the `largest_difference` of their logits, and `ties`: tokens that
    differ because our path's two best logits lie closer than `CLOSE`. UserError if others differ.
    """
    compared, ties, largest = 0, 0, 0.0
    used = len(loaded.tokenizer)
    for messages in held_out(prompts):
        ours, theirs = Exact(loaded.network), ExportedDecoder(exported)
        ids = [int(i) for i in loaded.tokenizer.encode_conversation(messages[:-1], True)]
        ids = ids[-(ours.window - 1) :]
        for _ in range(ours.window - len(ids) + 8):
            wanted, found = ours.feed(ids).numpy()[:used], theirs.feed(ids)[:used]
            largest = max(largest, float(np.abs(wanted - found).max()))
            best, other = int(wanted.argmax()), int(found.argmax())
            tie = best != other and wanted[best] - wanted[other] < CLOSE
            if largest > CLOSE * max(1.0, float(np.abs(wanted).max())) or (
                best != other and not tie
            ):
                raise UserError(
                    f"the graphs differ from the model by {largest:.2g}: other versions of torch "
                    "and of the exporting packages may export it rightly"
                )
            compared, ties, ids = compared + 1, ties + tie, [best]
    return {"tokens": compared, "ties": ties, "largest_difference": largest}


@torch.inference_mode()
def same_logits(loaded: Loaded, exported: Loaded) -> dict[str, Any]:
    """Hold the logits of two networks against each other over a window of text.

    UserError where they differ by more than the float error.
    """
    messages = next(iter(held_out(1)))
    ids = loaded.tokenizer.encode_conversation(messages).astype(np.int64)
    tokens = torch.from_numpy(ids[: loaded.architecture.max_position_embeddings])[None]
    used = len(loaded.tokenizer)
    ours, theirs = (each.network(tokens)[..., :used] for each in (loaded, exported))
    largest = float((ours - theirs).abs().max())
    if not largest <= CLOSE * max(1.0, float(ours.abs().max())):
        raise UserError(f"the merged model differs from the original by {largest:.2g} in a logit")
    return {"tokens": tokens.numel(), "largest_difference": largest}


def compare(model: Path, exported: Path, to: str, data: Sequence[str | Path]) -> dict[str, Any]:
    """Return `rows` of the original and the export, and what they were measured on.

    Each row: `form`, `bytes`, `tokens_per_second`, `bits_per_character`.
    """
    loaded = load_folder(model)
    tokens, characters, text = _text(model, loaded.tokenizer, data)
    context, stride = check_window(loaded.network, None, None)
    decoders: list[Callable[[], Any]] = [lambda: Decoder(loaded.network)]
    nats = [score_tokens(loaded.network, tokens)[0]]
    if is_exported(exported):
        graphs = open_exported(exported, threads=1)
        decoders.append(lambda: ExportedDecoder(graphs))
        nats.append(_score_exported(open_exported(exported), tokens, context, stride))
    else:
        network = load_folder(exported).network
        decoders.append(lambda: Decoder(network))
        nats.append(score_tokens(network, tokens)[0])
    prompt = [int(i) for i in tokens[: min(16, context - 1)]]
    speeds = [0.0, 0.0]
    for _ in range(ROUNDS):  # in turn: what else the machine does meets both
        for i, decoder in enumerate(decoders):
            speeds[i] = max(speeds[i], _speed(decoder(), prompt))
    rows = [
        {
            "form": form,
            "bytes": _bytes(folder),
            "tokens_per_second": round(speed, 1),
            "bits_per_character": lost / math.log(2) / characters,
        }
        for form, folder, speed, lost in zip(
            ("original", to), (model, exported), speeds, nats, strict=True
        )
    ]
    return {
        "rows": rows,
        "text": text,
        "characters": characters,
        "rule": window_rule(context, stride),
        "speed": f"greedy, one text, one thread, the best of {ROUNDS} rounds",
    }


def _text(
    model: Path, tokenizer: ChunkTokenizer, data: Sequence[str | Path]
) -> tuple[np.ndarray, int, str]:
    """Return tokens, the number of characters, and what the text is.

    Without `data`, the run's own held-out text, as its card measures it, where the run is there.
    """
    corpus = None if data else _own(model, tokenizer)
    if corpus:
        taken = first_documents(corpus.held_out, FINAL_TOKENS, tokenizer)
        text = f"the run's own held-out text ({corpus.manifest['description']})"
        return taken.tokens, taken.characters, text
    if data:
        source = open_source(list(data))
        documents, text = list(source), source.description
    else:
        documents = [Document(None, m, "held-out") for m in held_out(CONVERSATIONS)]
        text = f"{CONVERSATIONS} built-in conversations, the run's own text being not in the folder"
    if not documents:
        raise UserError(f"{text}: no text in it; give a file with text")
    parts = [
        tokenizer.encode_document(d.plain)
        if d.messages is None
        else tokenizer.encode_conversation(d.messages)
        for d in documents
    ]
    return np.concatenate(parts), sum(d.characters for d in documents), text


def _own(model: Path, tokenizer: ChunkTokenizer) -> Corpus | None:
    """Return the run's corpus, if the model folder has one that is sound and its own."""
    try:
        corpus = Corpus.open(model / "data")
    except UserError:
        return None
    return corpus if corpus.tokenizer.fingerprint == tokenizer.fingerprint else None


def _score_exported(model: ExportedModel, tokens: np.ndarray, context: int, stride: int) -> float:
    """Return the nats of tokens[1:], by the windows of `score_tokens`."""
    nats = 0.0
    for inputs, targets in batches(tokens, context, stride, model.rows):
        logits = model.prefill(inputs)[0][:, -targets.shape[1] :].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
        nats += float((total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).sum())
    return nats


def _speed(decoder: Any, prompt: list[int]) -> float:
    """Return tokens a second of greedy decoding, without the prompt."""
    token = int(np.asarray(decoder.feed(prompt)).argmax())
    count = max(1, min(128, decoder.window - len(prompt) - 1))
    begin = time.perf_counter()
    for _ in range(count):
        token = int(np.asarray(decoder.feed([token])).argmax())
    return count / (time.perf_counter() - begin)


def _bytes(folder: Path) -> int:
    """Return the bytes of the files that make the model, not of the run that made it."""
    files = {path for pattern in _FILES for path in folder.glob(pattern) if path.name not in _RUN}
    return sum(path.stat().st_size for path in files)
