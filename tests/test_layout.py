"""House rules that a machine can check: which imports are allowed, what an op needs, which names are banned."""

import ast
import re
import sys
from pathlib import Path

import pytest

from llata_fast import kernels

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("llata_fast", "kernels", "bench", "tests", "tools", "ds_configs")
SOURCES = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")] + list(ROOT.glob("*.py"))
TEXT_PATTERNS = ("Makefile", ".ci/run", "*.md", "*.toml", "*.txt", "*/*.md", "*/*.json", "bench/**/*.csv")
TEXTS = SOURCES + [path for pattern in TEXT_PATTERNS for path in ROOT.glob(pattern)]
OPS = [name for name in kernels.__all__ if not name.endswith("_ref")]

MODEL = (
    *("config", "modeling", "covariate_tokens", "linear", "linear_covariates", "losses", "quantiles", "backbone"),
    *("reference_checkpoint", "ablations"),
)
# packages that each part of the project must not import
FORBIDDEN = {
    "data": (*MODEL, "kernels", "metrics", "training", "evaluation", "forecasting", "planning"),
    **{room: ("data", "training", "evaluation", "forecasting", "planning") for room in MODEL},
    "metrics": (*MODEL, "data", "training", "evaluation", "forecasting"),
    "evaluation": ("backbone", "losses", "training"),
    "forecasting": ("backbone", "losses", "training"),
    "training": ("evaluation", "forecasting", "experiment", "commands"),
    **{room: (*MODEL, "training", "evaluation", "forecasting") for room in ("run_folder", "preprocessor")},
    "planning": ("data", "evaluation", "forecasting"),
}


def imports(path):
    """Full names of all modules that a file imports; resolves relative imports and `from package import name`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def within(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_point_one_way(room):
    paths = [*ROOT.glob(f"llata_fast/{room}.py"), *ROOT.glob(f"llata_fast/{room}/**/*.py")]
    assert paths, f"llata_fast has no {room}"
    forbidden = [f"llata_fast.{name}" for name in FORBIDDEN[room]]
    found = [(str(path.relative_to(ROOT)), module) for path in paths for module in imports(path)]
    assert not [(path, module) for path, module in found if within(module, *forbidden)]


def test_imports_inside_the_package_are_relative():
    paths = [path for folder in ("llata_fast", "kernels") for path in ROOT.glob(f"{folder}/**/*.py")]
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [f"{path.name}:{node.lineno}" for name in names if within(name, "llata_fast", "kernels")]
    assert not found


def test_every_room_has_its_tests():
    rooms = {path.parent.name for path in ROOT.glob("llata_fast/*/__init__.py")}
    rooms |= {"kernels", "bench", "examples", "docs", "tools"}
    tested = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert tested - {"faults"} == rooms


def defined_names(path):
    """Names of the classes, functions and constants that a module defines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            yield from (name.id for name in getattr(target, "elts", [target]) if isinstance(name, ast.Name))


# what `__main__` reads in every command, and type variables
IN_EVERY_COMMAND = {"add_arguments", "main", "IMPORTS", "T"}


def test_a_public_name_is_defined_once():
    """A reader who searches for a name finds one meaning."""
    homes = {}
    for path in ROOT.glob("llata_fast/**/*.py"):
        for name in set(defined_names(path)):
            homes.setdefault(name, []).append(str(path.relative_to(ROOT)))
    several = {name: found for name, found in homes.items() if len(found) > 1 and not name.startswith("_")}
    assert not {name: found for name, found in several.items() if name not in IN_EVERY_COMMAND}


def glossary():
    """(file, name) of every entry."""
    rows = re.findall(r"^\| .*\| `([\w./]+)`(?:, `(\w+)`)? \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    return rows


@pytest.mark.parametrize(("file", "name"), glossary(), ids=lambda part: part)
def test_the_glossary_says_where_a_word_lives(file, name):
    path = next((path for path in (ROOT / file, ROOT / "llata_fast" / file) if path.exists()), None)
    assert path is not None
    if name and path.suffix == ".py":
        fields = re.findall(rf"^    {name}: ", path.read_text(), re.MULTILINE)
        assert name in defined_names(path) or fields


def test_triton_stays_in_kernels():
    assert not [
        path for path in ROOT.glob("llata_fast/**/*.py") for module in imports(path) if within(module, "triton")
    ]


def test_kernels_import_torch_and_triton_alone():
    allowed = ("torch", "triton", "kernels", *sys.stdlib_module_names)
    found = [(path.name, module) for path in ROOT.glob("kernels/**/*.py") for module in imports(path)]
    assert not [(path, module) for path, module in found if not within(module, *allowed)]


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_reference_test_and_bench(op):
    assert (ROOT / "kernels" / f"{op}.py").is_file()
    assert f"{op}_ref" in kernels.__all__
    assert (ROOT / "tests" / "kernels" / f"test_{op}.py").is_file()
    assert (ROOT / "bench" / f"bench_{op}.py").is_file()


def test_only_commands_print():
    """Library calls log; the command line decides how the log looks on a terminal."""
    found = []
    for path in ROOT.glob("llata_fast/**/*.py"):
        if path.parent.name != "commands" and path.name != "cli.py":
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            found += [f"{path.name}:{call.lineno}" for call in calls if getattr(call, "id", None) == "print"]
    assert not found


def test_entry_reads_as_a_list():
    assert len((ROOT / "train.py").read_text().splitlines()) < 100


def test_banned_names():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            # block pointers are deprecated, the interpreter has no libdevice, tensors move with .to(device)
            name = getattr(node, "attr", getattr(node, "id", None))
            call = getattr(node, "func", None)
            if name in ("make_block_ptr", "libdevice") or getattr(call, "attr", None) == "cuda":
                found.append(f"{path}:{node.lineno}")
    assert not found
    assert "utils" not in {path.stem for path in SOURCES}


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(tmp|root|work|home|Users)/")
    assert not [str(path) for path in TEXTS if pattern.search(path.read_text())]
