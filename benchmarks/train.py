"""Training speed and memory: i3lm's own Trainer, a GPT of equal size, i3 as published.

    python -m benchmarks.train CONTENDER --preset i3-12m --corpus FOLDER --tokens 1024

takes a few steps with one contender and prints its peak memory, as JSON. With --turns it takes a
turn with each contender that a line on standard input names, and prints its rate.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common, lengths
from benchmarks.peers import gpt, published
from i3lm.data import Corpus, Loader, prepare
from i3lm.data.documents import Document
from i3lm.data.sources import Source
from i3lm.errors import UserError
from i3lm.model import COMPILED
from i3lm.model.network import I3Network
from i3lm.presets import Architecture, find_preset
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import choose_device, choose_precision, resident_bytes
from i3lm.training.loop import Trainer

NAME = "train"
OURS, PUBLISHED = "i3lm", "published"
GPT_BATCHES = (1, 4, 8, 16)
OUR_BATCHES = (8, 16)  # beside the default, for comparison at equal steps
PUBLISHED_BATCH = 4
PRODUCTS = ((1024, 512, 2048), (2048, 2048, 2048))
PEAK_STEPS = 3


@dataclass(frozen=True)
class Task:
    """What all contenders train on, and how much of it in a turn."""

    preset: str
    corpus: Corpus
    tokens: int  # of a step of ours
    steps: int = 2  # of ours in a turn; peers take at least as many tokens

    @property
    def sizes(self) -> Architecture:
        return TrainConfig(preset=self.preset).architecture(len(self.corpus.tokenizer))

    @property
    def gpt_sizes(self) -> gpt.Sizes:
        a = self.sizes
        return gpt.sizes_like(a.parameters, a.vocab_size, a.max_position_embeddings)

    def batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets (batch, T), int64, without end."""
        loader = Loader(self.corpus.train, self.sizes.max_position_embeddings, batch, seed=0)
        for first in itertools.count(0, batch):
            inputs, targets = loader.windows(first, batch)
            yield torch.from_numpy(inputs), torch.from_numpy(targets)


class Ours:
    """The project's Trainer, with its default optimizer and precision."""

    def __init__(self, task: Task, batch: int | None = None) -> None:
        step = task.tokens if batch is None else batch * task.sizes.max_position_embeddings
        config = TrainConfig(
            out=str(task.corpus.folder),
            preset=task.preset,
            batch_tokens=step,
            steps=1_000_000,  # never reached: all steps are of the middle of a run
            dropout=0.0,  # as the peers: the text is small
        )
        device = choose_device("cpu")
        self.precision = choose_precision(config.precision, device)
        torch.manual_seed(config.seed)
        self.trainer = Trainer(config, task.corpus, I3Network(task.sizes), self.precision, device)
        self.tokens = self.trainer.sequences * self.trainer.context
        self._rows = self.trainer.train()
        self._steps = task.steps

    def about(self) -> dict[str, Any]:
        """Return the settings that it found."""
        return {
            "precision": self.precision,
            "optimizer": self.trainer.config.optimizer,
            "tokens_per_step": self.tokens,
            "microbatch": self.trainer.microbatch,
        }

    def __call__(self) -> int:
        """Train a turn; return the number of tokens."""
        for _ in range(self._steps):
            next(self._rows)
        return self._steps * self.tokens


