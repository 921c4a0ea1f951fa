"""Launch small trainings repeatedly on a busy machine: on two ranks, and with two launchers that act as two nodes.

    python tools/launch_ranks.py --ranks 40 --nodes 20 --busy 3

Every launcher must exit with 0 in time. The stacks of hanging ranks are printed if py-spy is installed. The last line
is one JSON object: number of launches, nonzero exit codes, and seconds per launch.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def settings_file(folder: Path) -> Path:
    """Write a `--config` file for three training steps of a tiny model."""
    import yaml
    from tiny import random_backbone, write_series

    settings = {
        "dataset": str(write_series(folder / "series.csv", 340)),
        "backbone": random_backbone(folder),
        "num_layers": 1,
        "num_prototypes": 9,
        "context_length": 12,
        "prediction_length": 6,
        "batch_size": 8,
        "max_steps": 3,
        "precision": "fp32",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def commands(kind: str, number: int) -> list[list[str]]:
    """Launcher commands for one launch; every second launch uses DeepSpeed's launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = ["--master_addr", "127.0.0.1", "--master_port", str(probe.getsockname()[1])]
    deepspeed = number % 2 == 1
    if kind == "ranks":
        return [[*(("deepspeed", "--num_gpus") if deepspeed else ("torchrun", "--nproc_per_node")), "2", *meeting]]
    if deepspeed:
        hosts = Path(tempfile.gettempdir(), "launch_ranks.hosts")
        hosts.write_text("node-0 slots=1\nnode-1 slots=1\n")
        command = ["deepspeed", "--no_ssh", "--hostfile", str(hosts), *meeting]
    else:
        command = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1", *meeting]
    return [[*command, "--node_rank", str(node)] for node in range(2)]


def launch(kind: str, number: int, settings: Path, limit: float) -> list[int | str]:
    """Exit codes of one launch's launchers; "hang" for one that takes longer than `limit` seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["train.py", "--config", str(settings), "--output_dir", f"{folder}/run"]
        if number % 2:
            flags += ["--deepspeed", "ds_configs/zero2.json"]
        processes = []
        for index, command in enumerate(commands(kind, number)):
            log = open(Path(folder, f"log-{index}"), "w+")
            process = subprocess.Popen(
                [*command, *flags], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            processes.append((process, log))
        until, codes = time.monotonic() + limit, []
        for process, log in processes:
            try:
                codes.append(process.wait(max(1, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append("hang")
                show_stacks(folder)
            if codes[-1] != 0:
                log.seek(0)
                print(log.read()[-6000:], flush=True)
        for process, _ in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return codes


def show_stacks(folder: str):
    """Print the stacks of all processes whose command line contains `folder`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            named = folder in path.read_text()
        except OSError:
            continue
        if named and shutil.which("py-spy"):
            subprocess.run(["py-spy", "dump", "--pid", path.parent.name], check=False)


def spin():
    while True:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=40, help="launches on two ranks")
    parser.add_argument("--nodes", type=int, default=20, help="launches of two nodes")
    parser.add_argument("--busy", type=int, default=3, help="busy processes in the background")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a launch counts as hanging")
    options = parser.parse_args()
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    failed, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_file(Path(folder))
        for kind, count in (("ranks", options.ranks), ("nodes", options.nodes)):
            for number in range(count):
                began = time.monotonic()
                codes = launch(kind, number, settings, options.limit)
                seconds.append(time.monotonic() - began)
                print(f"{kind} {number}: {codes}, {seconds[-1]:.0f} s", flush=True)
                failed += [code for code in codes if code != 0]
    median = round(statistics.median(seconds), 1)
    print(
        json.dumps(
            {"launches": len(seconds), "failed": failed, "median_s": median, "longest_s": round(max(seconds), 1)}
        )
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
