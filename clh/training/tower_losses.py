"""The objective of the towers as loss modules for sentence-transformers' trainer."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn
from torch.nn.functional import normalize

from clh.training.losses import symmetric_info_nce

RIGHT, RELATED = 0, 1  # the last dimension of labels


class MultiPositiveInfoNCELoss(nn.Module):
    """InfoNCE with any number of positives for a query, and pairs that are left out.

    A query may mean several codes, each of which any number of the batch's texts may stand for:
    all of these are positives. What lies above or below a right code in the hierarchy neither
    agrees with it nor contradicts it: such pairs are left out. The rest of the batch are negatives,
    and so is a `bank` of vectors that get no gradients, such as those of all codes.

    Args:
        model: SentenceTransformer model.
        temperature: What cosine similarities are divided by; the inverse of `scale` in
            sentence-transformers' losses.

    Attributes:
        bank: Further negatives of the queries, of shape (bank, dimensions), or None. Set it anew
            whenever the model has changed enough.

    References:
        - Representation Learning with Contrastive Predictive Coding: https://arxiv.org/abs/1807.03748
        - Supervised Contrastive Learning: https://arxiv.org/abs/2004.11362

    Inputs:
        +-------------------------+------------------------------------------------------+
        | Texts                   | Labels                                               |
        +=========================+======================================================+
        | (queries, texts) of any | bool (queries, texts + bank, 2): whether the text is |
        | numbers                 | right for the query, and whether it is related to it |
        +-------------------------+------------------------------------------------------+

    Relations:
        - With one positive for each query, nothing related and no bank it equals
          `MultipleNegativesRankingLoss` with `directions=("query_to_doc", "doc_to_query")` and
          `partition_mode="per_direction"`.
        - :class:`CachedMultiPositiveInfoNCELoss` gives the same gradients in bounded memory.

    Example:
        ::

            model = SentenceTransformer("all-MiniLM-L6-v2")
            loss = MultiPositiveInfoNCELoss(model, temperature=0.03)
            loss = MatryoshkaLoss(model, loss, [64, 128, 256, 384])
            queries = model.preprocess(["sugar disease", "high blood pressure"])
            texts = model.preprocess(["Type 2 diabetes mellitus", "Diabetes NOS", "Hypertension"])
            right = torch.tensor([[True, True, False], [False, False, True]])
            loss([queries, texts], torch.stack([right, torch.zeros_like(right)], dim=-1))

    """

    bank: Tensor | None

    def __init__(self, model: SentenceTransformer, temperature: float = 0.05) -> None:
        """Wrap the model that is trained."""
        super().__init__()
        self.model, self.temperature = model, temperature
        self.bank = None

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Embed both columns, and compare them."""
        queries, texts = (
            self.model(features)["sentence_embedding"] for features in sentence_features
        )
        return self.compare(queries, texts, labels)

    def compare(self, queries: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings, L2-normalised: (queries, dimensions) and (texts, dimensions)."""
        bank, bank_ignored = None, None
        if self.bank is not None:
            bank = normalize(self.bank[:, : queries.shape[1]], dim=1)  # MatryoshkaLoss cuts ours
            bank_ignored = labels[:, len(texts) :].any(dim=-1)
        return symmetric_info_nce(
            queries.float(),
            texts.float(),
            labels[:, : len(texts), RIGHT],
            labels[:, : len(texts), RELATED],
            self.temperature,
            bank,
            bank_ignored,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card reports of the loss."""
        return {"temperature": self.temperature}


class CachedMultiPositiveInfoNCELoss(CachedLossMixin, nn.Module):
    """:class:`MultiPositiveInfoNCELoss` for batches that do not fit into memory.

    Only `mini_batch_size` texts have activations in memory at a time, however large the batch, for
    a second forward pass; the gradients are the same.

    Args:
        model: SentenceTransformer model.
        temperature: As in :class:`MultiPositiveInfoNCELoss`.
        mini_batch_size: Texts that are embedded at once.

    References:
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup:
          https://arxiv.org/abs/2101.06983

    Inputs:
        As :class:`MultiPositiveInfoNCELoss`.

    Example:
        ::

            model = SentenceTransformer("all-MiniLM-L6-v2")
            loss = CachedMultiPositiveInfoNCELoss(model, temperature=0.03, mini_batch_size=64)
            loss = MatryoshkaLoss(model, loss, [64, 128, 256, 384])

    """

    def __init__(
        self, model: SentenceTransformer, temperature: float = 0.05, mini_batch_size: int = 32
    ) -> None:
        """Wrap the model that is trained."""
        super().__init__()
        self.model = model
        self.loss = MultiPositiveInfoNCELoss(model, temperature)
        self.mini_batch_size = mini_batch_size

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The loss of the embeddings of all mini-batches, back-propagated if so asked."""
        if labels is None:
            raise ValueError("CachedMultiPositiveInfoNCELoss needs labels")
        queries, texts = (torch.cat(column) for column in reps)
        loss = self.loss.compare(queries, texts, labels)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        return loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """As `MultiPositiveInfoNCELoss.forward`."""
        loss: Tensor = self.forward_cached(sentence_features, labels)
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card reports of the loss."""
        return {**self.loss.get_config_dict(), "mini_batch_size": self.mini_batch_size}
