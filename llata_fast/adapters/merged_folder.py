"""A run as a model of its own: what training changed is folded into the backbone."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..backbone.loading import load_backbone_weights
from ..modeling import LlataForPrediction


def export_merged(model: LlataForPrediction, folder: str | Path) -> Path:
    """Merge `model` in place and write it into `folder`; returns that.

    In the sub-folder `backbone` lies the temporal branch's decoder with the word embedding of its source, for
    transformers' `AutoModel`; an ablation without a decoder has none.

    Raises:
        InputError: the base is quantised, and takes no update.
    """
    folder = Path(folder)
    model.merge()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    decoder = getattr(model.backbone, "model", None)
    if isinstance(decoder, PreTrainedModel):
        _give_word_embedding(decoder, model.config)
        decoder.save_pretrained(folder / "backbone")
    return folder


def _give_word_embedding(decoder: PreTrainedModel, config):
    """The forecaster does without; a bundle has none, and then transformers draws one at random, with a warning."""
    words = load_backbone_weights(config.backbone, config.backbone_config, seed=config.backbone_seed).word_embeddings
    if words is not None:
        decoder.set_input_embeddings(nn.Embedding.from_pretrained(words.float()))
