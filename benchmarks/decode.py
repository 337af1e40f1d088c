"""Generation speed: i3lm's own path beside GPT-2 of equal size in transformers, both greedy.

Weights are random: the cost of a token does not depend on them.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.peers import gpt
from i3lm.folder import Loaded
from i3lm.generation import Decoder, Sampling, TextStream, make_generator
from i3lm.model.decoding import CompiledStep
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import BOS, ChunkTokenizer, VocabularyCounter
from i3lm.tokenizer.rule import FIRST_CHUNK
from i3lm.training.config import TrainConfig

NAME = "decode"
PROMPT = 10  # tokens
BATCH = 32
POSITIONS = (10, 60, 120, 250)
LENGTHS = (33, 161, 250)  # of prompts
AROUND = 5  # positions on either side that count as near


def run(*, preset: str, rounds: int, threads: int, tokens: int = 200) -> dict[str, Any]:
    """Measure; return what the JSON holds. Rates are in tokens a second of all streams."""
    loaded = random_model(preset)
    sizes = loaded.architecture
    tokens = min(tokens, sizes.max_position_embeddings - PROMPT)
    peer = gpt2(sizes)
    prompt = torch.randint(FIRST_CHUNK, sizes.vocab_size, (BATCH, PROMPT))

    def at(count: int, work: Callable[[Tensor, int], None], streams: int) -> common.Contender:
        def measure() -> float:
            torch.set_num_threads(count)
            return common.rate_of(lambda: (work(prompt[:streams], tokens), streams * tokens)[1])

        return measure

    works = {
        "i3lm": lambda ids, new: ours(loaded, ids[0].tolist(), new),
        "gpt2 generate": lambda ids, new: gpt2_generate(peer, ids, new),
        "gpt2 bare loop": lambda ids, new: gpt2_loop(peer, ids, new),
    }
    batched = {**works, "i3lm": lambda ids, new: ours_batched(loaded.network, ids, new)}
    contenders = {}
    for count in sorted({1, threads}):
        for name, work in works.items():
            contenders[f"{name}, 1 stream, threads {count}"] = at(count, work, 1)
        for name, work in batched.items():
            contenders[f"{name}, {BATCH} streams, threads {count}"] = at(count, work, BATCH)
    speeds = common.interleave(contenders, rounds)

    def best(name: str, streams: str) -> float:
        found = [
            s["median"] for n, s in speeds.items() if n.startswith(f"{name}, {streams} stream")
        ]
        return max(found)

    def ratio(name: str, streams: str = "1") -> float:
        return best("i3lm", streams) / best(name, streams)

    torch.set_num_threads(threads)
    return {
        "ratio_gpt2": ratio("gpt2 generate"),
        "ratio_gpt2_bare_loop": ratio("gpt2 bare loop"),
        "ratio_gpt2_batch": ratio("gpt2 generate", str(BATCH)),
        "ratio_gpt2_bare_loop_batch": ratio("gpt2 bare loop", str(BATCH)),
        "preset": preset,
        "prompt_tokens": PROMPT,
        "new_tokens": tokens,
        "batch": BATCH,
        "threads": threads,
        "rounds": rounds,
        "parameters": {"i3lm": sizes.parameters, "gpt2": peer.num_parameters()},
        "tokens_per_second": speeds,
        "seconds_per_token_at": by_position(loaded.network, rounds),
        "seconds_to_first_token": by_length(loaded, peer, rounds),
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    speeds = result["tokens_per_second"]
    common.print_table(
        f"generating {result['new_tokens']} tokens, {result['preset']}",
        ["contender", "tokens/s", "spread"],
        [[name, *common.cells(speed)] for name, speed in speeds.items()],
    )
    names = ("ratio_gpt2", "ratio_gpt2_bare_loop", "ratio_gpt2_batch", "ratio_gpt2_bare_loop_batch")
    common.print_table(
        "ours as a multiple, each at its better number of threads",
        ["of", "ratio"],
        [[name.removeprefix("ratio_"), f"{result[name]:.2f}"] for name in names],
    )
    common.print_table(
        "ours, milliseconds a token by position",
        ["position", "ms", "spread"],
        [
            [position, *common.cells(seconds, 1e-3, 3)]
            for position, seconds in result["seconds_per_token_at"].items()
        ],
    )
    common.print_table(
        "milliseconds from a prompt to its first token",
        ["prompt", "ms", "spread"],
        [
            [name, *common.cells(seconds, 1e-3, 3)]
            for name, seconds in result["seconds_to_first_token"].items()
        ],
    )


def random_model(preset: str) -> Loaded:
    """Return an untrained model, with a tokenizer that has a token for each row."""
    sizes = TrainConfig(preset=preset).architecture()
    counter = VocabularyCounter()
    # More different characters than any vocabulary has rows.
    counter.update("".join(map(chr, range(0x4E00, 0x9000))) * 2)
    tokenizer = ChunkTokenizer(counter.build(sizes.vocab_size))
    torch.manual_seed(0)
    return Loaded(I3Network(sizes).eval(), tokenizer, sizes)


def gpt2(sizes: Architecture) -> Any:
    """Return transformers' GPT-2 with as many parameters, untrained."""
    from transformers import GPT2Config, GPT2LMHeadModel

    like = gpt.sizes_like(sizes.parameters, sizes.vocab_size, sizes.max_position_embeddings)
    config = GPT2Config(
        vocab_size=like.vocabulary,
        n_positions=like.positions,
        n_embd=like.width,
        n_layer=like.layers,
        n_head=like.heads,
        bos_token_id=BOS,
        eos_token_id=None,  # goes on to the last token asked for
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


def ours(loaded: Loaded, ids: list[int], new: int) -> None:
    """Generate as `i3lm generate` does, the text included."""
    stream = TextStream(
        loaded,
        ids,
        max_new_tokens=new,
        sampling=Sampling(temperature=0.0),
        generator=make_generator(0),
        ends=(),
    )
    "".join(stream)
    if stream.tokens != new:
        raise RuntimeError(f"{stream.tokens} tokens were generated, not {new}")


@torch.inference_mode()
def ours_batched(network: I3Network, ids: Tensor, new: int) -> None:
    """Generate for several streams at once."""
    states, threads = network.new_states(), torch.get_num_threads()
    step = CompiledStep(network) if CompiledStep.fits(network) else None
    for _ in range(new):
        if step is None:
            logits = network(ids, states, last_only=True)[:, -1]
        else:
            logits = step(ids, states, threads)
        ids = logits.argmax(-1, keepdim=True)


def gpt2_generate(model: Any, ids: Tensor, new: int) -> None:
    """Generate as transformers does, with its cache."""
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    if out.shape[1] != ids.shape[1] + new:
        raise RuntimeError(f"GPT-2 gave {out.shape[1] - ids.shape[1]} tokens, not {new}")


@torch.inference_mode()
def gpt2_loop(model: Any, ids: Tensor, new: int) -> None:
    """Generate with GPT-2 and its cache without what `generate` adds."""
    cache = None
    for _ in range(new):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)


