"""The contrastive objectives: what counts as a negative."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clh.training.losses import info_nce, matryoshka, symmetric_info_nce

NONE = torch.zeros(2, 3, dtype=torch.bool)
FIRST_OF_EACH = torch.tensor([[True, False, False], [False, True, False]])


def test_a_positive_is_held_against_the_negatives_of_its_row() -> None:
    similarity = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(0)))
    second = -math.log(math.exp(3) / (math.exp(0) + math.exp(3) + math.exp(1)))
    loss = info_nce(similarity, FIRST_OF_EACH, NONE)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_other_positives_and_the_ignored_are_not_negatives() -> None:
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


def test_the_bank_pushes_queries_away_but_for_what_is_ignored() -> None:
    query, code, far = torch.eye(3).split(1)
    near = normalize(query + 0.1 * far, dim=1)
    right, other = torch.tensor([[True]]), torch.tensor([[False]])
    loss = partial(symmetric_info_nce, query, code, right, other, 1.0)
    without = loss().item()
    assert loss(near, other).item() > without
    assert loss(near, right).item() == pytest.approx(without)


def test_each_prefix_has_a_loss_of_its_own() -> None:
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
