"""Who may import whom, and what light commands must not import."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "i3lm"
FOUNDATION = {"errors", "files", "native", "presets", "rounding", "units"}
# Each part and the parts of i3lm that it may import; verbs and the training loop stand above.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "native": set(),
    "units": {"errors"},
    "lean_torch": set(),
    "bare": {*FOUNDATION, "data", "launch", "lean_torch", "memory", "training"}
    | {"tensorfile", "tensorheader"},
    "presets": {"errors"},
    "rounding": set(),
    "tensorfile": {"files", "tensorheader"},
    "tensorheader": {"files"},
    "memory": {"errors", "presets", "units"},
    "model": FOUNDATION,
    "optim": {*FOUNDATION, "model"},  # how weights are stored
    "tokenizer": FOUNDATION,
    "lorpt": {*FOUNDATION, "model"},
    "data": {*FOUNDATION, "tokenizer"},
}
LIGHT = ("torch", "transformers", "numpy", "tokenizers", "pyarrow", "datasets", "rich", "fastapi")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Return absolute names of all imported modules; `top_level`: those outside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    package = ["i3lm", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(tree):
        if top_level and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


def parts_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("i3lm.")}
    return {n for n in names if (PACKAGE / n).is_dir() or (PACKAGE / f"{n}.py").exists()}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_part_imports_only_the_parts_below_it(path):
    part = part_of(path)
    imported = parts_imported(path) - {part}
    if part in ALLOWED:
        assert imported <= ALLOWED[part]
    if part not in ("cli", "__main__"):
        assert "cli" not in imported


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_can_be_read_in_a_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_the_commands_import_verbs_inside_functions():
    for path in (PACKAGE / "cli").glob("*.py"):
        heavy = {n for n in imports(path, top_level=True) if n.split(".")[0] in LIGHT}
        assert not heavy, path


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*_i3.py")), ids=lambda p: p.name)
def test_exported_files_are_flat_and_need_torch_and_transformers_only(path):
    names = imports(path)
    own = {n for n in names if n.startswith("i3lm")}
    assert all(n.split(".")[2].endswith("_i3") for n in own if n.count(".") >= 2)
    known = {*sys.stdlib_module_names, "torch", "transformers", "i3lm"}
    assert {n.split(".")[0] for n in names} <= known
    if path.name in ("layers_i3.py", "ops_i3.py"):
        assert not any(n.startswith("transformers") for n in names)


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    return {name.split(".")[0] for name in out.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["info", "i3-12m", "--json"], ["--version"]]
)
def test_light_commands_import_nothing_heavy(arguments):
    code = f"""
from i3lm.__main__ import main
sys.argv = ["i3lm", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code"""
    assert not loaded_by(code) & {"torch", "transformers", "tokenizers", "datasets", "pyarrow"}


def test_import_i3lm_is_light():
    assert not loaded_by("import i3lm") & set(LIGHT)


def test_a_training_process_carries_no_transformers_and_no_compiler():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, i3lm.training.run; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"transformers", "tokenizers", "datasets", "pyarrow", "torch._dynamo", "numba", "click"}
    assert not heavy & set(loaded)


LEAN = """
import sys
from i3lm.lean_torch import UNUSED, put_off_unused
put_off_unused()
"""


def lean(code: str) -> str:
    """Run a program whose torch is lean; return what it printed."""
    done = subprocess.run([sys.executable, "-c", LEAN + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_puts_off_what_it_never_uses_of_torch(tmp_path):
    """And a run, with its sample and its report, needs none of it."""
    out = lean(f"""
from i3lm.__main__ import main
arguments = "train --preset i3-tiny --steps 3 --vocab-size 400 --out {tmp_path / "run"}"
assert main(arguments.split()) == 0
finder = next(f for f in sys.meta_path if f.__class__.__module__ == "i3lm.lean_torch")
assert finder.standing_in.keys() == UNUSED, UNUSED - finder.standing_in.keys()
print(*(name for name in UNUSED if sys.modules[name] is not finder.standing_in[name]))
print(*sys.modules)""")
    asked, modules = out.splitlines()[-2:]
    assert not asked.split()
    assert not {"torch._decomp", "torch._refs", "torch.optim.adamw"} & set(modules.split())


def test_what_was_put_off_is_there_when_asked_for():
    lean("""
import torch, inspect
inspect.getmodule(torch.nn.Linear)  # asks every module for its file
assert not callable(vars(torch.optim).get("SGD"))
import torch.ao.nn.quantized.dynamic
from torch.optim.lr_scheduler import StepLR
p = torch.nn.Parameter(torch.ones(3))
p.sum().backward()
optimizer = torch.optim.SGD([p], lr=0.5)
optimizer.step()
assert p.tolist() == [0.5] * 3
assert torch.optim is sys.modules["torch.optim"] and StepLR(optimizer, 1)
assert torch.distributions.Normal(0.0, 1.0).sample().ndim == 0
from torch.nn.quantized import Linear
try:
    torch.optim.NoSuchThing
except AttributeError as error:
    assert "torch.optim" in str(error), error
else:
    raise AssertionError("an unknown name was found")""")


@pytest.mark.parametrize("order", ["transformers, torch", "torch, transformers"])
def test_who_needs_a_whole_torch_has_it(order):
    lean(
        f"import {order}"
        + """
finder = next(f for f in sys.meta_path if f.__class__.__module__ == "i3lm.lean_torch")
assert not [n for n in UNUSED if sys.modules[n] is finder.standing_in.get(n)]
assert torch.linalg.eigh(torch.empty(3, 3, device="meta")).eigenvalues.shape == (3,)"""
    )


def test_a_torch_that_is_loaded_stays_as_it_is():
    out = subprocess.run(
        [sys.executable, "-c", "import torch" + LEAN + "print(len(sys.meta_path))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plain = subprocess.run(
        [sys.executable, "-c", "import sys, torch, i3lm; print(len(sys.meta_path))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == plain


FORBIDDEN = {"eval", "exec", "compile", "__import__"}


def imported_packages(path: Path) -> set[str]:
    """Return the first names of what a program imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_constraints_pin_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*(project["optional-dependencies"].values())),
    ]
    names = {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - {"i3lm"} <= pinned


PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


ROOT = PACKAGE.parents[1]
PROGRAMS = [*modules(), *sorted((ROOT / "benchmarks").rglob("*.py")), ROOT / "setup.py"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_code_from_files_or_shells(path):
    """No pickle is read, no text is run, no shell is asked."""
    assert not imported_packages(path) & PICKLES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN, called
            assert called not in ("torch.load", "np.load", "numpy.load", "os.system", "os.popen")
            assert not any(keyword.arg in ("shell", "allow_pickle") for keyword in node.keywords)
