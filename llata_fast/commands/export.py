"""Write a run for other software: as a merged model, a PEFT adapter or an ONNX file.

merged   LoRA and tuned norms folded into the backbone, so that nothing else is needed: a folder for `predict`,
         `evaluate` and `LlataForPrediction.from_pretrained`, with the temporal branch's decoder for transformers'
         AutoModel in its sub-folder `backbone`.
adapter  LoRA, tuned norms and positions, which PEFT loads on the backbone's first blocks.
onnx     model.onnx: standardised lookbacks and their mask in, forecasts and calibrated quantiles out, for any number
         of windows; beside it, the columns with their means and scales.
"""

import argparse
from pathlib import Path

from ..errors import InputError
from ..run_folder import RunFolder
from .inputs import add_backbone_argument

FORMATS = ("merged", "adapter", "onnx")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    add_backbone_argument(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--output", required=True, help="folder to write, new or empty")


def main(options: argparse.Namespace):
    folder, output = RunFolder(options.run), Path(options.output)
    folder.check_finished()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"cannot write {output}: it already exists and is not empty")
    from ..modeling import LlataForPrediction

    try:
        model = LlataForPrediction.from_pretrained(
            options.run, **({"backbone": options.backbone} if options.backbone else {})
        )
    # transformers and safetensors raise these for damaged files
    except (OSError, ValueError) as error:
        raise InputError(f"{options.run} is damaged: {error}") from error
    try:
        _write(model, options.format, folder, output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from None
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{options.run} as {options.format}: {output}, {size:,} bytes")


def _write(model, kind: str, folder: RunFolder, output: Path):
    if kind == "adapter":
        from ..adapters.peft_adapter import export_adapter

        export_adapter(model, output)
    elif kind == "onnx":
        from ..forecasting.calibration import Calibration
        from ..forecasting.forecaster import Forecaster

        preprocessor = folder.read_preprocessor()
        calibration = Calibration.load(folder.calibration) if folder.calibration.is_file() else None
        output.mkdir(parents=True, exist_ok=True)
        Forecaster(model, preprocessor, calibration).export_onnx(output / "model.onnx")
        RunFolder(output).write_preprocessor(preprocessor)
    else:
        from ..adapters.merged_folder import export_merged

        export_merged(model, output)
        folder.copy_description(RunFolder(output))
