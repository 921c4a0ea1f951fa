"""The parts of gpu_suite.py that no other program covers: python bench/gpu_parts.py PART.

Results are printed to stdout at once, as one JSON object per line; the last one has a headline.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TINY = {"model_type": "gpt2", "n_embd": 48, "n_layer": 1, "n_head": 4, "n_positions": 16, "vocab_size": 80}
WINDOWS_A_SECOND = 400_000
TRAINING_SECONDS = 10


def report(**facts):
    print(json.dumps(facts), flush=True)


def execute(*command, **environment):
    """Run a program with its output on ours; raises SystemExit with its exit code if it fails."""
    code = subprocess.run([str(part) for part in command], env={**os.environ, **environment}).returncode
    if code:
        sys.exit(f"{Path(str(command[1])).name} ended with {code}")


def environment(options: argparse.Namespace):
    """Versions, and the peak speed of the device's memory and tensor cores."""
    import common
    import torch
    import transformers

    on_gpu = torch.cuda.is_available()
    facts = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    facts |= {"device": common.device_name(), **common.versions(), "cuda": torch.version.cuda}
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        facts |= {"memory_gib": properties.total_memory / 2**30, "multiprocessors": properties.multi_processor_count}
    report(**facts)
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"])
    copy, gemm = common.ceilings()
    precision = str(common.dtype()).removeprefix("torch.")
    report(
        copy_bytes_s=copy,
        gemm_flop_s=gemm,
        headline=f"{facts['device']}: copy {copy / 1e12:.2f} TB/s, {precision} GEMM {gemm / 1e12:.1f} TFLOP/s",
    )


def kernel_calls(options: argparse.Namespace):
    """Run every kernel forward and backward on shapes that fill no block; inputs end where their memory ends."""
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from llata_fast.kernels import (
        alignment_loss,
        deep_alignment_loss,
        forecast_losses,
        patch_embed,
        prototype_attention,
        twin_norm,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.float32,) if options.dry_run else (torch.bfloat16, torch.float32):
        draw = lambda *shape, dtype=dtype: torch.randn(shape, device=device, dtype=dtype).requires_grad_()
        series = torch.randn(1 if options.dry_run else 3, 100, 7, device=device)
        for P, S in ((96, 96),) if options.dry_run else ((96, 96), (16, 8)):
            for mask in (None, series > -1):
                sizes = {"patch_length": P, "patch_stride": S, "observed_mask": mask}
                patch_embed(series, draw(50, P), draw(50), **sizes)[0].sum().backward()
        for E in (24,) if options.dry_run else (48, 64, 80, 128):
            prototype_attention(draw(150, 2, E), draw(77, 2, E), draw(77, 2, E)).sum().backward()
        for kind in ("l1",) if options.dry_run else ("l1", "smooth_l1"):
            alignment_loss(draw(150, 50), draw(150, 50), draw(33, 50), draw(33, 50), kind=kind).backward()
            features = [torch.randn(300, 50, device=device).requires_grad_() for _ in range(3)]
            depths = {"depth_weights": [0.5, 0.7, 1.0], "kind": kind}
            deep_alignment_loss(features, draw(3, 33, 50), draw(3, 33, 50), **depths).backward()
        for kinds in (("l1", None), ("smooth_l1", "mse"), ("mase", "smape")):
            series_units = [torch.rand(3, 7, device=device) + 0.5 for _ in range(3)]
            target = torch.randn(3, 19, 7, device=device).masked_fill(
                torch.rand(3, 19, 7, device=device) < 0.2, torch.nan
            )
            kinds = {"task": kinds[0], "consistency": kinds[1], "insample_scale": series_units[2]}
            forecast_losses(draw(6, 7, 19), *series_units[:2], target, **kinds)[3].backward()
        for kind in ("layer", "rms"):
            weight, frozen = draw(50, dtype=torch.float32), draw(50, dtype=torch.float32).detach()
            biases = (weight, frozen) if kind == "layer" else (None, None)
            norm = twin_norm(
                draw(99, 50),
                weight,
                biases[0],
                frozen,
                biases[1],
                update=draw(99, 50),
                num_time_rows=40,
                eps=1e-5,
                kind=kind,
            )
            sum(output.sum() for output in norm).backward()
    if device == "cuda":
        torch.cuda.synchronize()


def sanitizer(options: argparse.Namespace):
    """Run compute-sanitizer over every kernel: invalid accesses, races, uninitialised memory, barriers."""
    program = (sys.executable, __file__, "kernel_calls", *(["--dry-run"] if options.dry_run else []))
    # first without the sanitizer, to compile the kernels
    execute(*program)
    tools = [] if options.dry_run else ["memcheck", "racecheck", "initcheck", "synccheck"]
    for tool in tools:
        # torch's memory cache would hide accesses beyond a tensor
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program)
        execute(*command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        report(tool=tool, errors=0)
    report(headline=f"no errors by {', '.join(tools)}" if tools else "the kernels run")


def write_waves(path: Path, rows: int, channels: int = 7) -> Path:
    """A CSV of noisy hourly series with a daily and a weekly wave, whose phases differ by channel."""
    noise = np.random.default_rng(0).normal(size=(rows, channels))
    hours, phase = np.arange(rows)[:, None], np.arange(channels)
    values = np.sin(hours * 2 * np.pi / 24 + phase) + 0.5 * np.sin(hours * 2 * np.pi / 168 + 2 * phase) + 0.3 * noise
    table = pd.DataFrame(values.round(4), columns=[f"c{channel}" for channel in range(channels)])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="h"))
    table.to_csv(path, index=False)
    return path


