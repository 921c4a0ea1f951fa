"""The tokenizer of a backbone, to name the words nearest to a prototype; forecasting needs none."""

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .loading import _locate

logger = logging.getLogger(__name__)


def read_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a backbone's weights here; None where there is none. Runs no code of its own."""
    place = _locate(source)
    if place.kind == "random":
        return None
    try:
        if place.kind == "gguf":
            path = Path(place.location)
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(place.location, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a folder without a tokenizer raises anything, by its family
        logger.info("no tokenizer beside %s (%s)", source, type(error).__name__)
        return None
