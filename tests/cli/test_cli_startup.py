import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import i3lm

HEAVY = {"torch", "numpy", "transformers", "tokenizers", "rich", "safetensors", "pyarrow"}
HEAVY |= {"fastapi", "uvicorn", "pydantic"}
RUN = "import sys, i3lm.__main__ as m; code = m.main({}); print(*sys.modules); sys.exit(code)"


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["-h"],
        ["--version"],
        ["train", "-h"],
        ["serve", "-h"],
        ["info"],
        ["info", "i3-12m", "--json"],
    ],
)
def test_light_commands_import_nothing_heavy(arguments):
    done = python(RUN.format(arguments))
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_the_package_imports_nothing_heavy():
    done = python("import sys, i3lm; i3lm.info('i3-tiny'); print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_loading_a_model_imports_no_compiler(folder):
    done = python(f"import sys, i3lm; i3lm.load({str(folder)!r}); print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"torch._dynamo", "torch._inductor", "transformers"} & set(done.stdout.split())


def test_a_training_process_imports_what_it_uses(tmp_path):
    """These packages alone, and of torch none of the large parts that training does without."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the cat sat on the mat and the dog ran to the cat\n" * 500)
    flags = (
        "--preset i3-tiny --steps 3 --context 32 --batch-tokens 64 --state-bits 4 --eval-every 2"
    )
    arguments = ["train", *flags.split(), "--data", str(text), "--out", str(run)]
    done = python(RUN.format(arguments))
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.splitlines()[-1].split())
    packages = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    ours = {"i3lm", "torch", "numpy", "safetensors", "click", "rich"}
    of_torch = {"dill", "torchgen", "tqdm", "typing_extensions"}  # dill where it is installed
    of_python = {"__main__", "__mp_main__", "_distutils_hack", "distutils"}
    editable = {name for name in packages if name.startswith("__editable__")}
    assert ours <= packages
    assert packages <= ours | of_torch | of_python | editable
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & modules


def test_lazy_names():
    for name in i3lm.__all__:
        assert getattr(i3lm, name) is not None
        assert name in dir(i3lm)
    assert callable(i3lm.generate)
    assert callable(i3lm.train)
    with pytest.raises(AttributeError, match="nothing"):
        _ = i3lm.nothing


def test_no_module_hides_a_lazy_name():
    root = Path(typing.cast(str, i3lm.__file__)).parent
    modules = {path.stem for path in root.iterdir()}
    assert not modules & set(i3lm.__all__)


def test_greeting_names_what_matters(run):
    code, out, _ = run()
    assert code == 0
    for command in ("i3lm train", "i3lm chat", "i3lm eval", "--help"):
        assert command in out


def test_version(run):
    assert run("--version") == (0, f"i3lm, version {i3lm.__version__}\n", "")


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in ("train", "chat", "generate", "eval", "info"))


def test_mistyped_command(refused):
    assert "did you mean train?" in refused("trian")
    assert "known: train, chat" in refused("xyzzy")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--dta", "x"], "--data"),
        (["--wrong"], "--wrong"),
        (["generate"], "MODEL"),
        (["eval", "somewhere"], "--data"),
        (["generate", "x", "--seed", "pi"], "integer"),
        (["info", "i3-12n"], "did you mean i3-12m?"),
        (["info", "no/such/folder"], "no such folder"),
        (["chat", "no/such/folder"], "no/such/folder"),
        (["chat", "x", "--json"], "-p"),
        (["train", "--preset", "i3-13m"], "did you mean"),
        (["train", "--time", "10"], "write it like 90s, 10m"),
        (["train", "--eval-every", "often"], "write it like 90s, 10m"),
        (["train", "--steps", "0"], "must be positive"),
        (["train", "--resume", "no/such/run"], "no/such/run"),
        (["train", "--resume", "a", "--out", "b"], "--out"),
        (["train", "--precision", "fp8"], "fp32"),
    ],
)
def test_mistakes_are_one_line(refused, arguments, expected):
    assert expected in refused(*arguments)


def test_a_defect_is_not_hidden(run, monkeypatch):
    monkeypatch.setattr("i3lm.model_info.info", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("info", "i3-12m")


def test_a_reader_that_leaves_early():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "i3lm", "info", "i3-12m"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_server_needs_no_transformers():
    done = python("import sys, i3lm.serving.server; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"transformers", "tokenizers", "torch._dynamo"} & set(done.stdout.split())
