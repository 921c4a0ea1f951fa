"""Everything that needs a CUDA device, in one command of at most nine minutes: tests, timings, trainings, a profile.

    python bench/gpu_suite.py --out DIR                                   # on the machine with the GPU
    python bench/gpu_suite.py --out DIR --bundle BACKBONE --data_dir DATA # also ETTh1, whose CSV is in DATA
    python bench/gpu_suite.py --out DIR --parts kernels,inference
    python bench/gpu_suite.py --out DIR --parts providers,compiled --write
    python bench/gpu_suite.py --out DIR --dry-run                         # every part at its smallest, on any machine

It needs the checkout, installed with `pip install --no-deps --no-build-isolation -e .`, and no network. Each part runs
in a separate process with a time limit, so that a hang or a broken CUDA context loses only that part, and what it has
measured so far is kept. DIR/<device>/ gets suite.json (rewritten after every part), suite.log (all output), the
kernels' CSV files and the profile. Finally it prints a table of the parts, and one JSON object as the last line.

`--write` lets the parts `providers` and `compiled` rewrite this checkout by what they measure: who computes each op
(kernels/providers.csv), and the batch size below which steps are compiled by default (COMPILED_BELOW). The rewritten
files are also copied to DIR/<device>/written.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# do not start a part with less time than this
LEAST_SECONDS = 15


@dataclass(frozen=True)
class Part:
    """A command, its time limit in seconds, and how to summarise its output."""

    seconds: int
    command: Callable[[argparse.Namespace], list[str]]
    headline: Callable[[str, list[dict]], str]
    """(output, JSON objects printed on separate lines) -> the most important figure, in words."""
    target: str = ""
    skip: Callable[[argparse.Namespace], str | None] = lambda options: None
    """The reason to skip it here, or None."""


@dataclass
class PartResult:
    part: str
    seconds: float
    status: str
    """ok, failed or skipped"""
    headline: str = ""
    """The headline, or the reason why the part failed or was skipped."""
    target: str = ""
    results: list[dict] = field(default_factory=list)
    """The JSON objects that the part printed."""


def pytest(*arguments: str, parallel: bool = False) -> list[str]:
    workers = ["-n", "8"] if parallel and importlib.util.find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *arguments]


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "bench" / name), *map(str, arguments)]


def own(name: str) -> Callable[[argparse.Namespace], list[str]]:
    """The command for a part of gpu_parts.py."""

    def command(options: argparse.Namespace) -> list[str]:
        flags = [f"--{key}={value}" for key in ("bundle", "data_dir") if (value := getattr(options, key))]
        return script("gpu_parts.py", name, *flags, *(["--dry-run"] if options.dry_run else []))

    return command


# a step that is quick on a CPU
SMALL = ("--batch", "2", "--channels", "2", "--num_layers", "1")


def train_step(arguments: str, dry_run: str) -> Callable[[argparse.Namespace], list[str]]:
    full, small = ["--batch", "256", "--channels", "7", *arguments.split()], [*SMALL, *dry_run.split()]
    return lambda options: script("train_step.py", *(small if options.dry_run else full))


def profile(options: argparse.Namespace) -> list[str]:
    return script("profile_step.py", "--out", str(options.out), *(SMALL if options.dry_run else ("--batch", "256")))


def attention(options: argparse.Namespace) -> list[str]:
    small = ("--lengths", "7", "64", "--tokens", "256", "--rounds", "2")
    return script("attention.py", "--out", str(options.out), *(small if options.dry_run else ()))


def providers(options: argparse.Namespace) -> list[str]:
    return script("tune.py", "--providers")


def compiled(options: argparse.Namespace) -> list[str]:
    flags = [flag for flag, given in (("--dry-run", options.dry_run), ("--write", options.write)) if given]
    return script("compiled.py", *flags)


def large(options: argparse.Namespace) -> list[str]:
    return pytest("tests/kernels/test_custom_ops.py" if options.dry_run else "tests", "-m", "gpu")


def kernel_tests(options: argparse.Namespace) -> list[str]:
    if options.dry_run:
        return pytest("tests/kernels/test_alignment_loss.py", "-k", "test_matches_reference and ones")
    return pytest("tests/kernels", "-m", "not gpu", parallel=True)


def model_tests(options: argparse.Namespace) -> list[str]:
    if options.dry_run:
        return pytest("tests/test_losses.py")
    models = (f"tests/test_{name}.py" for name in ("modeling", "linear", "saving", "losses"))
    return pytest(*models, "tests/backbone", "tests/data", parallel=True)


def microbenchmarks(options: argparse.Namespace) -> list[str]:
    some = ["--quick", "-k", "patch_embed and fwd and not bwd"] if options.dry_run else ["-k", "fwd+bwd"]
    return pytest("bench", "--benchmark-only", "--benchmark-disable-gc", "--out", str(options.out), *some)


def last_words(output: str, results: list[dict]) -> str:
    """Pytest's summary line."""
    counts = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|skipped|deselected|error).*?)(?: =+)?$", output, re.MULTILINE)
    return counts[-1] if counts else "no result"


