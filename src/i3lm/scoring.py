"""Score a token stream: every token once, each with as much context as the windows give it."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from i3lm.errors import UserError
from i3lm.model.network import I3Network


def window_rule(context: int, stride: int) -> str:
    """Return the sentence that says what `score_tokens` lets each token see."""
    if stride == context:
        return f"windows of {context} tokens, side by side: a window's first token sees 1 token"
    return (
        f"windows of {context} tokens, stride {stride}: each token sees at least "
        f"{context - stride} tokens of context, where the text has them"
    )


def check_window(network: I3Network, context: int | None, stride: int | None) -> tuple[int, int]:
    """Return context and stride with their defaults (the window, half of the context) filled in.

    UserError where they do not fit the network.
    """
    window = network.config.max_position_embeddings
    context = window if context is None else context
    if not 1 <= context <= window:
        raise UserError(f"--context {context} must be between 1 and the model's window, {window}")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"--stride {stride} must be between 1 and the context, {context}")
    return context, stride


def score_tokens(
    network: I3Network,
    tokens: np.ndarray,
    context: int | None = None,
    stride: int | None = None,
    batch: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[float, int]:
    """Return (nats, count): the negative log-likelihood of tokens[1:], and how many they are.

    tokens: (N,) integers, N >= 2. Windows of `context` inputs begin every `stride` tokens; each
    scores the tokens that no earlier one did. `batch` windows go through the network at once.
    `advance` is told how many tokens were scored since its last call. UserError for a context
    beyond the network's window.
    """
    context, stride = check_window(network, context, stride)
    if len(tokens) < 2:
        raise UserError("there is nothing to score: the text gives fewer than 2 tokens")
    device = next(network.parameters()).device
    nats, count = 0.0, 0
    for inputs, targets in batches(tokens, context, stride, batch):
        scored = torch.from_numpy(targets).to(device)
        with torch.inference_mode():
            nats += float(network.loss(torch.from_numpy(inputs).to(device), scored))
        count += scored.numel()
        advance(scored.numel())
    return nats, count


def batches(
    tokens: np.ndarray, context: int, stride: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield inputs (B, T) and the targets (B, S) of their last S positions, both int64."""
    total = len(tokens) - 1
    first = min(context, total)
    yield _rows(tokens, [0], first, first)
    full = max(0, (total - first) // stride)
    starts = [stride * k for k in range(1, full + 1)]
    for at in range(0, full, batch):
        yield _rows(tokens, starts[at : at + batch], context, stride)
    rest = total - first - full * stride
    if rest:
        start = stride * (full + 1)
        yield _rows(tokens, [start], total - start, rest)


def _rows(
    tokens: np.ndarray, starts: list[int], context: int, scored: int
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64)
    return rows[:, :-1], rows[:, -scored:]
