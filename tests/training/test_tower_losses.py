"""The towers' loss: the mathematics, whatever the memory, and the library's losses beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from torch.nn.functional import normalize

from clh.training.tower_losses import CachedMultiPositiveInfoNCELoss, MultiPositiveInfoNCELoss
from clh.training.towers import add_head, open_tower, set_dropout
from tests.fakes import tiny_encoder

PREFIXES = {16: 1.0, 32: 3.0, 48: 2.0}
QUERIES = ["knee pain", "pain in throat", "cough and chest pain", "acute heart failure", "cough"]
TEXTS = ["Pain in knee", "Pain in right knee", "Cough", "Heart failure", "Chest pain", "Cough"]
BANK = 7


@pytest.fixture
def tower(tmp_path: Path) -> SentenceTransformer:
    """A tiny encoder with a head, without dropout."""
    tower = add_head(open_tower(tiny_encoder(tmp_path)), 48)
    set_dropout(tower, 0)
    return tower.train()


def drawn_labels(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Which texts are right for which queries, which are related, and the same of the bank."""
    draw = torch.Generator().manual_seed(seed)
    columns = len(TEXTS) + BANK
    right = torch.rand(len(QUERIES), columns, generator=draw) < 0.3
    related = (torch.rand(len(QUERIES), columns, generator=draw) < 0.2) & ~right
    right[-1] = False  # a query that means nothing
    bank = normalize(torch.randn(BANK, 48, generator=draw), dim=1)
    return right, related, bank


def features(tower: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [tower.preprocess(texts) for texts in (QUERIES, TEXTS)]


def gradients(tower: SentenceTransformer, loss: torch.nn.Module, labels: Tensor) -> list[Tensor]:
    """The loss, and its gradients of all weights."""
    tower.zero_grad()
    value = loss(features(tower), labels)
    value.backward()
    found = [one.grad.clone() for one in tower.parameters() if one.grad is not None]
    return [value.detach(), *found]


# The objective as it was first written, with which the shipped towers were trained.


def reference_info_nce(similarity: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    negatives = similarity.masked_fill(positive | ignored, -torch.inf)
    against = torch.logaddexp(similarity, negatives.logsumexp(dim=1, keepdim=True))
    return (against - similarity)[positive].sum() / positive.sum().clamp(min=1)


def reference_contrast(
    queries: Tensor,
    codes: Tensor,
    positive: Tensor,
    ignored: Tensor,
    temperature: float,
    bank: Tensor,
    banned: Tensor,
) -> Tensor:
    similarity = queries @ codes.T / temperature
    backward = reference_info_nce(similarity.T, positive.T, ignored.T)
    similarity = torch.cat([similarity, queries @ bank.T / temperature], dim=1)
    positive = torch.cat([positive, torch.zeros_like(banned)], dim=1)
    ignored = torch.cat([ignored, banned], dim=1)
    return (reference_info_nce(similarity, positive, ignored) + backward) / 2


def reference_matryoshka(
    loss: Callable[[Sequence[Tensor]], Tensor], vectors: Sequence[Tensor]
) -> Tensor:
    total = sum(
        weight * loss([normalize(one[:, :dimensions], dim=1) for one in vectors])
        for dimensions, weight in PREFIXES.items()
    )
    return torch.as_tensor(total) / sum(PREFIXES.values())


class Reference(torch.nn.Module):
    def __init__(self, tower: SentenceTransformer, bank: Tensor) -> None:
        super().__init__()
        self.tower, self.bank = tower, bank

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        queries, texts = (self.tower(column)["sentence_embedding"] for column in columns)
        right, related = labels.unbind(-1)
        count = len(texts)

        def at_prefix(of: Sequence[Tensor]) -> Tensor:
            masks = right[:, :count], related[:, :count]
            banned = (right | related)[:, count:]
            return reference_contrast(of[0], of[1], *masks, 0.03, of[2], banned)

        return reference_matryoshka(at_prefix, [queries, texts, self.bank])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradients_are_those_of_the_reference(
    tower: SentenceTransformer, cached: bool, seed: int
) -> None:
    right, related, bank = drawn_labels(seed)
    labels = torch.stack([right, related], dim=-1)
    expected = gradients(tower, Reference(tower, bank), labels)

    loss: MultiPositiveInfoNCELoss | CachedMultiPositiveInfoNCELoss
    if cached:
        loss = CachedMultiPositiveInfoNCELoss(tower, 0.03, mini_batch_size=2)
        loss.loss.bank = bank
    else:
        loss = MultiPositiveInfoNCELoss(tower, 0.03)
        loss.bank = bank
    shares = [weight / sum(PREFIXES.values()) for weight in PREFIXES.values()]
    found = gradients(tower, MatryoshkaLoss(tower, loss, list(PREFIXES), shares), labels)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_falls_alike_in_both_passes_of_the_cached_loss(tower: SentenceTransformer) -> None:
    set_dropout(tower, 0.3)
    right, related, _ = drawn_labels()
    labels = torch.stack([right, related], dim=-1)[:, : len(TEXTS)]
    found = []
    # One mini-batch, so that both losses draw the same masks.
    for loss in (
        MultiPositiveInfoNCELoss(tower, 0.03),
        CachedMultiPositiveInfoNCELoss(tower, 0.03, mini_batch_size=100),
    ):
        torch.manual_seed(1)
        found.append(gradients(tower, loss, labels))
    for plain, cached in zip(*found, strict=True):
        torch.testing.assert_close(plain, cached, rtol=1e-4, atol=1e-5)


def test_with_one_positive_each_it_is_the_loss_of_the_library(tower: SentenceTransformer) -> None:
    theirs = MultipleNegativesRankingLoss(
        tower,
        scale=20.0,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    pairs = [tower.preprocess(texts) for texts in (QUERIES, TEXTS[: len(QUERIES)])]
    right = torch.eye(len(QUERIES), dtype=torch.bool)
    labels = torch.stack([right, torch.zeros_like(right)], dim=-1)
    ours = MultiPositiveInfoNCELoss(tower, temperature=1 / 20)
    torch.testing.assert_close(ours(pairs, labels), theirs(pairs, None))


def test_labels_as_wide_as_the_embeddings_are_left_whole(tower: SentenceTransformer) -> None:
    texts = [*TEXTS, *QUERIES] * 4 + TEXTS[:4]  # 48: MatryoshkaLoss cuts labels of that width
    columns = [tower.preprocess(some) for some in (QUERIES, texts)]
    right = torch.zeros(len(QUERIES), len(texts), dtype=torch.bool)
    right[:, 40] = True
    labels = torch.stack([right, torch.zeros_like(right)], dim=-1)
    loss = MatryoshkaLoss(tower, MultiPositiveInfoNCELoss(tower), [16, 48])
    assert loss(columns, labels).item() > 0
