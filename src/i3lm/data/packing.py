"""From documents to a folder of token files that training reads through memory maps."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from i3lm.data.holdout import Holdout
from i3lm.data.loader import Loader
from i3lm.data.passes import SPLITS, Progress, TokenFile, encode, pool_of, survey
from i3lm.data.sources import Source
from i3lm.errors import UserError
from i3lm.files import (
    read_small,
    remove_parts,
    sha256_file,
    sync_folder,
    write_atomic,
    writing_to,
)
from i3lm.tokenizer import CONVERSATION, ChunkTokenizer, VocabularyCounter

FORMAT = 2
MANIFEST = "manifest.json"
# All that `prepare` leaves in a folder.
FILES = {
    *(f"{split}.bin" for split in SPLITS),
    *(MANIFEST, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}
if TYPE_CHECKING:
    from i3lm.data.streaming import StreamLoader

MOST_THREADS = 4  # more would wait for the one that reads and writes


class Differs(UserError):
    """A folder holds a sound corpus, but not the one that is asked for; `what` says in what."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"{folder}: {what}; delete the folder to prepare it anew")
        self.what = what


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus on disk.

    `train` and `held_out` are one-dimensional uint16 memory maps, each a sequence of documents
    `<bos> ids <eos>`. `manifest` is what manifest.json holds: `format`, `description`, `source` and
    `settings` (what the corpus was built from and how), `files` (path, bytes, mtime_ns,
    sha256 of each source file), `skipped` (documents left out, by reason), `tokenizer` (its
    fingerprint), and under `train` and `held_out` the numbers of `documents`, `tokens`,
    `characters`, `bytes` and the `sha256` of the token file.

    Characters are code points of the documents as plain text, a conversation in its line form
    (`[INST] user [/INST] assistant ...`), plus one per document for the line end that closes
    it; `bytes` are those of the same text in UTF-8.
    """

    folder: Path
    train: np.ndarray
    held_out: np.ndarray
    tokenizer: ChunkTokenizer
    manifest: dict[str, Any]

    @property
    def held_out_characters(self) -> int:
        """Characters of the held-out documents: the divisor of bits per character."""
        return int(self.manifest["held_out"]["characters"])

    @property
    def characters_per_token(self) -> float:
        """Characters of the training documents per token, `<bos>` and `<eos>` counted."""
        return float(self.manifest["train"]["characters"]) / len(self.train)

    def require(self, context: int) -> None:
        """Raise UserError unless the training tokens fill a window of `context` + 1 tokens."""
        if len(self.train) <= context:
            raise UserError(
                f"{self.manifest['description']}: {len(self.train):,} training tokens are too few "
                f"for a context of {context}; give more text or a shorter context"
            )

    def loader(
        self, context: int, batch: int, seed: int, wait: Callable[[], None]
    ) -> "Loader | StreamLoader":
        """Return the training windows of a run; `wait` is called while they are waited for."""
        return Loader(self.train, context, batch, seed, opening=CONVERSATION)

    def epochs(self, tokens: int) -> float:
        """Return how often the training text was read for so many tokens."""
        return tokens / len(self.train)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> "Corpus":
        """Open a folder that `prepare` made; `verify` also checks the contents of the token files.

        UserError where the folder holds no whole corpus of this format.
        """
        return cls._open(Path(folder), verify, None)

    @classmethod
    def _open(cls, folder: Path, verify: bool, tokenizer: ChunkTokenizer | None) -> "Corpus":
        """Open a folder, whose tokenizer may be known."""
        manifest = _read_manifest(folder)
        if manifest is None:
            raise UserError(
                f"{folder}: no prepared corpus here ({MANIFEST} is missing); prepare it"
            )
        tokenizer = tokenizer or ChunkTokenizer.load(folder)
        try:
            return cls._checked(folder, manifest, tokenizer, verify)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, f"{MANIFEST} is not one of ours ({error})") from error

    @classmethod
    def _checked(
        cls, folder: Path, manifest: dict[str, Any], tokenizer: ChunkTokenizer, verify: bool
    ) -> "Corpus":
        if tokenizer.fingerprint != manifest["tokenizer"]:
            raise _damaged(folder, "its tokenizer is another than its tokens were made with")
        maps = []
        for split in SPLITS:
            path, count = folder / f"{split}.bin", manifest[split]["tokens"]
            if not path.exists() or path.stat().st_size != 2 * count:
                raise _damaged(folder, f"{path.name} is missing or not {2 * count:,} bytes long")
            if verify and sha256_file(path) != manifest[split]["sha256"]:
                raise _damaged(folder, f"the contents of {path.name} have changed")
            maps.append(np.memmap(path, dtype="<u2", mode="r"))
        return cls(folder, maps[0], maps[1], tokenizer, manifest)


def prepare(
    source: Source,
    folder: str | Path,
    *,
    vocab_size: int = 4466,
    min_chunk_count: int = 1,
    tokenizer: ChunkTokenizer | None = None,
    lowercase: bool = False,
    held_out: float = 0.02,
    seed: int = 0,
    rebuild: bool | Literal["if changed"] = False,
    threads: int | None = None,
    prefixes: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Tokenize `source` into `folder`, or reuse the folder where nothing has changed.

    Reads the source twice, in memory that does not grow with it: once to choose the held-out
    documents (see `Holdout`) and, without a `tokenizer`, to count a vocabulary of `vocab_size`
    over the others; once to write `train.bin` and `held_out.bin` (raw little-endian uint16).
    The tokenizer is saved beside them; manifest.json comes last, so that a folder is whole
    or none. One process at a time may prepare a folder.

    A folder is reused when the settings are the same and every source file has its old size and
    modification time, or else its old SHA-256. A folder that was made otherwise is refused
    with UserError, which names the difference; `rebuild` makes it anew, always or "if changed". A
    dataset on the Hub counts as unchanged.

    Chunks that come up less than `min_chunk_count` times stay out of the vocabulary: their rows
    would hardly be trained. `held_out` is a share of all characters; `seed` chooses among
    documents. `threads` (None: one a core, four at most) changes nothing but the time. `progress`
    is called with the name of the pass and the share done, 0 to 1. With `prefixes` the manifest
    keeps which documents are held out (`held_out_prefixes`, see `prefix_of`), for a stream that
    goes on where the source ends.
    UserError: nothing to read, too little to hold any out, a source that changes meanwhile.
    """
    folder = Path(folder)
    if not 0 < held_out < 1:
        raise UserError(f"a held-out share of {held_out} is not between 0 and 1; take 0.02")
    settings = {
        "vocab_size": None if tokenizer else vocab_size,
        "min_chunk_count": None if tokenizer else min_chunk_count,
        "lowercase": None if tokenizer else lowercase,
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
        "held_out": held_out,
        "seed": seed,
    }
    if rebuild is not True:
        try:
            if _reusable(folder, source, settings):
                return Corpus.open(folder, verify=True)
        except UserError:
            if not rebuild:
                raise
    before = [_stamp(path) for path in source.files]
    report = progress or (lambda stage, share: None)
    threads = threads or default_threads()
    with pool_of(threads) as beside, _hashing(source.files, beside) as hashes:
        counter = None if tokenizer else VocabularyCounter(lowercase)
        holdout = Holdout(held_out, seed)
        with _naming_what_changed(source, before):
            plan = survey(source, holdout, counter, seed=seed, threads=threads, report=report)
        if tokenizer is None:
            assert counter is not None
            tokenizer = ChunkTokenizer(
                counter.build(vocab_size, min_chunk_count=min_chunk_count), lowercase
            )
        if (size := len(tokenizer)) > 1 << 16:
            raise UserError(f"a vocabulary of {size:,} does not fit 16 bits; take a smaller")

        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
            writers = {
                split: TokenFile(folder / f".{split}.bin.part", beside=threads > 1)
                for split in SPLITS
            }
            try:
                with _naming_what_changed(source, before):
                    encode(source, plan, tokenizer, writers, threads=threads, report=report)
                closed = beside.map(TokenFile.close, writers.values())
                counts = dict(zip(SPLITS, closed, strict=True))
                with _naming_what_changed(source, before):
                    files = list(map(_describe, source.files, hashes.result()))
                if sum(c["documents"] for c in counts.values()) != plan.documents:
                    raise UserError(
                        f"{source.description}: changed while it was read; run it again"
                    )
                _require_unchanged(source, before)
                (folder / MANIFEST).unlink(missing_ok=True)
                for split, writer in writers.items():
                    os.replace(writer.path, folder / f"{split}.bin")
                sync_folder(folder)
            finally:
                for writer in writers.values():
                    writer.discard()
            tokenizer.save(folder)
            manifest = {
                "format": FORMAT,
                "description": source.description,
                "source": source.identity,
                "settings": settings,
                "files": files,
                "skipped": source.skipped,
                "tokenizer": tokenizer.fingerprint,
                **counts,
                **({"held_out_prefixes": plan.prefixes} if prefixes else {}),
            }
            _write_manifest(folder, manifest)
    return Corpus._open(folder, False, tokenizer)