class Trained:
    """A peer and its optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )


class Peer:
    """A plain PyTorch loop over batches: forward, backward, clipping, fused AdamW."""

    def __init__(self, trained: Trained, task: Task, batch: int, bf16: bool = False) -> None:
        self._trained, self._bf16 = trained, bf16
        self._batches = task.batches(batch)
        self._tokens = task.tokens * task.steps

    def __call__(self) -> int:
        """Train a turn; return the number of tokens."""
        model, optimizer = self._trained.model, self._trained.optimizer
        done = 0
        while done < self._tokens:
            inputs, targets = next(self._batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                loss = model.loss(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += inputs.numel()
        return done


def builders(task: Task) -> dict[str, Callable[[], Callable[[], int]]]:
    """Return how to make each contender; those of the GPT share one model."""
    shared: list[Trained] = []

    def gpt_peer(bf16: bool, batch: int) -> Peer:
        if not shared:
            shared.append(Trained(gpt.GPT(task.gpt_sizes)))
        return Peer(shared[0], task, batch, bf16)

    return {
        OURS: lambda: Ours(task),
        **{f"{OURS} batch {batch}": lambda b=batch: Ours(task, b) for batch in OUR_BATCHES},
        **{
            f"gpt {precision} batch {batch}": lambda b=batch, p=precision: gpt_peer(p == "bf16", b)
            for precision, batch in itertools.product(("fp32", "bf16"), GPT_BATCHES)
        },
        PUBLISHED: lambda: Peer(
            Trained(published.Published(task.sizes)), task, PUBLISHED_BATCH
        ),
    }  # fmt: skip


class Apart:
    """Contenders in a process of their own, with its own heap and its own threads."""

    def __init__(self, threads: int, *options: str) -> None:
        line = [sys.executable, "-m", f"benchmarks.{NAME}", OURS, *options, "--turns"]
        self._process = subprocess.Popen(
            line,
            cwd=common.ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> Any:
        """Return the answer to a line: see `take_turns`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise UserError(f"the process of {line!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def take_turns(task: Task) -> None:
    """Answer each line of standard input: a contender's rate after a turn, or `about` ours."""
    build, workers = builders(task), dict[str, Callable[[], int]]()
    for line in sys.stdin:
        name = line.strip()
        if name == "about":
            ours = workers[OURS]
            assert isinstance(ours, Ours)
            print(json.dumps(ours.about()), flush=True)
            continue
        if name not in workers:
            workers[name] = build[name]()
        print(common.rate_of(workers[name]), flush=True)


def products(dtype: torch.dtype) -> common.Contender:
    """Return a measurement of the machine's matrix products: FLOPs a second at the best size."""
    pairs = [(torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)) for m, k, n in PRODUCTS]

    def once(a: Tensor, b: Tensor) -> float:
        begin = time.perf_counter()
        a @ b
        return 2 * a.numel() * b.shape[1] / (time.perf_counter() - begin)

    return lambda: max(once(a, b) for a, b in pairs for _ in range(4))


