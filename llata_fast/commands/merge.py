"""Write a run as a model of its own: LoRA and tuned norms folded into the backbone, nothing else needed to forecast.

The folder is one for `predict`, `evaluate` and `LlataForPrediction.from_pretrained`; in its sub-folder `backbone` lies
the temporal branch's decoder with the word embedding of its source, for transformers' `AutoModel`.
"""

import argparse
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..backbone.loading import load_backbone_weights
from ..errors import InputError
from ..modeling import LlataForPrediction
from ..run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--output", required=True, help="folder to write, new or empty")


def run(options: argparse.Namespace):
    RunFolder(options.run).check_finished()
    output = Path(options.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"cannot write {output}: it is there already")
    try:
        model = LlataForPrediction.from_pretrained(options.run).merge()
    # what transformers and safetensors make of damaged files
    except (OSError, ValueError) as error:
        raise InputError(f"{options.run} is damaged: {error}") from error
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        RunFolder(options.run).copy_description(RunFolder(output))
        decoder = getattr(model.backbone, "model", None)
        if isinstance(decoder, PreTrainedModel):
            _give_word_embedding(decoder, model.config)
            decoder.save_pretrained(output / "backbone")
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from None
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{options.run} as a model of its own: {output}, {size:,} bytes")


def _give_word_embedding(decoder: PreTrainedModel, config):
    """The forecaster does without; a bundle has none, and then transformers draws one at random, with a warning."""
    words = load_backbone_weights(config.backbone, config.backbone_config, seed=config.backbone_seed).word_embeddings
    if words is not None:
        decoder.set_input_embeddings(nn.Embedding.from_pretrained(words.float()))
