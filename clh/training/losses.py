"""Objectives of the towers."""

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
    against = torch.logaddexp(similarity, negatives.logsumexp(dim=1, keepdim=True))
    return (against - similarity)[positive].sum() / positive.sum().clamp(min=1)


def contrast(
    queries: Tensor,
    codes: Tensor,
    positive: Tensor,
    ignored: Tensor,
    temperature: Tensor | float,
    bank: Tensor | None = None,
    banned: Tensor | None = None,
) -> Tensor:
    """InfoNCE from queries to codes and from codes to queries, averaged.

    `queries` (n, d) and `codes` (m, d) are L2-normalised and get gradients; `positive` and
    `ignored` are (n, m). `bank` (b, d) are further negatives of the queries, which get none;
    `banned` (n, b) marks those that are right for a query, or above or below what is right.
    """
    similarity = queries @ codes.T / temperature
    backward = info_nce(similarity.T, positive.T, ignored.T)
    if bank is not None and banned is not None:
        similarity = torch.cat([similarity, queries @ bank.T / temperature], dim=1)
        positive = torch.cat([positive, torch.zeros_like(banned)], dim=1)
        ignored = torch.cat([ignored, banned], dim=1)
    return (info_nce(similarity, positive, ignored) + backward) / 2


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
        weight * loss([normalize(one[:, :dimensions], dim=1) for one in vectors])
        for dimensions, weight in prefixes.items()
    )
    return torch.as_tensor(total) / sum(prefixes.values())


def backpropagate(
    encode: Sequence[Callable[[], Tensor]], loss: Callable[[list[Tensor]], Tensor], cached: bool
) -> float:
    """Add the gradients of `loss(vectors)` to all parameters; returns the loss.

    Each callable of `encode` gives some of the vectors. With `cached`, only one call's activations
    are in memory at a time, however large the batch, for a second forward pass (GradCache, Gao et
    al. 2021); the gradients are the same.
    """
    if not cached:
        total = loss([call() for call in encode])
        total.backward()  # type: ignore[no-untyped-call]
        return total.item()
    states, vectors = [], []
    for call in encode:
        states.append(torch.get_rng_state())  # dropout has to fall alike in both passes
        with torch.no_grad():
            vectors.append(call().requires_grad_())
    after = torch.get_rng_state()
    total = loss(vectors)
    total.backward()  # type: ignore[no-untyped-call]
    for call, state, vector in zip(encode, states, vectors, strict=True):
        torch.set_rng_state(state)
        call().backward(vector.grad)  # type: ignore[no-untyped-call]
    torch.set_rng_state(after)
    return total.item()
