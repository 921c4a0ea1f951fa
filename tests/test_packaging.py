"""What an installation contains: file names in the wheel, and what imports find in an editable install."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llata_fast", "kernels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # build from a copy: setuptools leaves a build folder beside the sources
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source]
    subprocess.run(command, check=True)
    (path,) = target.glob("*.whl")
    return path


def test_wheel_contains_exactly_our_files(wheel):
    files = {
        path.relative_to(ROOT) for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.*") if path.is_file()
    }
    files = {str(path) for path in files if path.suffix not in (".md", ".pyc")}
    expected = {name if name.startswith("llata_fast/") else f"llata_fast/{name}" for name in files}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_installed_wheel_stays_on_the_path(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import llata_fast; from importlib.util import find_spec;"
        "print(sys.path[0], find_spec('llata_fast.kernels').origin)"
    )
    output = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.split() == [str(tmp_path), str(tmp_path / "llata_fast" / "kernels" / "__init__.py")]


def test_editable_install_maps_the_folder():
    assert find_spec("llata_fast.kernels").origin == str(ROOT / "kernels" / "__init__.py")


def test_every_imported_package_is_required(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    requirements = re.findall(r"^Requires-Dist: ([\w-]+)", archive.read(metadata).decode(), flags=re.MULTILINE)
    names = {"pyyaml": "yaml"}
    required = {names.get(name.lower(), name.lower().replace("-", "_")) for name in requirements}
    imported = {
        name.partition(".")[0]
        for package in PACKAGES
        for path in ROOT.glob(f"{package}/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _absolute_imports(node)
    }
    assert imported - sys.stdlib_module_names - {"llata_fast"} <= required


def test_the_oldest_versions_that_are_tested_are_those_allowed():
    """`make test-oldest` installs setup.py's lower bounds; `make test-newest` stays below its upper bounds."""
    allowed = re.findall(r'"(transformers|accelerate|deepspeed)>=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert len(allowed) == 3
    for name, least, below in allowed:
        assert re.search(rf"^OLDEST := .*\b{name}=={re.escape(least)}(\.0)*( |$)", makefile, flags=re.MULTILINE), name
        assert re.search(rf"^NEWEST := .*\b{name}<{re.escape(below)}( |$)", makefile, flags=re.MULTILINE), name


def _absolute_imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module]
    return []
