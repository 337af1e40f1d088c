"""Training on more text than the disk holds: segments of tokens that follow one another.

A segment is a file of so many tokens, made from the source where the one before ended. Training
takes its windows in random order, as it does those of a whole corpus, while the next segment is
made beside it; older ones are removed. Where each begins stands in segments.json, so any of them
can be made again: sample k of a run is a function of (source, seed, k), and a resumed run is exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from i3lm.data.documents import Lines
from i3lm.data.holdout import prefix_of
from i3lm.data.loader import Loader
from i3lm.data.packing import Corpus, prepare
from i3lm.data.segments import Segments, TokenStream, read_index
from i3lm.data.sources import Piece, Source
from i3lm.errors import UserError
from i3lm.tokenizer import CONVERSATION

SAMPLE_CHARACTERS = 1 << 26  # of the source's first text: vocabulary and held-out documents


def sample_of(source: Source, characters: int) -> Source:
    """Return the beginning of a source: documents of about so many characters."""

    def read(advance: Callable[[int], None]) -> Iterator[Piece]:
        seen = 0
        for piece in source.pieces():
            yield piece
            size = len(piece.text) if isinstance(piece, Lines) else piece.characters
            advance(size)
            seen += size
            if seen >= characters:
                return

    identity = {**source.identity, "sample": characters}
    return Source(source.description, identity, read, source.files, size=characters)


@dataclass(frozen=True)
class StreamedCorpus(Corpus):
    """A corpus of which only a sample is on disk, as `Corpus`; training reads on in `source`.

    `segments` is the folder of the token files. Processes that train together have one each: all
    make the same segments, so that each finds its samples in them, whoever trains on which.
    """

    source: Source
    seed: int  # of the choice of held-out documents
    segment_tokens: int
    threads: int | None
    segments: Path

    @classmethod
    def of(
        cls,
        sample: Corpus,
        source: Source,
        segment_bytes: int,
        *,
        seed: int = 0,
        threads: int | None = None,
        rank: int = 0,
    ) -> "StreamedCorpus":
        """Return the corpus whose sample `prepare_stream` has made, for a process of this rank."""
        segments = sample.folder / f"rank-{rank}" if rank else sample.folder
        segments.mkdir(exist_ok=True)
        return cls(
            **vars(sample),
            source=source,
            seed=seed,
            segment_tokens=segment_bytes // 2,
            threads=threads,
            segments=segments,
        )

    def loader(
        self, context: int, batch: int, seed: int, wait: Callable[[], None]
    ) -> "StreamLoader":
        """Return the training windows of a run; `wait` is called while they are waited for."""
        stream = TokenStream(
            self.source,
            self.tokenizer,
            self.manifest["held_out_prefixes"],
            held_out_seed=self.seed,
            order_seed=seed,
            threads=self.threads,
        )
        segments = Segments(self.segments, stream, self.segment_tokens, wait)
        return StreamLoader(segments, context, batch, seed)

    def epochs(self, tokens: int) -> float:
        """Return how often the source was read to its end so far."""
        entries = read_index(self.segments)["entries"]
        return float(entries[-1]["place"]["epoch"]) if entries else 0.0


def prepare_stream(
    segment_bytes: int, source: Source, folder: Path, **options: Any
) -> StreamedCorpus:
    """Prepare the sample of a source, as `prepare` does; the rest is read while training.

    `segment_bytes` is the size of a token file, of which three exist at most.
    """
    sample = prepare(sample_of(source, SAMPLE_CHARACTERS), folder, prefixes=True, **options)
    seed, threads = options.get("seed", 0), options.get("threads")
    held_out = set(sample.manifest["held_out_prefixes"])
    if source.files and all(prefix_of(document, seed) in held_out for document in source):
        raise UserError(
            f"{source.description}: a part of every document is held out, so nothing is left to "
            "stream; divide it (--documents paragraph), or leave --stream away"
        )
    return StreamedCorpus.of(sample, source, segment_bytes, seed=seed, threads=threads)


class StreamLoader:
    """The windows of a stream: as `Loader`, segment after segment, each of them gone through once.

    Sample k is a window of segment k // W, W being the windows of a segment.
    """

    def __init__(self, segments: Segments, context: int, batch: int, seed: int) -> None:
        if segments.tokens <= context:
            raise UserError(
                f"--stream {2 * segments.tokens} bytes hold no window of {context} tokens; "
                "take more, such as 128MB"
            )
        self.segments, self.context, self.batch_size, self.seed = segments, context, batch, seed
        self.windows_per_segment = (segments.tokens - 1) // context
        self._open: tuple[int, Loader] | None = None

    def windows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets), each (count, T) int64, of samples first ... first + count - 1.

        Targets are the inputs moved by one token. SourceLost where the text cannot be had.
        """
        parts = []
        while count:
            segment, begin = divmod(first, self.windows_per_segment)
            here = min(count, self.windows_per_segment - begin)
            parts.append(self._loader(segment).windows(begin, here))
            first, count = first + here, count - here
        inputs, targets = zip(*parts, strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    def close(self) -> None:
        """End the making of segments."""
        self.segments.close()

    def _loader(self, segment: int) -> Loader:
        if self._open is None or self._open[0] != segment:
            self._open = None
            tokens, seed = self.segments.get(segment), self.seed + segment
            loader = Loader(tokens, self.context, self.batch_size, seed, opening=CONVERSATION)
            self._open = segment, loader
        return self._open[1]
