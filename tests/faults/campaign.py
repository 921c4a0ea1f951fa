"""A long run of all faults with a time limit; writes the figures in `docs/reliability.md`: `make faults MINUTES=60`.

Four fifths of the time go to kills, the rest to damaged files and to values that hypothesis generates. Every seed gives
another campaign; `--add FILE` continues one. Exits with 1 if any result was silently wrong, a hang or a traceback.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import datetime
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from faults.disks import try_disks  # noqa: E402
from faults.inputs import input_cases, try_damage  # noqa: E402
from faults.kills import KINDS, Trainings, try_kills, try_two_at_once  # noqa: E402
from faults.odd_values import try_odd_values  # noqa: E402
from faults.outcomes import OUTCOMES, Tally  # noqa: E402
from faults.shards import try_shards  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
_TURN = 40
_BEGIN, _END = "<!-- figures: written by make faults -->", "<!-- end of figures -->"


def try_inputs(folder: Path, options: argparse.Namespace, until: float, tally: Tally):
    """Alternate between damaging every file and generating odd values, _TURN each, until the time is up."""
    cases = [case for case in input_cases(folder) if not options.cases or case.name.startswith(tuple(options.cases))]
    logging.disable(logging.CRITICAL)
    each = -(-options.inputs // (len(cases) + (0 if options.cases else 5)))
    for turn, done in enumerate(range(0, each, _TURN)):
        count, seed = min(_TURN, each - done), options.seed + 1000 * turn
        if time.monotonic() < until and not options.cases:
            try_odd_values(count, seed, tally)
        for case in cases:
            if time.monotonic() < until:
                try_damage(case, -(-count // 8) if case.slow else count, seed, tally)
        tally.keep()
        print(f"{tally.total()} in all, of them bad: {tally.bad}", flush=True)


def figures(tally: Tally, seed: int) -> str:
    """The figures for the page: a line and a table."""
    kills = {name: counts for name, counts in tally.counts.items() if name.startswith("kill")}
    disks = sum(counts.total() for name, counts in tally.counts.items() if name.startswith("disk"))
    two = tally.counts["two runs at once"].total() if "two runs at once" in tally.counts else 0
    lines = [
        f"{datetime.date.today()}, seed {seed}, {tally.seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}: "
        f"{sum(counts.total() for counts in kills.values())} kills, "
        f"{disks} disks that failed, "
        f"{tally.total() - disks - sum(counts.total() for counts in kills.values()) - two} damaged or odd inputs.",
        "",
        f"| what | {' | '.join(OUTCOMES)} |",
        f"|---|{'---:|' * len(OUTCOMES)}",
    ]
    for name, counts in tally.counts.items():
        lines.append(f"| {name} | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} |")
    sums = [sum(counts[outcome] for counts in tally.counts.values()) for outcome in OUTCOMES]
    return "\n".join([*lines, f"| **all** | {' | '.join(map(str, sums))} |"])


def write_page(text: str):
    page = PAGE.read_text()
    before, _, rest = page.partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{rest.partition(_END)[2]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--kills", type=int, default=30, help="at most this many per kind of training, twice as many for one process"
    )
    parser.add_argument("--disks", type=int, default=10, help="trainings for each way that a disk fails")
    parser.add_argument("--shards", type=int, default=12, help="damaged DeepSpeed checkpoints per ZeRO stage")
    parser.add_argument("--each_event", action="store_true", help="kill averaged weights at every file event, too")
    parser.add_argument("--inputs", type=int, default=12_000, help="at most this many damaged or odd inputs")
    parser.add_argument("--cases", nargs="+", help="only damage files whose case names begin with one of these")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS], help="kinds of trainings to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", type=Path, metavar="FILE", help="JSON file of earlier counts, to continue")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, tally = time.monotonic(), Tally(options.add)
    # an in-memory disk, if there is one: after a kill, unlike a power cut, unsynced data survives
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        # DeepSpeed compiles extensions into the user's cache
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions" / "llata_fast"))
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        # kills come first: a process that has trained should not be forked
        (Path(folder) / "kills").mkdir()
        trainings = Trainings(Path(folder) / "kills")
        kinds = [kind for kind in KINDS if kind.name in options.kinds]
        until = began + options.minutes * (48 if options.inputs else 60)
        if options.kills:
            try_two_at_once(trainings, tally)
            try_kills(trainings, kinds, options.kills, options.seed, tally, until, options.each_event)
        if options.disks:
            try_disks(trainings, options.disks, options.seed, tally)
        if options.shards:
            try_shards(trainings, options.shards, options.seed, tally)
        for kind in kinds:
            print(f"{kind.name}: {dict(tally.counts[f'kill: {kind.name}'])}", flush=True)
        if options.inputs:
            try_inputs(Path(folder), options, began + options.minutes * 60, tally)
    tally.keep()
    text = figures(tally, options.seed)
    print(text)
    print("\n".join(tally.examples[:20]))
    if options.write:
        write_page(text)
    sys.exit(tally.bad > 0)


if __name__ == "__main__":
    main()