def run(*, preset: str, rounds: int, threads: int, tokens: int = 1024) -> dict[str, Any]:
    """Measure everything; return what the JSON holds. Rates are in tokens and FLOPs a second."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(preset, synthetic_corpus(preset, Path(folder)), tokens)
        options = ("--preset", preset, "--corpus", folder, "--tokens", str(tokens))
        names = list(builders(task))
        kinds = {name: name.partition(" ")[0] for name in names}  # the GPTs share a process
        apart = {kind: Apart(threads, *options) for kind in dict.fromkeys(kinds.values())}
        contenders: dict[str, common.Contender] = {
            name: lambda name=name: apart[kinds[name]].ask(name) for name in names
        }
        contenders["fp32 products"] = products(torch.float32)
        contenders["bf16 products"] = products(torch.bfloat16)
        speeds = common.interleave(contenders, rounds)
        middle = {name: figures["median"] for name, figures in speeds.items()}
        about = apart[OURS].ask("about")
        for process in apart.values():
            process.end()

        def best(kind: str) -> str:
            return max((n for n in names if n.startswith(kind)), key=middle.__getitem__)

        best_gpt = {precision: best(f"gpt {precision}") for precision in ("fp32", "bf16")}
        peaks = {}
        for name in (OURS, *best_gpt.values(), PUBLISHED):
            peaks[name] = common.in_child(NAME, name, *options, threads=threads)["peak_bytes"]
    flops = task.sizes.flops_per_token()
    speed = middle[OURS]
    ours = {b: middle[f"{OURS} batch {b}"] for b in OUR_BATCHES}
    default = tokens // task.sizes.max_position_embeddings
    if default in GPT_BATCHES:
        ours = {default: speed, **ours}
    return {
        "mfu": flops * speed / middle["fp32 products"],
        "ratio_gpt": speed / max(middle[name] for name in best_gpt.values()),
        "ratio_gpt_fp32": speed / middle[best_gpt["fp32"]],
        "ratio_gpt_bf16": speed / middle[best_gpt["bf16"]],
        "ratio_gpt_best_batches": max(*ours.values(), speed)  # each at the best of its own
        / max(middle[name] for name in best_gpt.values()),
        "ratio_gpt_same_batch": {  # tokens a step are equal, so optimizer steps are
            batch: rate / max(middle[f"gpt {precision} batch {batch}"] for precision in best_gpt)
            for batch, rate in ours.items()
        },
        "ratio_published": speed / middle[PUBLISHED],
        "mfu_bf16": flops * speed / middle["bf16 products"],
        "preset": preset,
        **about,
        "compiled_kernels": COMPILED,
        "context": task.sizes.max_position_embeddings,
        "threads": threads,
        "rounds": rounds,
        "flops_per_token": flops,
        "parameters": {
            OURS: task.sizes.parameters,
            "gpt": task.gpt_sizes.parameters,
            PUBLISHED: sum(p.numel() for p in published.Published(task.sizes).parameters()),
        },
        "tokens_per_second": {name: speeds[name] for name in names},
        "flops_per_second": {n: speeds[n] for n in ("fp32 products", "bf16 products")},
        "peak_bytes": peaks,
        "lengths": lengths.run(task.sizes, about["precision"], tokens),
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    rows = []
    for name, speed in result["tokens_per_second"].items():
        peak = result["peak_bytes"].get(name)
        ratio = result["tokens_per_second"][OURS]["median"] / speed["median"]
        memory = f"{peak / 1e6:,.0f}" if peak else ""
        rows.append([name, *common.cells(speed), f"{ratio:.2f}", memory])
    common.print_table(
        f"training {result['preset']}, {result['precision']}, {result['threads']} threads, "
        f"{result['context']} tokens a sequence, {result['tokens_per_step']:,} a step of ours",
        ["contender", "tokens/s", "spread", "ours is", "peak MB"],
        rows,
    )
    common.print_table(
        f"each at its best number of sequences ours is {result['ratio_gpt_best_batches']:.2f}; as "
        "many sequences in a step as the GPT's",
        ["sequences", "ours is"],
        [[str(b), f"{ratio:.2f}"] for b, ratio in result["ratio_gpt_same_batch"].items()],
    )
    common.print_table(
        "matrix products of this machine, and ours as a share of them",
        ["precision", "GFLOP/s", "spread", "utilisation"],
        [
            [name, *common.cells(result["flops_per_second"][name], 1e9), f"{result[share]:.1%}"]
            for name, share in (("fp32 products", "mfu"), ("bf16 products", "mfu_bf16"))
        ],
    )
    lengths.show(result["lengths"])


def synthetic_corpus(preset: str, folder: Path, documents: int = 3_000) -> Corpus:
    """Return a corpus of random words, which fills any preset's vocabulary.

    Speed does not depend on what the text says; with every row of the vocabulary in use it does
    not depend on the text at all.
    """

    def read(advance: Callable[[int], None]) -> Iterator[Document]:
        draw = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        for number in range(documents):
            words = ("".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(60))
            yield Document(" ".join(words), None, f"random document {number}")

    size = find_preset(preset).tokenizer_size
    corpus = prepare(
        Source("random words", {"documents": documents}, read), folder, vocab_size=size
    )
    if len(corpus.tokenizer) != size:
        raise RuntimeError(f"the random words gave {len(corpus.tokenizer)} chunks, not {size}")
    return corpus


def main() -> None:
    """Print the peak memory of one contender's training, or take turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--turns", action="store_true")
    options = parser.parse_args()
    if options.turns:
        take_turns(Task(options.preset, Corpus.open(options.corpus), options.tokens))
        return
    task = Task(options.preset, Corpus.open(options.corpus), options.tokens, steps=1)
    work = builders(task)[options.contender]()
    for _ in range(PEAK_STEPS):
        work()
    print(json.dumps({"peak_bytes": resident_bytes()[1]}))


if __name__ == "__main__":
    main()
