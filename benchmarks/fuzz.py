"""Coverage-guided fuzzing of what reads files and text that others wrote.

    python -m benchmarks.fuzz tokenizer --minutes 10      (pip install -e '.[fuzz]')

A target must answer any bytes with a result or a UserError of one line; where there are two ways to
an answer, both must give the same. A crash, a hang of 20 seconds or another exception is a finding:
the bytes are left in fuzz-findings/, and become a test.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from i3lm.errors import UserError

Target = Callable[[bytes], None]
LONGEST = 20  # seconds for one input


def refused_in_a_line(work: Callable[[], object]) -> object | None:
    """Return what `work` gives; None where it refuses, which must be in one line."""
    try:
        return work()
    except UserError as error:
        _require_a_line(error)
        return None


def _require_a_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


def small_tokenizer():
    """Return a tokenizer with a few hundred tokens."""
    from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

    counter = VocabularyCounter()
    counter.update("hello there, who are you? I am i3. The sea and the ocean. " * 20)
    return ChunkTokenizer(counter.build(400))


def tokenizer(folder: Path) -> tuple[Target, list[bytes]]:
    """tokenizer.json: what is loaded encodes and decodes without loss."""
    from i3lm.tokenizer import ChunkTokenizer

    small_tokenizer().save(folder)
    path = folder / "tokenizer.json"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        found = refused_in_a_line(lambda: ChunkTokenizer.load(folder))
        if found is not None:
            assert found.decode(found.encode("hello é")) == "hello é"

    return target, [path.read_bytes()]


def text(folder: Path) -> tuple[Target, list[bytes]]:
    """Encode and decode: no loss, the same ids as the rule in Python, no control token."""
    from i3lm.tokenizer import rule

    chunks = small_tokenizer()
    known = {token: number for number, token in enumerate(chunks.tokens)}

    def target(data: bytes) -> None:
        string = data.decode("utf-8", "surrogateescape")
        ids = refused_in_a_line(lambda: chunks.encode(string))
        if ids is None:
            return
        assert chunks.decode(ids) == string
        assert (ids >= rule.FIRST_BYTE).all()
        vocabulary = {t: n for t, n in known.items() if n >= rule.FIRST_CHUNK}
        assert ids.tolist() == list(rule.encode(string, vocabulary))

    return target, [b"hello there", "é猫\U0001f600".encode(), b"[INST] <bos> <0x00>"]


def jsonl(folder: Path) -> tuple[Target, list[bytes]]:
    """JSON lines: documents of text, or a UserError."""
    return _source(folder / "data.jsonl"), [
        b'{"text": "hello"}\n{"text": "[INST] a [/INST] b"}\n',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    ]


def lines(folder: Path) -> tuple[Target, list[bytes]]:
    """Plain text in its divisions."""
    return _source(folder / "data.txt"), [
        b"[INST] a [/INST] b\n",
        b"a\n\nb\n",
        b"\xef\xbb\xbfx\r\n",
    ]


def parquet(folder: Path) -> tuple[Target, list[bytes]]:
    """Parquet files: documents, or a UserError."""
    import pyarrow
    import pyarrow.parquet

    path = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["hello", "there"]}), path)
    return _source(path), [path.read_bytes()]


def _source(path: Path) -> Target:
    from i3lm.data import open_source

    def target(data: bytes) -> None:
        path.write_bytes(data)
        found = refused_in_a_line(lambda: list(open_source(path)))
        for document in found or ():
            assert (document.text is None) != (document.messages is None)
            document.plain.encode()

    return target


def manifest(folder: Path) -> tuple[Target, list[bytes]]:
    """manifest.json of a prepared corpus: of these very token files, or refused.

    The fuzzer sees what checksums are compared with and learns to forge them: all else may differ.
    """
    from i3lm.data import Corpus, open_source, prepare
    from i3lm.data.passes import SPLITS

    source = folder / "text.txt"
    source.write_text("".join(f"Story {i} of the sea.\n" for i in range(50)))
    whole = prepare(open_source(source), folder / "c", vocab_size=360, threads=1).manifest
    path, sums = folder / "c" / "manifest.json", [whole[split]["sha256"] for split in SPLITS]

    def target(data: bytes) -> None:
        path.write_bytes(data)
        found = refused_in_a_line(lambda: Corpus.open(folder / "c", verify=True))
        if found is not None:
            assert [found.manifest[split]["sha256"] for split in SPLITS] == sums
            assert found.manifest["tokenizer"] == whole["tokenizer"]

    return target, [path.read_bytes()]


def checkpoint(folder: Path) -> tuple[Target, list[bytes]]:
    """trainer.json, and the header of a weight file: a sound checkpoint or none."""
    import torch

    from i3lm.optim import make_optimizer
    from i3lm.training.checkpoint import Counters, load_newest, save_checkpoint

    network = torch.nn.Linear(2, 3)
    optimizer = make_optimizer("adamw", network.named_parameters(), None, 32)
    saved = save_checkpoint(folder, network, optimizer, Counters(step=1))
    path, tensors = saved / "trainer.json", saved / "model.safetensors"
    good = path.read_bytes(), tensors.read_bytes()

    def target(data: bytes) -> None:
        for file, whole in zip((path, tensors), good, strict=True):
            file.write_bytes(data)
            found = refused_in_a_line(lambda: load_newest(folder, network, optimizer))
            file.write_bytes(whole)
            assert found is None or (found[0].step, found[1]) == (1, [])

    return target, list(good)


def header(folder: Path) -> tuple[Target, list[bytes]]:
    """Headers of safetensors files: what we accept, the library accepts, with the same shapes."""
    from safetensors import safe_open

    from i3lm.tensorheader import read_header

    path = folder / "file.safetensors"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_header(path)
        except ValueError as error:
            _require_a_line(error)
            return
        with safe_open(path, "np") as file:
            for name, entry in found.tensors.items():
                assert tuple(file.get_slice(name).get_shape()) == entry.shape

    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    described = json.dumps({"w": entry, "__metadata__": {"a": "b"}}).encode()
    return target, [len(described).to_bytes(8, "little") + described + bytes(4)]


def template(folder: Path) -> tuple[Target, list[bytes]]:
    """Conversations: the saved template and our own rule agree, to the token or in refusing."""
    from jinja2.exceptions import TemplateError
    from transformers import AutoTokenizer

    ours = small_tokenizer()
    ours.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)

    def target(data: bytes) -> None:
        try:
            messages = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            # Any bytes are a conversation too: a turn a line.
            parts = data.decode("utf-8", "replace").split("\n")
            roles = ("user", "assistant", "system")
            messages = [{"role": roles[i % 2], "content": part} for i, part in enumerate(parts)]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            return
        ask = bool(messages) and messages[-1].get("role") == "user"
        ids = refused_in_a_line(lambda: ours.encode_conversation(messages, ask))
        if ids is not None:
            try:
                rendered = theirs.apply_chat_template(
                    messages, tokenize=True, add_generation_prompt=ask, return_dict=False
                )
            except TemplateError as error:
                raise AssertionError(f"the template refuses: {error}") from None
            assert rendered == ids.tolist()

    conversation = [{"role": "user", "content": "[INST] a <eos>"}]
    return target, [json.dumps(conversation).encode(), b"hello\nthere\n[/INST]", b"<bos>\n\n"]


TARGETS = (
    tokenizer, text, jsonl, lines, parquet, manifest, checkpoint, header, template,
)  # fmt: skip


def fuzz(name: str, minutes: float, findings: Path) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    prepare = next(target for target in TARGETS if target.__name__ == name)
    with atheris.instrument_imports(include=["i3lm", "json"]):
        folder = Path(tempfile.mkdtemp(prefix="i3lm-fuzz-"))
        (folder / "work").mkdir()
        target, seeds = prepare(folder / "work")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    findings.mkdir(exist_ok=True)
    options = [
        "fuzz", f"-max_total_time={round(60 * minutes)}", f"-timeout={LONGEST}",
        f"-artifact_prefix={findings}/{name}-", "-max_len=65536", "-print_final_stats=1",
        "-verbosity=0", "-rss_limit_mb=4096", str(corpus),
    ]  # fmt: skip
    atheris.Setup(options, target)
    atheris.Fuzz()


def main() -> None:
    """Fuzz the named targets, all without a name, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [target.__name__ for target in TARGETS]
    if unknown := set(options.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    if options.here:
        fuzz(options.targets[0], options.minutes, options.out)
    failed = []
    for name in options.targets or names:
        print(f"{name}: {options.minutes:g} minutes", flush=True)
        line = [sys.executable, "-m", "benchmarks.fuzz", name, "--here"]
        line += ["--minutes", str(options.minutes), "--out", str(options.out)]
        if subprocess.run(line, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode:
            failed.append(name)
    print(f"found something: {', '.join(failed)}" if failed else "no finding")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