@contextlib.contextmanager
def _hashing(files: Sequence[Path], pool: Executor) -> Iterator[Future[list[str]]]:
    """Take the SHA-256 of each file in `pool`, beside the block, whose end ends it."""
    stop = threading.Event()
    try:
        yield pool.submit(lambda: [sha256_file(path, stop.is_set) for path in files])
    finally:
        stop.set()


def default_threads() -> int:
    """Return how many threads a pass takes by itself: one a core that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_THREADS, allowed or 1)


Stamp = tuple[int, int, int] | None


def _stamp(path: Path) -> Stamp:
    """Return what changes with a file's contents: its number, size and date; None where gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _require_unchanged(source: Source, before: Sequence[Stamp]) -> None:
    for path, old in zip(source.files, before, strict=True):
        if _stamp(path) != old:
            raise UserError(f"{path}: changed while it was read; run it again")


@contextlib.contextmanager
def _naming_what_changed(source: Source, before: Sequence[Stamp]) -> Iterator[None]:
    """Say of a failure that a file changed, where one did: it may be torn in any way then."""
    try:
        yield
    except Exception:
        _require_unchanged(source, before)
        raise


def _describe(path: Path, sha256: str) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": str(path.resolve()),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": sha256,
    }


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    manifest = {**manifest, "check": _digest(manifest)}
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(read_small(folder / MANIFEST))
        found = manifest["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read") from error
    if found != FORMAT:
        raise _damaged(folder, f"its format is {found}, this version reads {FORMAT}")
    if manifest.pop("check", None) != _digest(manifest):
        raise _damaged(folder, f"{MANIFEST} does not match its checksum")
    return manifest


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder}: {what}; delete the folder to prepare it anew")