def told(output: str, results: list[dict]) -> str:
    return results[-1]["headline"]


def ratios(output: str, results: list[dict]) -> str:
    told = []
    for row in results[-1]["rows"]:
        times = [
            f"{kind} {row[f'llata_fast_{kind}_ms']:.1f} ms"
            + (f", {row[f'{kind}_ratio']:.1f}x" if f"{kind}_ratio" in row else "")
            for kind in ("train", "inference")
        ]
        told.append(f"{row['precision']}{' compiled' if row['compile'] else ''}: {', '.join(times)}")
    return "; ".join(told)


def fastest(output: str, results: list[dict]) -> str:
    """The number of cases in which the Triton kernel is the fastest provider."""
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for row in results[-1]["rows"]:
        if row["mode"] == "fwd+bwd" and not row["error"]:
            cases.setdefault((row["op"], row["case"]), {})[row["provider"]] = row["ms_p50"]
    timed = [times for times in cases.values() if "triton" in times and len(times) > 1]
    won = sum(times["triton"] <= min(times.values()) for times in timed)
    return f"Triton the fastest in {won} of {len(timed)} cases" if timed else "no Triton times"


def crossover(output: str, results: list[dict]) -> str:
    """The number of tokens per sequence from which each implementation trains faster than SDPA."""
    times: dict[str, dict[int, float]] = {}
    for row in results[-1]["rows"]:
        if row["mode"] == "fwd+bwd":
            times.setdefault(row["implementation"], {})[row["tokens"]] = row["ms_p50"]
    sdpa = times.pop("sdpa")
    told = []
    for name, taken in times.items():
        ahead = [length for length in taken if all(taken[n] < sdpa[n] for n in taken if n >= length)]
        told.append(f"{name} from {min(ahead)} tokens" if ahead else f"{name} never")
    return f"faster than sdpa: {', '.join(told)}"


def written_rows(output: str, results: list[dict]) -> str:
    """Which rows of the providers' table were measured."""
    rows = re.findall(r"^(\w+, .+): (triton|library) \(", output, re.MULTILINE)
    library = ", ".join(row for row, provider in rows if provider == "library")
    return f"{len(rows)} rows measured, the library's: {library or 'none'}"


def reads_only(options: argparse.Namespace) -> str | None:
    return None if options.write and not options.dry_run else "rewrites kernels/providers.csv: only with --write"


def no_sanitizer(options: argparse.Namespace) -> str | None:
    return None if options.dry_run or shutil.which("compute-sanitizer") else "no compute-sanitizer on the path"


def no_bundle(options: argparse.Namespace) -> str | None:
    return None if options.dry_run or (options.bundle and options.data_dir) else "no --bundle and --data_dir"


def no_deepspeed(options: argparse.Namespace) -> str | None:
    return None if importlib.util.find_spec("deepspeed") else "deepspeed is not installed"


# in order of importance: later parts get the time that is left
PARTS = {
    "environment": Part(60, own("environment"), told),
    "kernels": Part(150, kernel_tests, last_words, "all passed"),
    "train_step": Part(
        120,
        train_step("--precisions bf16 --compile also", dry_run="--precisions fp32"),
        ratios,
        "faster than the fp32 reference",
    ),
    "etth1": Part(90, own("etth1"), told, "< 10 s of training", no_bundle),
    "inference": Part(90, own("inference"), told, ">= 400,000 windows/s"),
    "large": Part(90, large, last_words, "all passed"),
    "training": Part(60, own("training"), told, "loss halved"),
    "train_step_compiled": Part(
        150,
        train_step(
            "--precisions bf16 --compile only --yardstick compiled",
            dry_run="--precisions fp32 --providers llata_fast --yardstick compiled",
        ),
        ratios,
        "faster than the compiled reference",
    ),
    "providers": Part(120, providers, written_rows, "a row of every op and class", reads_only),
    "compiled": Part(180, compiled, told),
    "sanitizer": Part(180, own("sanitizer"), told, "no errors", no_sanitizer),
    "profile": Part(60, profile, told),
    "attention": Part(60, attention, crossover),
    "zero2": Part(90, own("zero2"), told, "", no_deepspeed),
    "zero3": Part(90, own("zero3"), told, "", no_deepspeed),
    "models": Part(60, model_tests, last_words, "all passed"),
    "microbenchmarks": Part(240, microbenchmarks, fastest),
}


