"""Logistic regressions on named features, stored as JSON."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from clh.errors import ModelError
from clh.models.weights import weights_folder

_SMALLEST = 1e-4  # keeps the log-odds of 0 and 1 finite


@dataclass(frozen=True)
class Logistic:
    """A logistic regression, and the threshold that was fitted with it."""

    id: str
    intercept: float
    coefficients: Mapping[str, float]
    threshold: float = 0.5

    @classmethod
    def load(cls, name: str) -> Self:
        """The model.json in the folder `name`, or in `clh/weights/<name>`.

        Raises ModelError if it is missing or damaged.
        """
        folder = weights_folder(name)
        try:
            data = (folder / "model.json").read_bytes()
            checksum = hashlib.sha256(data).hexdigest()[:8]
            return cls(f"{folder.name}@{checksum}", **json.loads(data))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"the weights {name!r} cannot be read: set them anew") from error

    def probability(self, features: Mapping[str, float]) -> float:
        """The logistic function of the weighted sum of the features."""
        total = sum(self.coefficients[name] * value for name, value in features.items())
        return 0.5 + 0.5 * math.tanh((self.intercept + total) / 2)  # an exponential may overflow


def logit(probability: float) -> float:
    """The log-odds of a probability; those of 0 and 1 are large, not infinite."""
    return math.log((probability + _SMALLEST) / (1 - probability + _SMALLEST))
