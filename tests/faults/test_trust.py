"""No input is executed: a payload in every kind of file leaves no trace, and no question is asked."""

import builtins
import json
import pickle
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from tiny import BACKBONES

from llata_fast.backbone.loading import build_backbone, load_backbone_weights, read_backbone_config
from llata_fast.config import LlataConfig
from llata_fast.data import read_wide_csv
from llata_fast.durable import write_manifest
from llata_fast.errors import InputError
from llata_fast.reference_checkpoint import load_reference_checkpoint
from llata_fast.run_folder import RunFolder
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.deepspeed_state import restricted_unpickling


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A file that must not exist at the end of the test; reading from standard input is an error."""

    def asked(*_):
        raise AssertionError("asked on standard input")

    monkeypatch.setattr(builtins, "input", asked)
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the payload was executed"


@pytest.fixture
def yaml_payload(trace):
    return f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ['{trace}']]\n"


def folder_backbone(folder, **fields):
    """A backbone folder without weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | BACKBONES["llama"] | fields))
    return folder


def read_weights(folder):
    return load_backbone_weights(str(folder), read_backbone_config(str(folder)))


def test_the_payload_is_one(trace):
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()
    trace.unlink()


def test_a_file_of_settings(yaml_payload, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml_payload)
    with pytest.raises((SystemExit, InputError)):
        parse_arguments(["--config", str(path)])


def test_a_runs_settings(yaml_payload, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml_payload)
    with pytest.raises(InputError, match="run.yaml"):
        RunFolder(tmp_path).read_settings()


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_beside_a_backbones_config(model_type, trace, tmp_path):
    """transformers would ask whether to run it; a known model type does not need it."""
    auto_map = {name: f"code.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    folder = folder_backbone(tmp_path / "backbone", model_type=model_type, auto_map=auto_map)
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(trace)!r}).touch()\n")
    for source in (str(folder), f"random:{folder}"):
        if model_type == "llama":
            build_backbone(read_backbone_config(source))
        else:
            with pytest.raises(InputError, match=r"config\.json"):
                read_backbone_config(source)


