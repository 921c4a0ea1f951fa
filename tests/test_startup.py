"""Start-up: quick commands load neither torch nor transformers nor pandas; the public names."""

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import llata_fast
from llata_fast.cli import importing
from llata_fast.commands import COMMANDS, command

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "pandas", "deepspeed", "accelerate", "transformers.trainer")
# prints a program's heavy imports and CPU seconds on stderr as the last line
REPORT = f"""
import atexit, json, resource, runpy, sys

def report():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([heavy, usage.ru_utime + usage.ru_stime]), file=sys.stderr)

atexit.register(report)
"""


def started(program, *argv):
    """Heavy modules that a program imported, and the CPU seconds it took; its exit code must be 0."""
    command = [sys.executable, "-c", REPORT + program, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1])


def run_module(*argv):
    return started("sys.argv[0] = 'llata_fast'; runpy.run_module('llata_fast', run_name='__main__')", *argv)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda words: "".join(words) or "none")
def test_help_loads_nothing_heavy(words):
    assert run_module(*words, "--help")[0] == []


def test_import_loads_nothing_heavy():
    loaded, seconds = started("import llata_fast; dir(llata_fast)")
    assert loaded == [] and "train" not in sys.modules
    # takes 0.1 s on one core of a server; a machine three times as slow must pass
    assert seconds < 2


def test_help_of_training_loads_nothing_heavy():
    loaded, seconds = started("sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')", "--help")
    assert loaded == [] and seconds < 2


PREDICT = """
import gc
from llata_fast import __main__, commands

def main(options):
    # thousands otherwise
    assert len(searches) < 20 and gc.isenabled() and gc.get_freeze_count(), len(searches)
    import llata_fast.data, llata_fast.forecasting.pictures, llata_fast.forecasting.table_files

searches = []
gc.callbacks.append(lambda phase, info: searches.append(phase))
commands.command("predict").main = main
searches.clear()
__main__.main(["predict", "run", "--input", "a.csv", "--output", "b.csv"])
"""


def test_forecasting_does_not_import_the_trainer():
    """Nor is what predict imports before it reads the run searched for garbage."""
    loaded, _ = started(PREDICT)
    assert "torch" in loaded and not {"transformers.trainer", "deepspeed"} & set(loaded)


def test_commands_name_what_they_import():
    for name in COMMANDS:
        for module in getattr(command(name), "IMPORTS", ()):
            assert importlib.util.find_spec(f"llata_fast.{module}"), f"{name}: no module {module}"


def test_importing_leaves_the_collector_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ImportError), importing():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_public_names():
    """All of them exist, nothing else lacks an underscore, and each is imported on demand."""
    assert set(llata_fast.__all__) <= set(dir(llata_fast))
    for name in llata_fast.__all__:
        assert getattr(llata_fast, name) is not None
    from llata_fast.forecasting.forecaster import Forecaster

    assert llata_fast.Forecaster is Forecaster
    with pytest.raises(AttributeError, match="no attribute 'Forcaster'"):
        llata_fast.Forcaster  # noqa: B018  # codespell:ignore forcaster
    assert (Path(llata_fast.__file__).parent / "py.typed").is_file()
