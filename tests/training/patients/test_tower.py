"""The patient tower: what is missing stays missing, and the text is untouched without values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from torch.nn.functional import normalize

from clh.errors import InputError, ModelError
from clh.training.patients.tower import EhrTower, PatientTower, Scaler

NAN = float("nan")
FEATURES = ("age", "lab_glucose", "sex")
TRAIN = np.array([[40, 5.0, 0], [50, 6.0, 1], [60, NAN, 1], [70, 9.0, NAN]])
DIMENSIONS = 768

FLOATS = st.floats(-1e300, 1e300) | st.just(NAN)


def trained(seed: int = 0) -> PatientTower:
    """A tower whose gate has left the place where it starts."""
    torch.manual_seed(seed)
    tower = PatientTower(EhrTower(Scaler.fit(FEATURES, TRAIN), 16, DIMENSIONS))
    torch.nn.init.normal_(tower.gate.weight)
    return tower.requires_grad_(False)


def texts(rows: int) -> Tensor:
    return normalize(torch.randn(rows, DIMENSIONS, generator=torch.manual_seed(1)), dim=1)


TOWER = trained()


@given(st.data())
def test_each_row_goes_its_own_way_in_a_mixed_batch(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 6))
    values = torch.tensor(data.draw(arrays.arrays(np.float64, (rows, 3), elements=FLOATS)))
    noted = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    text = texts(rows) * noted[:, None]
    vectors = TOWER(text, values)
    unmeasured = values.isnan().all(dim=1)
    assert torch.equal(vectors[unmeasured], text[unmeasured])
    torch.testing.assert_close(
        vectors[~noted & ~unmeasured], TOWER.ehr(values)[~noted & ~unmeasured]
    )
    both = noted & ~unmeasured
    torch.testing.assert_close(vectors[both].norm(dim=1), torch.ones(int(both.sum())))
    for row in range(rows):
        alone = TOWER(text[row : row + 1], values[row : row + 1])
        torch.testing.assert_close(alone[0], vectors[row], atol=1e-5, rtol=1e-5)


def test_a_note_and_values_are_fused_by_the_gate() -> None:
    text, values = texts(1), torch.tensor([[60.0, 7.0, 1.0]], dtype=torch.float64)
    joined = torch.cat([text, TOWER.ehr(values)], dim=1)
    fused = torch.tanh(joined @ TOWER.gate.weight.T)
    torch.testing.assert_close(TOWER(text, values), fused / fused.norm())


@pytest.mark.parametrize("dimensions", [64, 128, 256, 768])
def test_fusion_starts_at_the_text(dimensions: int) -> None:
    tower = PatientTower(EhrTower(Scaler.fit(FEATURES, TRAIN), 16, DIMENSIONS))
    text = texts(4)
    fused = tower(text, torch.tensor(TRAIN))
    at_prefix = (normalize(one[:, :dimensions], dim=1) for one in (fused, text))
    assert (next(at_prefix) * next(at_prefix)).sum(dim=1).min() > 0.9999
    fused.sum().backward()
    assert tower.gate.weight.grad is not None
    assert tower.gate.weight.grad[:, DIMENSIONS:].any(), "the gate can never let values in"


def test_missing_is_not_the_median() -> None:
    median = torch.tensor([Scaler.fit(FEATURES, TRAIN).median], dtype=torch.float64)
    unmeasured = median.clone()
    unmeasured[0, 1] = NAN
    assert (TOWER.ehr(median) - TOWER.ehr(unmeasured)).norm() > 0.01


def test_one_slip_of_the_keyboard_moves_nobody_else() -> None:
    labs = np.arange(4.0, 24.0)[:, None]
    slipped = np.vstack([labs, [[9_999_999.0]]])
    clean, with_slip = (Scaler.fit(["lab_glucose"], one) for one in (labs, slipped))
    assert with_slip.median[0] == pytest.approx(clean.median[0], abs=1)
    assert with_slip.spread[0] == pytest.approx(clean.spread[0], rel=0.1)


def test_a_feature_that_is_always_the_same_can_be_scaled() -> None:
    scaler = Scaler.fit(["sex"], np.ones((5, 1)))
    assert EhrTower(scaler, 4, 8)(torch.tensor([[1.0], [0.0]]).double()).isfinite().all()


def test_a_feature_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="lab_glucose is never measured in training"):
        Scaler.fit(FEATURES, np.array([[40, NAN, 1], [50, NAN, 0]]))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    TOWER.save(tmp_path)
    loaded = PatientTower.load(tmp_path)
    values = torch.tensor(TRAIN)
    assert loaded.ehr.scaler == TOWER.ehr.scaler
    assert torch.equal(loaded(texts(4), values), TOWER(texts(4), values))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no scaler", "scaler.json"),
        ("half a scaler", "not the one that the weights were trained with"),
        ("another scaler", "not the one that the weights were trained with"),
        ("no weights", "patient.safetensors"),
        ("half the weights", "cannot load"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, damage: str, reason: str) -> None:
    TOWER.save(tmp_path)
    scaler, weights = tmp_path / "scaler.json", tmp_path / "patient.safetensors"
    if damage == "no scaler":
        scaler.unlink()
    elif damage == "half a scaler":
        scaler.write_bytes(scaler.read_bytes()[:50])
    elif damage == "another scaler":  # of as many labs, in another order
        other = Scaler.fit(FEATURES[::-1], TRAIN[:, ::-1])
        scaler.write_text(other.model_dump_json())
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load a patient tower from") as caught:
        PatientTower.load(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
