"""Logistic regressions on named features, small enough to be read as JSON."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from clh.errors import ModelError
from clh.models.weights import learned

_LEAST = 1e-4  # of a probability


@dataclass(frozen=True)
class Logistic:
    """A logistic regression, such as that on the features of `agents.verify.features`."""

    id: str
    intercept: float
    coefficients: dict[str, float]
    threshold: float | None = None  # the probability from which on to accept, if one was fitted

    @classmethod
    def load(cls, name: str) -> Self:
        """Read model.json in the folder `name`, or in `clh/weights/<name>`.

        Raises ModelError if it cannot be read.
        """
        folder = learned(name)
        try:
            weights = (folder / "model.json").read_bytes()
            checksum = hashlib.sha256(weights).hexdigest()[:8]
            return cls(f"{folder.name}@{checksum}", **json.loads(weights))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"the weights {name!r} cannot be read: set them anew") from error

    def probability(self, features: Mapping[str, float]) -> float:
        """The logistic of the intercept and the sum of coefficient times feature."""
        total = sum(self.coefficients[name] * value for name, value in features.items())
        return 0.5 + 0.5 * math.tanh(
            (self.intercept + total) / 2
        )  # as exp does, but never overflows


def logit(probability: float) -> float:
    """The log-odds; those of 0 and 1 are large, not infinite."""
    return math.log((probability + _LEAST) / (1 - probability + _LEAST))
