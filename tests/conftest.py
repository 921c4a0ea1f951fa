"""Settings and fixtures for the whole suite. Pytest imports this before any test, and so before any kernel."""

import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# triton.jit reads it when it decorates a kernel
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# huggingface_hub reads it on import; tests of the network unset it in a separate process
os.environ["HF_HUB_OFFLINE"] = "1"

# the same examples every time, and no deadline: the machine may be busy
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    # leave the user's cache alone; parallel workers share the folder of the process that started them
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="llata_fast_")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def silent():
    """Silence the package's log again after a test: a command that runs in this process turns it on."""
    yield
    log = logging.getLogger("llata_fast")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def deterministic():
    """The same seeds for every test. Deterministic mode fills `torch.empty` with NaN, which shows unwritten memory."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def plain_ops(monkeypatch):
    """Run the ops' PyTorch references: tests of code that calls the ops need not wait for the interpreter."""
    monkeypatch.setattr("llata_fast.kernels._launch.ENABLED", False)


@pytest.fixture(scope="module")
def plain_ops_throughout():
    """`plain_ops` for a whole module whose tests share runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        yield


@pytest.fixture(scope="module")
def no_data_folder():
    """Without a user's data folder, which would change what a dataset's name means."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LLATA_DATA", raising=False)
        yield


@pytest.fixture
def backbone(tmp_path):
    """A tiny `random:` Llama."""
    # imported here because it imports the kernels
    from tiny import random_backbone

    return random_backbone(tmp_path)


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def shared():
    """`shared(name)` returns a file or folder of the data beside the checkout, or skips the test if it is absent."""

    def find(name):
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"no {name} in the folder 'shared' beside the checkout")
        return path

    return find


@pytest.fixture(scope="session")
def free_ports():
    """`free_ports(n)` returns n TCP ports for `--master_port`: parallel test processes must not use the same one."""

    def find(number):
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(number)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return [probe.getsockname()[1] for probe in probes]

    return find


@pytest.fixture(scope="module")
def free_port(free_ports):
    """A TCP port for launches that run one after another."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def launch():
    """`launch("python", "train.py", ..., returncode=0, timeout=240, env={})` runs a command as a user would.

    It starts in the checkout's root with the environment's commands (python, deepspeed) on PATH. `env` sets variables;
    the value None removes one. Returns stdout and stderr together. Fails unless the exit status is `returncode` (None
    accepts any).
    """

    def run(*command, returncode=0, timeout=240, env=None):
        bin_dir = Path(sys.executable).parent
        # training with interpreted kernels would be hundreds of times slower
        settings = {"TRITON_INTERPRET": None, "OMP_NUM_THREADS": "1", **(env or {})}
        settings["PATH"] = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
        full_env = {key: value for key, value in {**os.environ, **settings}.items() if value is not None}
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=full_env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            # a launcher that dies or hangs must not leave its ranks behind
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if returncode is not None:
            line = " ".join(map(str, command))
            assert process.returncode == returncode, f"{line} ended with {process.returncode}\n{output[-4000:]}"
        return output

    return run
