"""The held-out text that a run looks at on its way, and the replies it shows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from i3lm.folder import Loaded
from i3lm.generation import Sampling, TextStream, make_generator
from i3lm.scoring import score_tokens
from i3lm.tokenizer import BOS, END_INST, EOS, INST, SPECIAL_TOKENS, ChunkTokenizer
from i3lm.training.loop import Trainer

QUICK_TOKENS = 16_384  # what a run scores on its way: a second or so
FINAL_TOKENS = 65_536  # what it scores at its end
FIRST_BYTE = len(SPECIAL_TOKENS)
SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class HeldOut:
    """The first whole documents of the held-out split, up to a number of tokens."""

    tokens: np.ndarray  # (N,) uint16
    characters: int  # of the documents' text, as `i3lm.data.packing.Corpus` counts them


def first_documents(tokens: np.ndarray, limit: int, tokenizer: ChunkTokenizer) -> HeldOut:
    """Take whole documents up to `limit` tokens; where the first is longer, its beginning."""
    taken = np.array(tokens[:limit])
    if len(tokens) > limit:
        ends = np.flatnonzero(taken == EOS)
        if len(ends):
            taken = taken[: ends[-1] + 1]
    return HeldOut(taken, count_characters(taken, tokenizer))


def count_characters(tokens: np.ndarray, tokenizer: ChunkTokenizer) -> int:
    """Return the characters of the text that a token stream (N,) stands for.

    Conversations count in their line form, `[INST] user [/INST] assistant [INST] ...`, and every
    document with the line end that closes it. Bytes that continue a character count nothing.
    """
    lengths = np.array([len(token) for token in tokenizer.tokens])
    lengths[: FIRST_BYTE + 256] = 0
    lengths[FIRST_BYTE : FIRST_BYTE + 256] = [(byte & 0xC0) != 0x80 for byte in range(256)]
    lengths[EOS] = 1
    lengths[INST] = len(" [INST] ")
    lengths[END_INST] = len(" [/INST] ")
    opening = np.count_nonzero((tokens[:-1] == BOS) & (tokens[1:] == INST))  # no space before it
    return int(lengths[tokens].sum()) - int(opening)


def sample_prompts(tokens: np.ndarray, tokenizer: ChunkTokenizer) -> list[list[int]]:
    """Return prompts (token ids) for the replies shown on the way.

    For conversations "Who are you?" and the first user turn of some held-out ones; for other
    text the first tokens of some held-out documents.
    """
    starts = np.flatnonzero(tokens[:FINAL_TOKENS] == BOS)[:3]
    prompts = []
    for start in starts:
        head = tokens[start : start + 128]
        if len(head) > 1 and head[1] == INST:
            closing = np.flatnonzero(head == END_INST)
            if len(closing):
                prompts.append(head[: closing[0] + 1].tolist())
        else:
            prompts.append(head[:12].tolist())
    if prompts and prompts[0][1:2] == [INST]:
        question = [{"role": "user", "content": "Who are you?"}]
        prompts.insert(0, tokenizer.encode_conversation(question, True).tolist())
    return prompts


def bits_per_character(
    trainer: Trainer,
    text: HeldOut,
    on_the_way: bool = False,
    report: Callable[[float], None] = lambda share: None,
) -> float:
    """Score the text; raise Interrupted where a signal comes meanwhile.

    On the way products have the training's precision, in half of the time; the closing figure is
    of float32. `report` is told the share done, 0 to 1.
    """
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        trainer.heed_signals()
        done += count
        report(done / (len(text.tokens) - 1))

    trainer.network.eval()
    autocast = on_the_way and trainer.autocast
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=autocast):
        # No more windows at once than in training: evaluation must not need more memory.
        nats, _ = score_tokens(
            trainer.network,
            text.tokens,
            batch=trainer.microbatch,
            advance=advance,
        )
    return nats / math.log(2) / text.characters


def sample_reply(trainer: Trainer, tokenizer: ChunkTokenizer, prompts: list[list[int]]) -> dict:
    """Continue one of the prompts, greedily; another prompt each time."""
    network = trainer.network
    prompt = prompts[trainer.counters.step % len(prompts)]
    reply = TextStream(
        Loaded(network, tokenizer, network.config),
        prompt,
        max_new_tokens=SAMPLE_TOKENS,
        sampling=Sampling(temperature=0.0),
        generator=make_generator(0),
        ends=(EOS, INST),
    )
    question = tokenizer.decode(prompt).strip()
    return {"prompt": question, "reply": "".join(reply).strip()}
