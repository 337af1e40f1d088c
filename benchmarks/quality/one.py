"""Train one contender and print its curve as JSON, in a process of its own.

python -m benchmarks.quality.one i3lm --train FILE --test FILE --tokens 200000
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.contenders import Budget, build
from i3lm.data import Corpus, open_source, prepare
from i3lm.errors import UserError
from i3lm.scoring import score_tokens
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import resident_bytes

POINTS = 8  # of the curve, the end included
QUICK_CHARACTERS = 50_000  # of the test text that a point on the way scores


def read_test(path: str, corpus: Corpus, documents: Any, characters: int) -> tuple[np.ndarray, int]:
    """Return the tokens of the first documents of a file, and their characters."""
    parts, count = [], 0
    for document in open_source([path], documents=documents):
        if document.messages is None:
            parts.append(corpus.tokenizer.encode_document(document.plain))
        else:
            parts.append(corpus.tokenizer.encode_conversation(document.messages))
        count += document.characters
        if count >= characters:
            break
    return np.concatenate(parts), count


def bits(network: Any, text: tuple[np.ndarray, int], stride: int | None) -> float:
    """Return bits per character: all nats / ln 2 / all characters."""
    network.eval()
    tokens, characters = text
    nats, _ = score_tokens(network, tokens, stride=stride, batch=4)
    return nats / math.log(2) / characters


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score; return the result."""
    if options.threads:
        torch.set_num_threads(options.threads)
    size, least = TrainConfig(preset=options.preset, vocab_size=options.vocab_size).vocabulary
    with tempfile.TemporaryDirectory() as folder:
        source = open_source([options.train], documents=options.documents)
        into = Path(options.corpus or folder)
        corpus = prepare(source, into, vocab_size=size, min_chunk_count=least)
        sizes = options.preset, options.batch_tokens, options.seed, options.context
        contender = build(options.contender, corpus, *sizes)
        network = contender.network
        context = network.config.max_position_embeddings
        text = read_test(options.test, corpus, options.documents, options.test_characters)
        quick = read_test(options.test, corpus, options.documents, QUICK_CHARACTERS)
        seconds = None if options.minutes is None else 60 * options.minutes
        curve, due, last = [], 1 / POINTS, None
        for last in contender.steps(Budget(options.tokens, seconds)):
            if last.share >= due and last.share < 1:
                score = bits(network, quick, context)
                curve.append({"tokens": last.tokens, "seconds": last.seconds, "bits": score})
                print(f"{options.contender} {last.share:.0%}: {score:.4f}", file=sys.stderr)
                due += 1 / POINTS
        assert last is not None
        peak = resident_bytes()[1]
        final = bits(network, text, context // 2)
    return {
        "bits_per_character": final,
        "contender": options.contender,
        "seed": options.seed,
        "tokens": last.tokens,
        "seconds": last.seconds,
        "tokens_per_second": last.tokens / last.seconds,
        "peak_bytes": peak,
        "settings": contender.settings,
        "test_characters": text[1],
        "curve": [*curve, {"tokens": last.tokens, "seconds": last.seconds, "bits": final}],
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both this command and the table's take."""
    parser.add_argument("--tokens", type=int, help="train on so many tokens ...")
    parser.add_argument("--minutes", type=float, help="... or for so long")
    parser.add_argument("--preset", default="i3-12m")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--documents", default="auto", help="how the files are divided")
    parser.add_argument("--test-characters", type=int, default=300_000)
    parser.add_argument("--threads", type=int)


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    arguments(parser)
    parser.add_argument("--train", required=True, help="text to train on")
    parser.add_argument("--test", required=True, help="text to score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", help="folder of the token files, kept for the next run")
    options = parser.parse_args()
    if (options.tokens is None) == (options.minutes is None):
        parser.error("give --tokens or --minutes")
    try:
        print(json.dumps(run(options)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
