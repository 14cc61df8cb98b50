"""Logistic regressions: probabilities from features, and what model.json may say."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import ModelError
from clh.models.logistic import Logistic, logit


@given(st.floats(0, 1))
def test_the_logistic_undoes_the_log_odds(probability: float) -> None:
    back = Logistic("by hand", 0.0, {"x": 1.0}).probability({"x": logit(probability)})
    assert back == pytest.approx(probability, abs=1e-3)


@pytest.mark.parametrize(("value", "probability"), [(-1e6, 0), (0, 0.5), (1e6, 1)])
def test_extreme_features_do_not_overflow(value: float, probability: float) -> None:
    model = Logistic("by hand", 0.0, {"x": 1.0})
    assert model.probability({"x": value}) == pytest.approx(probability)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("assign-codiesp", 0.25), ("verify-retrieval", 0.30), ("verify-codiesp", 0.30)],
)
def test_a_threshold_lies_with_the_weights_it_was_fitted_for(name: str, threshold: float) -> None:
    assert Logistic.load(name).threshold == threshold


@pytest.mark.parametrize("content", ["", "[]", '{"intercept": 1}', '{"intercept": 1, "b": 2}'])
def test_weights_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read: set them anew"):
        Logistic.load(str(tmp_path))


def test_the_id_names_the_weights(tmp_path: Path) -> None:
    weights = {"intercept": 0.5, "coefficients": {"x": 1.0}}
    ids = []
    for threshold in (0.2, 0.3):
        (tmp_path / "model.json").write_text(json.dumps({**weights, "threshold": threshold}))
        ids.append(Logistic.load(str(tmp_path)).id)
    assert len({*ids}) == 2