def by_position(network: I3Network, rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds of one token near each position, over some passes through the window."""
    window = network.config.max_position_embeddings
    figures: dict[int, list[float]] = {p: [] for p in POSITIONS if p + AROUND < window}
    for _ in range(rounds):
        decoder = Decoder(network)
        for position in range(window):
            begin = time.perf_counter()
            decoder.feed([FIRST_CHUNK])
            seconds = time.perf_counter() - begin
            for near, found in figures.items():
                if abs(position - near) <= AROUND:
                    found.append(seconds)
    return {str(position): common.spread(found) for position, found in figures.items()}


def by_length(loaded: Loaded, peer: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds that prompts take, ours and GPT-2's, by name."""
    window, network = loaded.architecture.max_position_embeddings, loaded.network
    step = CompiledStep(network) if CompiledStep.fits(network) else None  # once, as servers do
    works: dict[str, common.Contender] = {}
    for length in (n for n in LENGTHS if n <= window):
        ids = torch.full((1, length), FIRST_CHUNK)
        works[f"i3lm, {length} tokens"] = _seconds(
            lambda i=ids: Decoder(network, step).feed(i[0].tolist())
        )
        works[f"gpt2, {length} tokens"] = _seconds(lambda i=ids: gpt2_loop(peer, i, 1))
    return common.interleave(works, rounds)


def _seconds(work: Callable[[], Any]) -> common.Contender:
    return lambda: 1 / common.rate_of(lambda: (work(), 1)[1])
