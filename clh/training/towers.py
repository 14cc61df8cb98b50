"""Towers as sentence-transformers models: how they are built, and how they are saved."""

import copy
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from clh.errors import ModelError
from clh.models import weights


def open_tower(folder: Path, attention: str | None = None) -> SentenceTransformer:
    """The tower in `folder`, offline and in float32; a plain encoder is mean-pooled.

    `attention` is the backend that computes it, such as "sdpa"; that of transformers if None.
    Raises ModelError if there is no encoder.
    """
    from safetensors import SafetensorError

    weights.silence_bars()
    try:
        return SentenceTransformer(
            str(folder),
            local_files_only=True,
            model_kwargs={"dtype": torch.float32, "attn_implementation": attention},
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot load an encoder from {folder}: {reason}") from error


def add_head(tower: SentenceTransformer, dimensions: int) -> SentenceTransformer:
    """The tower with a linear layer that widens its embeddings, unless it has one.

    The layer's rows are orthogonal: at first it keeps all angles between embeddings.
    """
    if any(isinstance(module, Dense) for module in tower):
        return tower
    width = tower.get_embedding_dimension()
    if width is None:
        raise ModelError("the encoder does not say how wide its embeddings are: choose another")
    head = Dense(width, dimensions, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.orthogonal_(head.linear.weight)
    modules = [module for module in tower if not isinstance(module, Normalize)]
    return SentenceTransformer(modules=[*modules, head, Normalize()], device=str(tower.device))


def set_dropout(model: torch.nn.Module, rate: float) -> None:
    """Change the share of activations that training leaves out."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


def save_half(model: SentenceTransformer | CrossEncoder, folder: Path) -> None:
    """Write a model as it ships: the library's own folder, float16, safetensors."""
    half = copy.deepcopy(model).to("cpu").half()
    half.save_pretrained(str(folder), create_model_card=False)