def _reusable(folder: Path, source: Source, settings: dict[str, Any]) -> bool:
    """Return whether `folder` holds what is asked for, False if it holds nothing.

    UserError where it holds a corpus of something else.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        return False
    if manifest["source"].keys() != source.identity.keys():
        raise Differs(folder, f"was prepared from {manifest['description']}")
    made = {**manifest["source"], **manifest["settings"]}
    for name, new in {**source.identity, **settings}.items():
        if name in made and made[name] != new:  # an older version knew fewer settings
            raise Differs(folder, f"was prepared with {name} {made[name]!r}, not {new!r}")
    known = manifest["files"]
    if len(known) != len(source.files):
        raise Differs(folder, f"was prepared from {len(known):,} files, not {len(source.files):,}")
    if _same_files(folder, zip(known, source.files, strict=True)):  # spare the next run the hashing
        _write_manifest(folder, manifest)
    return True


def without_source(folder: str | Path) -> tuple[Corpus, list[str]]:
    """Open a corpus whose source files are gone, or some of them, whole; return which these are.

    UserError (`Differs`) where one that is still there has changed, or where the corpus is not
    sound.
    """
    folder = Path(folder)
    corpus = Corpus.open(folder, verify=True)
    files = [(entry, Path(entry["path"])) for entry in corpus.manifest["files"]]
    _same_files(folder, ((entry, path) for entry, path in files if path.exists()))
    return corpus, [str(path) for _, path in files if not path.exists()]


def _same_files(folder: Path, pairs: Iterable[tuple[dict[str, Any], Path]]) -> bool:
    """Hold files against their entries in the manifest; return whether a date was renewed there.

    `Differs` names the file that has changed.
    """
    touched = False
    for old, path in pairs:
        stat = path.stat()
        stamp = {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if {**old, **stamp} == old:
            continue
        if stat.st_size != old["bytes"] or sha256_file(path) != old["sha256"]:
            what = "has changed" if stamp["path"] == old["path"] else f"is not {old['path']}"
            raise Differs(folder, f"{path} {what} since the folder was prepared")
        old.update(stamp)
        touched = True
    return touched