def run_part(name: str, options: argparse.Namespace, limit: float, log: Path) -> PartResult:
    """Run one part for at most `limit` seconds and append its output to `log`."""
    part = PARTS[name]
    if reason := part.skip(options):
        return PartResult(name, 0.0, "skipped", reason)
    if limit < LEAST_SECONDS:
        return PartResult(name, 0.0, "skipped", "no time left")
    with log.open("a") as file:
        print(f"\n##### {name}\n", file=file, flush=True)
        begin, start = file.tell(), time.monotonic()
        process = subprocess.Popen(
            part.command(options),
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            late = process.poll() is None
            # also kill the processes that it started
            if late:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - start
    with log.open(errors="replace") as file:
        file.seek(begin)
        output = file.read()
    results = json_lines(output)
    outcome = PartResult(name, round(seconds, 1), "ok", target=part.target, results=results)
    if late:
        outcome.status, outcome.headline = "failed", f"stopped after {limit:.0f} s"
    elif process.returncode:
        lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
        outcome.status, outcome.headline = "failed", f"exit code {process.returncode}: {lines[-1].strip()[:160]}"
    else:
        try:
            outcome.headline = part.headline(output, results)
        except (IndexError, KeyError) as error:
            outcome.status, outcome.headline = "failed", f"its output lacks {error}"
    return outcome


def json_lines(output: str) -> list[dict]:
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def device_folder() -> str:
    """Folder name for the device; found in a separate process, so that this one never opens the device."""
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); import common; print(common.device_folder())"
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


# what `--write` lets parts rewrite
WRITTEN = ("kernels/providers.csv", "llata_fast/training/arguments.py")


def keep_written(folder: Path):
    """Copies of the rewritten files beside the results: a machine that is lent takes its checkout with it."""
    for name in WRITTEN:
        copy = folder / "written" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)


def table(outcomes: list[PartResult]) -> str:
    rows = [("part", "seconds", "result", "", "target")]
    rows += [(o.part, f"{o.seconds:.1f}", o.status, o.headline, o.target) for o in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def write_results(folder: Path, outcomes: list[PartResult], commit: str):
    facts = next((outcome.results[0] for outcome in outcomes if outcome.part == "environment" and outcome.results), {})
    facts = {"date": datetime.date.today().isoformat(), **facts} | ({"commit": commit} if commit else {})
    document = {"facts": facts, "parts": [asdict(outcome) for outcome in outcomes]}
    (folder / "suite.json").write_text(json.dumps(document, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    names = lambda text: text.split(",")
    parser.add_argument("--parts", type=names, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit for all parts together")
    parser.add_argument("--bundle", type=Path, help="backbone written by `python -m llata_fast bundle`")
    parser.add_argument("--data_dir", type=Path, help="folder that contains ETTh1.csv")
    parser.add_argument("--commit", default="", help="commit to record, if the checkout is not a repository")
    parser.add_argument("--write", action="store_true", help="rewrite this checkout's tables by what is measured")
    parser.add_argument("--dry-run", action="store_true", help="run every part at its smallest; measures nothing")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: choose from {', '.join(PARTS)}")
    for name in ("bundle", "data_dir"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name} {path}: no such folder")
    for name in ("out", "bundle", "data_dir"):
        if (path := getattr(options, name)) is not None:
            # parts run in the checkout's folder
            setattr(options, name, path.resolve())
    return options


def main():
    options = parse_options()
    deadline = time.monotonic() + 60 * options.minutes
    folder = options.out / device_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.log").write_text("")
    outcomes = []
    # always record the environment
    for name in dict.fromkeys(["environment", *options.parts]):
        limit = min(PARTS[name].seconds, deadline - time.monotonic())
        outcomes.append(run_part(name, options, limit, folder / "suite.log"))
        print(table(outcomes[-1:]).splitlines()[-1], flush=True)
        write_results(folder, outcomes, options.commit)
    if options.write and not options.dry_run:
        keep_written(folder)
    print(f"\n{table(outcomes)}\n")
    brief = [{key: value for key, value in asdict(outcome).items() if key != "results"} for outcome in outcomes]
    print(json.dumps({"folder": str(folder), "parts": brief}))
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    main()
