"""Files elsewhere and compressed ones: the same documents as from the disk, and every failure."""

import bz2
import gzip
import http.server
import json
import lzma
import sys
import threading

import pytest

fsspec = pytest.importorskip("fsspec")
zstandard = pytest.importorskip("zstandard")

from i3lm.data import remote  # noqa: E402
from i3lm.data.sources import open_source  # noqa: E402
from i3lm.errors import UserError  # noqa: E402

LINES = [f"story {i} of the sea" for i in range(300)]
TEXT = "\n".join(LINES).encode() + b"\n"
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0,) * 6)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def texts(*specs, **options) -> list[str | None]:
    return [document.text for document in open_source(list(specs), **options)]


@pytest.mark.parametrize("suffix", PACK)
def test_text_from_here_and_elsewhere_packed_or_not(suffix, memory, tmp_path):
    data = PACK[suffix](TEXT)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(data)
    memory.pipe(f"/corpus/a.txt{suffix}", data)
    assert texts(path) == texts(f"memory://corpus/a.txt{suffix}") == LINES


def test_rows_folders_and_patterns(memory, tmp_path):
    rows = [{"text": line} for line in LINES]
    memory.pipe("/c/b.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": LINES}), tmp_path / "c.parquet")
    memory.pipe("/c/deep/c.parquet", (tmp_path / "c.parquet").read_bytes())
    memory.pipe("/c/a.txt", TEXT)
    memory.pipe("/c/left_out.bin", b"\0")
    assert texts("memory://c/") == 3 * LINES
    assert texts("memory://c/*.txt") == LINES
    assert texts("memory://c/a.txt", "memory://c/deep/c.parquet") == 2 * LINES
    source = open_source("memory://c/a.txt")
    list(source)
    assert source.progress == 1.0
    with pytest.raises(UserError, match="no file there fits"):
        texts("memory://c/*.csv")
    with pytest.raises(UserError, match=r"memory://c/none\.txt.*check the URL"):
        texts("memory://c/none.txt")
    with pytest.raises(UserError, match="column 'body'"):
        texts("memory://c/b.jsonl.gz", text_column="body")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_packed_files_are_one_line(suffix, tmp_path):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](TEXT)[: -len(PACK[suffix](TEXT)) // 2])
    if suffix == ".zst":  # its reader ends where the data end
        path.write_bytes(b"no zstandard at all")
    with pytest.raises(UserError, match=r"a\.txt\.\w+: cannot be read \(.*; check the file"):
        texts(path)


def test_missing_backends_and_packages_are_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no protocol nowhere://"):
        texts("nowhere://a/b.txt")
    known = sys.modules["fsspec.registry"].known_implementations
    far = {"class": "no_such_module.FileSystem", "err": "Install farfs for far"}
    monkeypatch.setitem(known, "far", far)
    with pytest.raises(UserError, match="Install farfs"):
        texts("far://a/b.txt")
    monkeypatch.setitem(sys.modules, "fsspec.compression", None)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT))
    with pytest.raises(UserError, match=r'pip install "i3lm\[remote\]"'):
        texts(tmp_path / "a.txt.gz")


class Server(http.server.BaseHTTPRequestHandler):
    """Gives parts of TEXT; every second answer breaks off in the middle."""

    breaks, asked, whole = True, 0, False

    def do_GET(self):
        cls = type(self)
        cls.asked += self.command == "GET"
        data, status = TEXT, 200
        if "Range" in self.headers and not cls.whole:
            begin, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            data, status = TEXT[int(begin) : int(end or len(TEXT)) + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-*/{len(TEXT)}")
        if not cls.whole:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            broken = cls.breaks and cls.asked % 2
            self.wfile.write(data[: len(data) // 2] if broken else data)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    kind = type("Mine", (Server,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        kind.url = f"http://127.0.0.1:{httpd.server_port}/a.txt"
        yield kind
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("whole", [False, True], ids=["in parts", "at once"])
def test_a_connection_that_breaks_is_made_again(server, whole):
    pytest.importorskip("aiohttp")
    server.whole, server.breaks = whole, not whole
    assert texts(server.url) == LINES
    assert server.asked > 2 or whole


def test_a_host_that_is_away_is_one_line():
    pytest.importorskip("aiohttp")
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1:9/a\.txt.*check the URL and the network"
    ) as caught:
        texts("http://127.0.0.1:9/a.txt")
    assert "\n" not in str(caught.value)


class Flaky:
    """A file of memory that fails when it has given some bytes, so many times."""

    def __init__(self, file, state):
        self.file, self.state = file, state

    def __getattr__(self, name):
        return getattr(self.file, name)

    def read(self, count=-1):
        if self.state["failures"] > 0 and self.file.tell() > 500:
            self.state["failures"] -= 1
            raise ConnectionResetError("broken")
        return self.file.read(min(count, 400))


@pytest.mark.parametrize("failures", [0, 1, 6, 7])
def test_reading_goes_on_at_the_byte_where_it_broke(failures, memory, monkeypatch):
    memory.pipe("/a.txt", TEXT)
    state = {"failures": failures}
    opened = memory.open
    monkeypatch.setattr(memory, "open", lambda *a, **o: Flaky(opened(*a, **o), state))
    remote._Reconnecting._reached.add("memory://a.txt")
    if failures < 7:
        assert texts("memory://a.txt") == LINES
    else:
        with pytest.raises(UserError, match="no connection at byte 800, after 6 more attempts"):
            texts("memory://a.txt")


def test_a_file_that_changes_between_two_connections_is_refused(memory, monkeypatch):
    memory.pipe("/a.txt", TEXT)
    opened = memory.open

    def flaky(*arguments, **options):
        file = Flaky(opened(*arguments, **options), {"failures": 1})
        read = file.read

        def read_and_change(count=-1):
            try:
                return read(count)
            except ConnectionResetError:
                memory.pipe("/a.txt", TEXT + TEXT)
                raise

        file.read = read_and_change
        return file

    monkeypatch.setattr(memory, "open", flaky)
    with pytest.raises(UserError, match="changed while it was read"):
        texts("memory://a.txt")