def train(folder: Path, options: argparse.Namespace, *flags, **environment) -> dict:
    """Train on waves with random weights and without validation; returns metrics.json, losses and step time."""
    series = write_waves(folder / "waves.csv", 1200 if options.dry_run else 4000)
    (folder / "config.json").write_text(json.dumps(TINY))
    size = {
        "backbone": f"random:{folder / 'config.json'}" if options.dry_run else "random:gpt2",
        "num_layers": 1 if options.dry_run else 6,
        "batch_size": 8 if options.dry_run else 64,
        "max_steps": 20 if options.dry_run else 300,
    }
    settings = {
        "dataset": series,
        "context_length": 96,
        "prediction_length": 96,
        "output_dir": folder / "run",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "logging_steps": 5,
        "report_to": "none",
        **size,
    }
    settings["save_steps"] = settings["max_steps"]
    command = [part for name, value in settings.items() for part in (f"--{name}", value)]
    execute(sys.executable, ROOT / "train.py", *command, *flags, **environment)
    return run_facts(folder / "run")


def run_facts(run: Path) -> dict:
    metrics = json.loads((run / "metrics.json").read_text())
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((checkpoints[-1] / "trainer_state.json").read_text())
    return {
        "training": metrics["training"],
        "speed": metrics["speed"],
        "test": {name: {key: score[key] for key in ("mse", "mae")} for name, score in scores_of(metrics).items()},
        "losses": [entry["loss"] for entry in state["log_history"] if "loss" in entry],
        "steps": state["global_step"],
        "best_step": state.get("best_global_step"),
    }


def scores_of(metrics: dict) -> dict:
    return {"llata": metrics["test"], **metrics["baselines"]}


def training(options: argparse.Namespace):
    """A few hundred steps with random weights, eager and compiled: the loss must halve."""
    for flags in ((), ("--torch_compile", "true")):
        with tempfile.TemporaryDirectory() as folder:
            facts = train(Path(folder), options, *flags)
        losses = facts["losses"]
        report(flags=flags, **facts)
        if not losses[-1] < (1.0 if options.dry_run else 0.5) * losses[0]:
            sys.exit(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
        # compiling takes too long for a dry run
        if options.dry_run:
            break
    rate = facts["speed"]["windows_per_s"]
    report(headline=f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {rate:,.0f} windows/s in the end")


def etth1(options: argparse.Namespace):
    """ETTh1, context and horizon 96, on a bundled backbone, with the dataset's preset."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags = ["--backbone", options.bundle, "--dataset", "ETTh1", "--data_dir", options.data_dir]
        if options.dry_run:
            (folder / "config.json").write_text(json.dumps(TINY))
            bundle = ("bundle", "--backbone", f"random:{folder / 'config.json'}", "--num_layers", 1)
            execute(sys.executable, "-m", "llata_fast", *bundle, "--output", folder / "bundle")
            flags = ["--backbone", folder / "bundle", "--dataset", write_waves(folder / "waves.csv", 1200)]
            flags += ["--num_layers", 1, "--num_train_epochs", 1, "--batch_size", 32]
        flags += ["--context_length", 96, "--prediction_length", 96, "--report_to", "none"]
        execute(sys.executable, ROOT / "train.py", *flags, "--output_dir", folder / "run")
        facts = run_facts(folder / "run")
    seconds = facts["training"]["seconds"]
    to_best = seconds * facts["best_step"] / facts["steps"]
    score = facts["test"]["llata"]
    report(seconds_to_best_step=to_best, **facts)
    report(
        met=to_best < TRAINING_SECONDS,
        headline=f"{to_best:.1f} s to the best step, {seconds:.1f} s in all; "
        f"test MSE {score['mse']:.3f}, MAE {score['mae']:.3f}",
    )


def inference(options: argparse.Namespace):
    """Forecast windows per second, C 7, six merged layers of GPT-2's width, eager and compiled with CUDA graphs."""
    import torch
    from train_step import Provider, batch, parse_options

    on_gpu = torch.cuda.is_available()
    best = (0.0, "")
    for windows, compiled in ((2, False),) if options.dry_run else ((1024, False), (8192, False), (8192, True)):
        torch.manual_seed(0)
        size = ["--batch", str(windows), "--num_layers", "1" if options.dry_run else "6"]
        settings = parse_options(size)
        precision = "bf16" if on_gpu else "fp32"
        provider = Provider(settings, "llata_fast", precision, compiled)
        past, future = batch(settings)
        times = []
        for _ in range(3 if options.dry_run else 25):
            start = time.perf_counter()
            provider.inference(past, future)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[len(times) // 5 :])
        how = f"{windows} at a time, {precision}{', compiled' if compiled else ''}"
        report(batch=windows, precision=precision, compile=compiled, ms=1e3 * seconds, windows_per_s=windows / seconds)
        best = max(best, (windows / seconds, how))
    report(met=best[0] >= WINDOWS_A_SECOND, headline=f"{best[0]:,.0f} windows/s, {best[1]}")


def zero(stage: int, options: argparse.Namespace):
    """A few steps under DeepSpeed on this one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    flags = ["--deepspeed", ROOT / "ds_configs" / f"zero{stage}.json", "--max_steps", 5, "--save_steps", 5]
    if not shutil.which("nvidia-smi"):
        ranks["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        facts = train(Path(folder), options, *flags, **ranks)
    report(**facts)
    if not all(np.isfinite(facts["losses"])):
        sys.exit(f"losses {facts['losses']}")
    report(headline=f"{facts['steps']} steps, loss {facts['losses'][0]:.3f}")


PARTS = {
    "environment": environment,
    "kernel_calls": kernel_calls,
    "sanitizer": sanitizer,
    "training": training,
    "etth1": etth1,
    "inference": inference,
    "zero2": lambda options: zero(2, options),
    "zero3": lambda options: zero(3, options),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--bundle")
    parser.add_argument("--data_dir")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
