"""The patient tower: labs, age and sex beside the note, fused as in the Two-Tower design."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from clh.cache import sha256
from clh.errors import InputError, ModelError
from clh.schema import Shape

_SCALER, _WEIGHTS = "scaler.json", "patient.safetensors"
_MARK = "scaler"  # in the weights' metadata: the checksum of the scaler they were trained with


class Scaler(Shape):
    """The median of each feature, and its spread: the interquartile range.

    Labs are skewed and hold slips of the keyboard, which move a mean and a standard deviation, but
    hardly a quartile.
    """

    features: tuple[str, ...]
    median: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def fit(cls, features: Sequence[str], values: NDArray[np.float64]) -> Self:
        """Fit to training data alone: values of shape (rows, features), NaN where not measured.

        Raises InputError for a feature without any value. One that hardly varies keeps its unit.
        """
        for name, column in zip(features, values.T, strict=True):
            if np.isnan(column).all():
                raise InputError(f"{name} is never measured in training: leave the column out")
        low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
        spread = np.where(high > low, high - low, 1.0)
        return cls(features=tuple(features), median=median.tolist(), spread=spread.tolist())


class EhrTower(torch.nn.Module):
    """Structured data as one vector, by a network of two layers.

    A feature enters as two numbers: its scaled value, and whether it was measured. Where it was
    not, both are 0, so that no value stands in for it.
    """

    median: Tensor
    spread: Tensor

    def __init__(self, scaler: Scaler, hidden: int, dimensions: int) -> None:
        """Draw new weights for a layer of `hidden` units and one of `dimensions`."""
        super().__init__()
        self.scaler, self.dimensions = scaler, dimensions
        for name, numbers in (("median", scaler.median), ("spread", scaler.spread)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64), persistent=False)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2 * len(scaler.features), hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, dimensions),
        )

    def forward(self, values: Tensor) -> Tensor:
        """One vector per row, L2-normalised: (rows, dimensions).

        `values` (rows, features) are as measured, float64, NaN where they were not.
        """
        measured = ~values.isnan()
        # asinh is linear near the median and logarithmic far from it: no outlier drowns the rest.
        scaled = ((values - self.median) / self.spread).asinh().where(measured, 0)
        vectors: Tensor = self.layers(torch.cat([scaled, measured], dim=1).float())
        return normalize(vectors, dim=1)


class PatientTower(torch.nn.Module):
    """The note's vector and the structured data's as one: z = tanh(W [z_text; z_ehr])."""

    def __init__(self, ehr: EhrTower) -> None:
        """Start at the text: W passes it on and leaves the structured data out, until it learns."""
        super().__init__()
        self.ehr = ehr
        self.gate = torch.nn.Linear(2 * ehr.dimensions, ehr.dimensions, bias=False)
        torch.nn.init.eye_(self.gate.weight)

    def forward(self, text: Tensor, values: Tensor) -> Tensor:
        """One vector per patient, L2-normalised: (rows, dimensions).

        `text` (rows, dimensions) is L2-normalised, or 0 where there is no note; `values` are as
        `EhrTower.forward` takes them. A row without values keeps the text's vector to the bit, one
        without a note has that of its values. Prefixes serve alone once they are normalised again.
        """
        noted, measured = text.any(dim=1), ~values.isnan().all(dim=1)
        ehr = self.ehr(values)
        vectors = torch.where(measured[:, None], ehr, text)
        both = noted & measured
        fused = self.gate(torch.cat([text[both], ehr[both]], dim=1)).tanh()
        vectors[both] = normalize(fused, dim=1)
        return vectors

    def save(self, folder: Path) -> None:
        """Write what `load` reads into `folder`."""
        from safetensors.torch import save_file

        scaler = self.ehr.scaler.model_dump_json(indent=2)
        (folder / _SCALER).write_text(scaler + "\n", encoding="utf-8")
        save_file(self.state_dict(), folder / _WEIGHTS, {_MARK: sha256(folder / _SCALER)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The tower in `folder`; ModelError if a file is missing, damaged or of another tower."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / _WEIGHTS, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                mark = (file.metadata() or {}).get(_MARK)
            if mark != sha256(folder / _SCALER):
                raise ValueError(f"{_SCALER} is not the one that the weights were trained with")
            scaler = Scaler.model_validate_json((folder / _SCALER).read_text(encoding="utf-8"))
            dimensions, hidden = weights["ehr.layers.2.weight"].shape
            tower = cls(EhrTower(scaler, hidden, dimensions))
            tower.load_state_dict(weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(
                f"cannot load a patient tower from {folder}: {reason}; train it again"
            ) from error
        return tower
