"""The objectives of the towers: what counts as wrong, and gradients whatever the memory."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clh.training.losses import backpropagate, contrast, info_nce, matryoshka

NONE = torch.zeros(2, 3, dtype=torch.bool)
FIRST_OF_EACH = torch.tensor([[True, False, False], [False, True, False]])


def test_a_positive_is_held_against_the_negatives_of_its_row() -> None:
    similarity = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(0)))
    second = -math.log(math.exp(3) / (math.exp(0) + math.exp(3) + math.exp(1)))
    loss = info_nce(similarity, FIRST_OF_EACH, NONE)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_other_positives_and_the_ignored_are_no_negatives() -> None:
    similarity = torch.tensor([[2.0, 5.0, 9.0], [0.0, 3.0, 1.0]], requires_grad=True)
    positive = torch.tensor([[True, True, False], [False, True, False]])
    ignored = torch.tensor([[False, False, True], [False, False, False]])
    info_nce(similarity, positive, ignored).backward()
    assert similarity.grad is not None
    # The first row has no negative left: nothing to learn from.
    assert similarity.grad[0].tolist() == [0, 0, 0]
    assert similarity.grad[1, 1] < 0 < similarity.grad[1, 2]


def test_rows_without_a_positive_add_nothing() -> None:
    similarity = torch.randn(2, 3, requires_grad=True)
    loss = info_nce(similarity, NONE, NONE)
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad is not None
    assert similarity.grad.abs().max() == 0


@given(seed=st.integers(0, 1000), positives=st.lists(st.booleans(), min_size=12, max_size=12))
def test_the_order_of_a_batch_does_not_matter(seed: int, positives: list[bool]) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(3, 4, generator=generator)
    positive = torch.tensor(positives).reshape(3, 4)
    rows, columns = torch.randperm(3, generator=generator), torch.randperm(4, generator=generator)
    none = torch.zeros_like(positive)
    loss = info_nce(similarity, positive, none)
    turned = info_nce(similarity[rows][:, columns], positive[rows][:, columns], none)
    assert loss.item() == pytest.approx(turned.item(), rel=1e-5, abs=1e-6)
    assert loss.item() >= 0


def test_the_bank_pushes_queries_away_but_not_from_what_is_banned() -> None:
    query, code, far = torch.eye(3).split(1)
    near = normalize(query + 0.1 * far, dim=1)
    right, other = torch.tensor([[True]]), torch.tensor([[False]])
    given = partial(contrast, query, code, right, other, 1.0)
    without = given().item()
    assert given(near, other).item() > without
    assert given(near, right).item() == pytest.approx(without)


def test_each_prefix_is_judged_by_itself() -> None:
    vectors = torch.tensor([[3.0, 4.0, 0.0, 12.0]])
    seen = []

    def loss(parts: object) -> torch.Tensor:
        [part] = parts  # type: ignore[misc]
        seen.append(part)
        return part.norm() * len(seen)  # 1 for the first prefix, 2 for the second

    total = matryoshka(loss, [vectors], {2: 3.0, 4: 1.0})
    torch.testing.assert_close(seen[0], torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(seen[1], vectors / 13)
    assert total.item() == pytest.approx((3 * 1 + 1 * 2) / 4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_gradients_are_the_same(dropout: float) -> None:
    layers = (torch.nn.Linear(4, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 3))
    model = torch.nn.Sequential(*layers)
    chunks = torch.randn(3, 2, 4).unbind()

    def loss(parts: list[torch.Tensor]) -> torch.Tensor:
        vectors = normalize(torch.cat(parts), dim=1)
        right = torch.eye(6, dtype=torch.bool).roll(1, 0)
        return info_nce(vectors @ vectors.T, right, torch.eye(6, dtype=torch.bool))

    gradients, values = [], []
    for cached in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        values.append(backpropagate([partial(model, chunk) for chunk in chunks], loss, cached))
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    assert values[0] == pytest.approx(values[1])
    for plain, cached_one in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, cached_one)
    assert any(one.abs().max() > 0 for one in gradients[0])