def test_code_beside_a_runs_config(trace, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = LlataConfig().to_dict() | {"auto_map": {"AutoConfig": "code.LlataConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(trace)!r}).touch()\n")
    LlataConfig.from_pretrained(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_backbones_pickle(zipped, trace, tmp_path):
    folder = folder_backbone(tmp_path / "backbone")
    path = folder / "pytorch_model.bin"
    torch.save({"embed_tokens.weight": Payload(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        read_weights(folder)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("shard", ["shard.bin", "shard.safetensors", "../shard.bin"])
def test_a_shard_that_an_index_names(index, shard, trace, tmp_path):
    folder = folder_backbone(tmp_path / "backbone")
    torch.save(Payload(trace), folder / shard)
    names = build_backbone(read_backbone_config(str(folder))).state_dict()
    weight_map = dict.fromkeys([*names, "embed_tokens.weight"], shard)
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="backbone"):
        read_weights(folder)


def test_a_pickle_that_calls_itself_safetensors(trace, tmp_path):
    folder = folder_backbone(tmp_path / "backbone")
    torch.save(Payload(trace), folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_weights(folder)


def test_a_pickle_that_calls_itself_gguf(trace, tmp_path):
    path = tmp_path / "model.gguf"
    torch.save(Payload(trace), path)
    with pytest.raises(InputError, match="GGUF"):
        read_backbone_config(str(path))


def test_what_a_gguf_file_says_of_itself(trace, tmp_path):
    """Its texts stay texts: the chat template is never rendered."""
    import gguf

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_chat_template(f"{{{{ cycler.__init__.__globals__.os.system('touch {trace}') }}}}")
    writer.add_block_count(1)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    with pytest.raises(InputError, match="backbone"):
        load_backbone_weights(str(path), read_backbone_config(str(path), 1))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_checkpoint(zipped, trace, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"out_layer.weight": Payload(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"checkpoint\.pth"):
        load_reference_checkpoint(path, torch.zeros(3, 4))


def test_a_table_that_is_a_pickle(trace, tmp_path):
    path = tmp_path / "series.csv"
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(InputError):
        read_wide_csv(path)


def test_an_arrow_type_that_is_a_pickle(trace, tmp_path):
    """Older versions of pyarrow unpickled such a type on reading."""
    from llata_fast.data import read_series

    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata |= {b"ARROW:extension:metadata": pickle.dumps(Payload(trace))}
    dates = pyarrow.array([f"2024-01-{day:02}" for day in range(1, 29)])
    fields = [pyarrow.field("date", pyarrow.string()), pyarrow.field("load", pyarrow.float64(), metadata=metadata)]
    table = pyarrow.table([dates, pyarrow.array(range(28), pyarrow.float64())], schema=pyarrow.schema(fields))
    path = tmp_path / "series.parquet"
    pyarrow.parquet.write_table(table, path)
    try:
        assert len(read_series(str(path))) == 28
    except InputError:
        # a pyarrow version that cannot read such a file cannot fail here
        assert path.suffix == ".parquet"


def test_deepspeeds_files_hold_its_own_classes_and_no_others(trace, tmp_path, monkeypatch):
    """Uses the same call as DeepSpeed, which asks for unrestricted loading."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    own = {"scaler": LossScaler(2.0), "stage": ZeroStageEnum.weights, "part": fragment_address(3, 4)}
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    engine = TorchCheckpointEngine()
    torch.save(own | {"weights": torch.ones(3)}, path)
    with restricted_unpickling():
        loaded = engine.load(path)
    assert loaded["scaler"].cur_scale == 2.0 and loaded["stage"] is own["stage"] and loaded["part"] == own["part"]
    torch.save(own | {"payload": Payload(trace)}, path)
    with pytest.raises(InputError, match="trust_checkpoint"), restricted_unpickling():
        engine.load(path)
    # outside the restriction, or with trust, DeepSpeed loads anything
    assert not trace.exists()
    with restricted_unpickling(trust=True):
        engine.load(path)
    assert trace.exists()
    trace.unlink()


def test_mapped_tensors_are_read_as_they_are(trace, tmp_path):
    """The metadata of a safetensors file is only text."""
    folder = folder_backbone(tmp_path / "backbone")
    model = build_backbone(read_backbone_config(str(folder)))
    words = torch.zeros(BACKBONES["llama"]["vocab_size"], BACKBONES["llama"]["hidden_size"])
    state = {name: value.contiguous() for name, value in model.state_dict().items()} | {"embed_tokens.weight": words}
    save_file(state, folder / "model.safetensors", metadata={"format": str(pickle.dumps(Payload(trace)))})
    assert read_weights(folder).blocks.keys() == model.state_dict().keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, and the flags that resume it."""
    from faults.inputs import make_run

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        run, settings = make_run(folder)
    return run, [f"--{name}={value}" for name, value in (settings | {"max_steps": 3}).items()]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_whose_manifest_vouches_for_a_payload(name, trained, trace, tmp_path, plain_ops, capfd):
    """Whoever plants a payload can also write a manifest."""
    from training.distributed_cases import train

    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    path = run / "checkpoint-2" / name
    torch.save(Payload(trace), path)
    write_manifest(run / "checkpoint-2")
    flags = [*trained[1], f"--output_dir={run}", f"--resume_from_checkpoint={run / 'checkpoint-2'}"]
    if name == "training_args.bin":
        # nothing reads this file
        train(flags)
        return
    with pytest.raises(SystemExit) as ended:
        train(flags)
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "error: " in said and "could run any code" in said


def test_a_calibration_that_is_a_pickle(trace, tmp_path):
    import numpy as np

    from llata_fast.forecasting.calibration import Calibration

    path = tmp_path / "calibration.npz"
    np.savez(path, offsets=np.array([Payload(trace)], dtype=object), levels=np.array([Payload(trace)], dtype=object))
    for _ in range(2):
        with pytest.raises(InputError, match=r"calibration\.npz"):
            Calibration.load(path)
        path.write_bytes(pickle.dumps(Payload(trace)))


def test_a_runs_other_files(trace, yaml_payload, tmp_path):
    """Preprocessor, scores and mixture are JSON and YAML: a pickle counts as damage, and YAML tags are refused."""
    from llata_fast.data.mixture import read_mixture

    (tmp_path / "mixture.yaml").write_text(f"- path: corpus\n  {yaml_payload}")
    with pytest.raises(InputError, match=r"mixture\.yaml"):
        read_mixture(tmp_path / "mixture.yaml")
    for name, read in (
        ("preprocessor_config.json", RunFolder(tmp_path).read_preprocessor),
        ("metrics.json", RunFolder(tmp_path).read_metrics),
        ("mixture.json", lambda: RunFolder(tmp_path).check_mixture([])),
    ):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(trace)))
        with pytest.raises(InputError, match=name):
            read()


def test_a_start_that_is_a_pickle(trained, trace, tmp_path):
    """A start is read from safetensors; other files are ignored."""
    from llata_fast.config import LlataConfig
    from llata_fast.modeling import LlataForPrediction
    from llata_fast.training.initial import load_initial

    model = LlataForPrediction.from_backbone(LlataConfig.from_pretrained(trained[0]))
    shutil.copy(trained[0] / "config.json", tmp_path)
    torch.save(Payload(trace), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="no config.json and model.safetensors"):
        load_initial(model, str(tmp_path))
    torch.save(Payload(trace), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_initial(model, str(tmp_path))


@pytest.mark.parametrize("ending", [".arrow", ".parquet"])
def test_a_corpus_whose_type_is_a_pickle(ending, trace, tmp_path):
    from llata_fast.data.corpus_sources import SourceOptions, read_source

    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata |= {b"ARROW:extension:metadata": pickle.dumps(Payload(trace))}
    target = pyarrow.field("target", pyarrow.list_(pyarrow.float64()), metadata=metadata)
    fields = [pyarrow.field("start", pyarrow.timestamp("s")), pyarrow.field("freq", pyarrow.string()), target]
    columns = [pyarrow.array([0], fields[0].type), pyarrow.array(["D"]), pyarrow.array([[1.0, 2.0]], target.type)]
    table = pyarrow.table(columns, schema=pyarrow.schema(fields))
    path = tmp_path / f"corpus{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    try:
        assert list(read_source(path, SourceOptions())[0])[0].target.tolist() == [[1.0, 2.0]]
    except InputError:
        # a pyarrow version that cannot read such a file cannot fail here
        assert path.exists()
