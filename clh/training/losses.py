"""Contrastive objectives, as functions of tensors."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def info_nce(similarity: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """Multi-positive InfoNCE (van den Oord et al. 2018): the mean over all positive pairs.

    Each positive is held against the negatives of its row; the row's other positives and what is
    ignored stay out of the denominator. `similarity` is a float tensor of shape (rows, columns),
    divided by the temperature; `positive` and `ignored` are boolean and of the same shape. Rows
    without a positive add nothing; a batch without any gives 0.
    """
    negatives = similarity.masked_fill(positive | ignored, -torch.inf)
    denominator = torch.logaddexp(similarity, negatives.logsumexp(dim=1, keepdim=True))
    return (denominator - similarity)[positive].sum() / positive.sum().clamp(min=1)


def symmetric_info_nce(
    queries: Tensor,
    texts: Tensor,
    positive: Tensor,
    ignored: Tensor,
    temperature: float,
    bank: Tensor | None = None,
    bank_ignored: Tensor | None = None,
) -> Tensor:
    """InfoNCE from queries to texts and from texts to queries, averaged.

    `queries` (n, d) and `texts` (m, d) are L2-normalised; `positive` and `ignored` are boolean
    (n, m). `bank` (b, d) are further negatives of the queries, but for those in `bank_ignored`
    (n, b).
    """
    similarity = queries @ texts.T / temperature
    from_texts = info_nce(similarity.T, positive.T, ignored.T)
    if bank is not None and bank_ignored is not None:
        similarity = torch.cat([similarity, queries @ bank.T / temperature], dim=1)
        positive = torch.cat([positive, torch.zeros_like(bank_ignored)], dim=1)
        ignored = torch.cat([ignored, bank_ignored], dim=1)
    return (info_nce(similarity, positive, ignored) + from_texts) / 2


def matryoshka(
    loss: Callable[[Sequence[Tensor]], Tensor],
    vectors: Sequence[Tensor],
    prefixes: Mapping[int, float],
) -> Tensor:
    """The weighted mean of `loss` over prefixes of the vectors (Kusupati et al. 2022).

    `vectors` are tensors of shape (rows, dimensions), not normalised; `prefixes` gives the weight
    of each number of leading dimensions. `loss` gets the prefixes, each L2-normalised.
    """
    total = sum(
        weight * loss([normalize(rows[:, :dimensions], dim=1) for rows in vectors])
        for dimensions, weight in prefixes.items()
    )
    return torch.as_tensor(total) / sum(prefixes.values())
