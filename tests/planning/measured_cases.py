"""Trains once for each case of a list and measures communication and memory: `measured_cases.py CASES.json`.

CASES.json maps the name of a case to arguments of `train.py` or of `train_published`. The result is <name>.measured
beside it, for rank 0. Messages and shards are those of one optimizer step; the first step is left out, since ZeRO-3
records the order of modules in it.

    messages       bytes by collective, from DeepSpeed's communication logger; for DDP, from a hook on its buckets
    frozen_shards  bytes of all-gathers for frozen weights, counted where ZeRO-3 requests them
    trained_shards bytes of all-gathers for trained weights
    peak           bytes of resident memory that the training added to the process
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import contextlib
import ctypes
import gc
import json
import runpy
import sys
from pathlib import Path
from unittest import mock

import deepspeed
import psutil
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, TrainerCallback

from llata_fast.backbone.placing import whole_models
from llata_fast.ranks import leaving_in_order
from llata_fast.training.trainer import ForecastTrainer
from llata_fast.training.deepspeed_config import leave_out_shared_memory

ROOT = Path(__file__).resolve().parents[2]
GATHER = "_PartitionedParameterCoordinator__all_gather_params_"
STEPS = 3


class TrainedError(Exception):
    """Ends a run after its training, since the rest is not measured."""


class Meter(TrainerCallback):
    """Counts every step but the first."""

    def __init__(self):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.before = psutil.Process().memory_info().rss
        self.logger = deepspeed.comm.comms_logger
        self.start()

    def start(self):
        self.logger.reset_data()
        self.shards = {True: 0, False: 0}
        self.buckets = 0

    def on_train_begin(self, args, state, control, **kwargs):
        # forget the peak of loading
        Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.start()

    def on_train_end(self, args, state, control, **kwargs):
        self.finish()

    def finish(self):
        status = Path("/proc/self/status").read_text()
        resident = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        messages = {
            name: sum(size * entry[0] for size, entry in sizes.items()) / (STEPS - 1)
            for name, sizes in self.logger.comms_dict.items()
        }
        self.measured = {
            "messages": messages | ({"ddp": self.buckets / (STEPS - 1)} if self.buckets else {}),
            "frozen_shards": self.shards[False] / (STEPS - 1),
            "trained_shards": self.shards[True] / (STEPS - 1),
            "peak": resident - self.before,
        }

    def hook(self, state, bucket):
        self.buckets += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    def watching(self):
        """Context in which trainers, DDP and ZeRO-3 report to this meter."""
        init, wrap, gather = ForecastTrainer.__init__, DistributedDataParallel.__init__, self._gather

        def watched_init(trainer, *args, **kwargs):
            init(trainer, *args, **kwargs)
            trainer.add_callback(self)

        def watched_wrap(module, *args, **kwargs):
            wrap(module, *args, **kwargs)
            module.register_comm_hook(None, self.hook)

        patches = mock.patch.multiple(ForecastTrainer, __init__=watched_init)
        more = mock.patch.multiple(DistributedDataParallel, __init__=watched_wrap)
        return patches, more, mock.patch.object(PartitionedParameterCoordinator, GATHER, gather())

    def _gather(self):
        original = getattr(PartitionedParameterCoordinator, GATHER)

        def gather(coordinator, params, *args, **kwargs):
            for parameter in params:
                if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE:
                    self.shards[parameter.requires_grad] += parameter.ds_tensor.nbytes
            return original(coordinator, params, *args, **kwargs)

        return gather


def run_train(arguments: list[str]):
    stop = mock.patch.object(ForecastTrainer, "test", side_effect=TrainedError)
    with mock.patch.object(sys, "argv", ["train.py", *arguments]), stop, contextlib.suppress(TrainedError):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def train_published(
    meter: Meter, backbone: dict, zero_file: str, context_length: int, prediction_length: int, num_prototypes: int
):
    """The published model's steps under DeepSpeed: two copies of GPT-2, both with frozen matrices."""
    sys.path.append(str(ROOT / "bench"))
    from reference import ReferenceModel, reference_loss

    config = GPT2Config(**backbone)
    width, channels, windows = config.n_embd, 3, 4
    settings = json.loads(Path(zero_file).read_text())
    # the values that transformers fills in for "auto"
    settings["zero_optimization"] |= {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    settings |= {"train_micro_batch_size_per_gpu": windows, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    settings |= {"train_batch_size": windows * torch.distributed.get_world_size()}
    settings |= {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    sizes = {"context_length": context_length, "prediction_length": prediction_length}
    with whole_models():
        model = ReferenceModel(torch.randn(num_prototypes, width), config, **sizes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    leave_out_shared_memory()
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained), config=settings)
    for step in range(STEPS):
        past, future = torch.randn(windows, context_length, channels), torch.randn(windows, prediction_length, channels)
        engine.backward(reference_loss(engine(past), future, "smooth_l1"))
        engine.step()
        if step == 0:
            meter.start()
    meter.finish()


def main():
    cases = next(Path(argument) for argument in sys.argv[1:] if argument.endswith(".json"))
    for name, case in json.loads(cases.read_text()).items():
        meter = Meter()
        first, second, third = meter.watching()
        with first, second, third:
            if isinstance(case, dict):
                train_published(meter, **case)
            else:
                run_train(case)
        if torch.distributed.get_rank() == 0:
            (cases.parent / f"{name}.measured").write_text(json.dumps(meter.measured))
        torch.distributed.barrier()


if __name__ == "__main__":
    with leaving_in_order():
        main()
