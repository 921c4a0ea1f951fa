"""A run as a stand-alone model, with the trained changes folded into the backbone."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..backbone.loading import load_backbone_weights
from ..modeling import LlataForPrediction


def export_merged(model: LlataForPrediction, folder: str | Path) -> Path:
    """Merge `model` in place, write it to `folder` and return the folder.

    The sub-folder `backbone` holds the temporal branch's decoder, with its source's word embedding, for transformers'
    `AutoModel`; an ablation without a decoder has none.

    Raises:
        InputError: the base is quantised, so nothing can be folded into it.
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
    """Add the word embedding, which a forecaster lacks; a bundle has none, so transformers warns and draws one."""
    words = load_backbone_weights(config.backbone, config.backbone_config, seed=config.backbone_seed).word_embeddings
    if words is not None:
        decoder.set_input_embeddings(nn.Embedding.from_pretrained(words.float()))
