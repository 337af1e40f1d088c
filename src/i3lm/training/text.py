"""The text of a run: prepared, or opened again; what a run that goes on keeps of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from i3lm.data import Corpus, open_source, prepare
from i3lm.data.packing import Differs, without_source
from i3lm.data.sources import Source
from i3lm.data.streaming import StreamedCorpus, prepare_stream
from i3lm.errors import UserError
from i3lm.training.config import BATCH_TOKENS, TrainConfig

Tell = Callable[[str, dict], None]


def begun_as(config: TrainConfig, run: Path, tell: Tell) -> TrainConfig:
    """Return what the run that goes on was asked; UserError for what it cannot change."""
    begun = TrainConfig.load(run)
    config = as_chosen(config, begun)
    config.require_kept(begun)
    if config.precision != begun.precision:
        text = f"from here on in {config.precision}, before in {begun.precision}"
        tell("note", {"text": f"{text}: weights and states are float32 in both"})
    return begun


def as_chosen(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """Return `config` with what the run chose for itself where nobody named it."""
    preset, bits = config.preset or begun.preset, config.state_bits or begun.state_bits
    return dataclasses.replace(config, preset=preset, state_bits=bits)


def open_text(config: TrainConfig, begun: TrainConfig | None, tell: Tell) -> Corpus:
    """Prepare the text, or open it; what a refused run has left of another text gives way.

    `begun`: the run that goes on. It needs its text no longer: what `data/` holds is whole.
    """
    size, least = config.vocabulary
    folder = Path(config.out) / "data"
    try:
        source = _source(config)
    except UserError:
        if begun is None or begun.data != config.data or config.stream is not None:
            raise
        with _kept_text(config):
            corpus, gone = without_source(folder)
        if not gone:
            raise
        rest = f" and {len(gone) - 1:,} more files are" if len(gone) > 1 else " is"
        text = f"{gone[0]}{rest} gone; the run goes on with the tokens in {folder}"
        tell("note", {"text": f"{text} (checksums agree; name a new place with --data)"})
        return corpus
    with contextlib.nullcontext() if begun is None else _kept_text(config):
        make = prepare if config.stream is None else partial(prepare_stream, config.stream)
        corpus = make(
            source,
            folder,
            vocab_size=size,
            min_chunk_count=least,
            lowercase=config.lowercase,
            rebuild="if changed" if begun is None else False,
            threads=config.threads,
            progress=lambda stage, share: tell("prepare", {"stage": stage, "share": share}),
        )
    if unfit := corpus.manifest["skipped"].get("unfit"):
        text = f"{unfit:,} lines or rows are no conversation or no row, and were left out"
        tell("note", {"text": text})
    return corpus


def _source(config: TrainConfig) -> Source:
    return open_source(
        list(config.data) or None,
        text_column=config.text_column,
        split=config.split,
        documents=config.documents,
        skip_bad=config.skip_bad_lines,
    )


def streamed(corpus: Corpus, config: TrainConfig, rank: int) -> Corpus:
    """Return the corpus, which reads on in its source where the run streams.

    Another process than the one that made the sample has opened nothing but that.
    """
    if config.stream is None or isinstance(corpus, StreamedCorpus):
        return corpus
    source, threads = _source(config), config.threads
    return StreamedCorpus.of(corpus, source, config.stream, threads=threads, rank=rank)


@contextlib.contextmanager
def _kept_text(config: TrainConfig) -> Iterator[None]:
    """Say of a text that is not the run's what can be done."""
    try:
        yield
    except Differs as error:
        raise UserError(
            f"{config.out} keeps its text, and {error.what}; bring that text back (--data names "
            "where it is now), or train on the other with another --out"
        ) from None


def require_enough(corpus: Corpus, config: TrainConfig, context: int) -> None:
    """Raise UserError unless the text fills a window, and a step of the size that was asked."""
    corpus.require(context)
    if config.batch_tokens > max(BATCH_TOKENS, len(corpus.train)):
        raise UserError(
            f"--batch-tokens {config.batch_tokens:,} is more than there is to train on, "
            f"{len(corpus.train):,} tokens; name at most so many"
        )
