"""A backbone's tokenizer, to name the words nearest to a prototype; forecasting does not need it."""

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .loading import _locate

_log = logging.getLogger(__name__)


def read_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored beside a backbone's weights here, None if there is none; runs none of its code."""
    place = _locate(source)
    if place.kind == "random":
        return None
    try:
        if place.kind == "gguf":
            path = Path(place.location)
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(place.location, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # without a tokenizer, each family raises its own error
        _log.info("no tokenizer beside %s (%s)", source, type(error).__name__)
        return None
