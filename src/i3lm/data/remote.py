"""Files elsewhere, through fsspec, and compressed ones: both read as streams of bytes.

A connection that breaks is made again where it broke; nothing is copied to the disk.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, cast

from i3lm.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new attempt, in a row without a byte
_BUFFER = 1 << 20
_MARKS = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified")  # of a file's contents


@dataclass(frozen=True)
class Remote:
    """A file that a URL names: `https://...`, `s3://...`, any that an fsspec backend knows."""

    url: str

    def __str__(self) -> str:
        return self.url


Place = Path | Remote


def is_remote(spec: str | Path) -> bool:
    """Say whether a name is a URL."""
    return isinstance(spec, str) and "://" in spec


def compression_of(place: Place) -> str | None:
    """Return fsspec's name of a file's compression, by its suffix."""
    return COMPRESSIONS.get(_pure(place).suffix.lower())


def suffix_of(place: Place) -> str:
    """Return a file's suffix in lower case, that of a compression left out: `a.jsonl.gz`."""
    path = _pure(place)
    return (path.with_suffix("") if compression_of(place) else path).suffix.lower()


def _pure(place: Place) -> PurePosixPath | Path:
    return PurePosixPath(place.url.partition("?")[0]) if isinstance(place, Remote) else place


@contextmanager
def open_bytes(place: Place) -> Iterator[BinaryIO]:
    """Open a file for reading from its start, as it is once unpacked.

    UserError: a backend or a codec that is not installed, a file that is not there, a connection
    that does not come back. OSError where compressed data are damaged.
    """
    kind = compression_of(place)
    if kind is None and isinstance(place, Path):
        with open(place, "rb") as file:
            yield file
        return
    unpack = _codec(place, kind) if kind else None
    raw = _Reconnecting(place.url) if isinstance(place, Remote) else io.FileIO(place)
    with io.BufferedReader(raw, _BUFFER) as packed:
        if unpack is None:
            yield cast(BinaryIO, packed)
            return
        with io.BufferedReader(_Unpacked(unpack(packed)), _BUFFER) as file:
            yield cast(BinaryIO, file)


def expand(url: str, suffixes: Sequence[str]) -> list[Remote]:
    """Return the files that a URL names: itself, those under a folder (`/` at its end) that have
    one of the suffixes, or those that a pattern with `*` matches, sorted."""
    if "*" not in url and not url.endswith("/"):
        return [Remote(url)]
    system, path = _system(url)
    with _naming(url):
        found = system.glob(path) if "*" in path else system.find(path)
    remotes = [Remote(system.unstrip_protocol(name)) for name in sorted(found)]
    if url.endswith("/"):
        remotes = [remote for remote in remotes if suffix_of(remote) in suffixes]
    if not remotes:
        raise UserError(f"{url}: no file there fits; check the URL")
    return remotes


def total_bytes(remotes: Sequence[Remote]) -> int:
    """Return the size of all files together, 0 where it is not known."""
    sizes = []
    for remote in remotes:
        system, path = _system(remote.url)
        with _naming(remote.url):
            sizes.append(system.info(path).get("size") if not compression_of(remote) else None)
        if sizes[-1] is None:
            return 0
    return sum(size for size in sizes if size)


def _system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path there."""
    try:
        import fsspec
    except ImportError as error:
        raise UserError(
            f'{url}: files elsewhere are read through fsspec; pip install "i3lm[remote]"'
        ) from error
    protocol = url.partition("://")[0]
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:  # fsspec names the package: "Install s3fs to access S3"
        raise UserError(f"{url}: {' '.join(str(error).split())} (with pip, then again)") from error
    except ValueError as error:
        known = "https, s3, gs, hf, file, ..."
        raise UserError(
            f"{url}: fsspec knows no protocol {protocol}:// ({_line(error)}); known are {known}"
        ) from error
    except Exception as error:  # a backend's own: credentials, say
        raise UserError(f"{url}: cannot be opened ({_line(error)}); check it") from error


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Turn what a backend raises into one line about the URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each backend has its own kinds
        raise UserError(
            f"{url}: cannot be read ({_line(error)}); check the URL and the network"
        ) from error


def _is_final(error: Exception) -> bool:
    """Say whether another attempt is of no use. fsspec's HTTP backend makes FileNotFoundErrors of
    broken connections too, which are their cause then."""
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError)
    return isinstance(error, PermissionError | NotImplementedError)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _codec(place: Place, kind: str) -> Callable[[BinaryIO], Any]:
    try:
        from fsspec.compression import compr
    except ImportError as error:
        raise UserError(
            f'{place}: compressed files are unpacked through fsspec; pip install "i3lm[remote]"'
        ) from error
    if kind not in compr:  # zstandard is no part of Python before 3.14
        raise UserError(f'{place}: unpacking {kind} needs its package; pip install "i3lm[remote]"')
    return lambda packed: compr[kind](packed, mode="rb")


class _Unpacked(io.RawIOBase):
    """What a codec unpacks, damage being an OSError whichever codec it is."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (UserError, OSError):
            raise
        except Exception as error:  # EOFError, zlib.error, LZMAError, ZstdError, ...
            raise OSError(f"damaged or cut short: {_line(error)}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Reconnecting(io.RawIOBase):
    """The bytes of a remote file, opened again at the same place where a connection breaks."""

    _reached: ClassVar[set[str]] = set()  # hosts that have answered; others get less patience

    def __init__(self, url: str) -> None:
        self._url = url
        self._host = "/".join(url.split("/", 3)[:3])
        self._system, self._path = _system(url)
        self._at = 0
        self._file: Any = None
        self._marks: dict[str, Any] | None = None
        self._again(self._open)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        def seek() -> int:
            return int(self._opened().seek(offset, whence))

        if whence == io.SEEK_CUR:
            offset, whence = self._at + offset, io.SEEK_SET
        self._at = self._again(seek)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._again(lambda: self._opened().read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _again(self, work: Callable[[], Any]) -> Any:
        """Do some work, after a break again; UserError where breaks do not end."""
        waits = WAITS if self._host in self._reached else WAITS[:2]
        for wait in (*waits, None):
            try:
                result = work()
                self._reached.add(self._host)
                return result
            except UserError:
                raise
            except Exception as error:  # each backend has its own kinds
                self._drop()
                if _is_final(error):
                    raise UserError(
                        f"{self._url}: cannot be read ({_line(error)}); check the URL"
                    ) from error
                if wait is None:
                    raise UserError(
                        f"{self._url}: no connection at byte {self._at:,}, after "
                        f"{len(waits)} more attempts ({_line(error)}); check the network"
                    ) from error
                time.sleep(wait)
        raise AssertionError

    def _opened(self) -> Any:
        if self._file is None:
            self._open()
        return self._file

    def _open(self) -> None:
        if self._marks is not None:
            self._system.invalidate_cache()
        info = self._system.info(self._path)
        marks = {name: info[name] for name in _MARKS if info.get(name) is not None}
        if self._marks not in (None, marks):
            raise UserError(f"{self._url}: changed while it was read; run it again")
        file = self._system.open(self._path, "rb")
        self._marks = marks
        if file.seekable():
            file.seek(self._at)
        else:  # a server that gives no parts: read up to there again
            left = self._at
            while left and (passed := len(file.read(min(left, _BUFFER)))):
                left -= passed
        self._file = file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception:  # the connection is gone anyway
                return
