"""Training of the towers with sentence-transformers' trainer.

A single encoder serves queries and codes. The title of every code of the release is a negative of
every query: a bank of their embeddings is made anew before each epoch, and held against the queries
beside the batch's own texts. An epoch starts from the checkpoint of the one before, so that a
killed run goes on as if it had never stopped.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from clh.evaluation import metrics, recipes
from clh.evaluation.metrics import Scored
from clh.evaluation.stages import CUTOFFS
from clh.models import weights
from clh.training.pairs import Pair
from clh.training.tower_data import (
    BatchSizes,
    CodeCollator,
    CodeRelations,
    EpochBatchSampler,
    TowerData,
)
from clh.training.tower_losses import (
    CachedMultiPositiveInfoNCELoss,
    MultiPositiveInfoNCELoss,
)
from clh.training.towers import add_head, open_tower, set_dropout
from clh.training.trainer import common_arguments

BEST = "recall@50"  # of the held-out documents, by which the best epoch is kept


class TowerRecipe(recipes.Recipe):
    """What recipes/train_retriever.yaml says."""

    base: str
    dimensions: PositiveInt
    prefixes: dict[PositiveInt, PositiveFloat]
    temperature: PositiveFloat
    max_tokens: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    held_out: float = Field(gt=0, lt=1)
    epochs: PositiveInt
    steps: PositiveInt
    marked: NonNegativeInt
    unmarked: NonNegativeInt
    terms: NonNegativeInt
    title_share: float = Field(ge=0, le=1)
    abbreviation_share: float = Field(ge=0, le=1)
    learning_rate: PositiveFloat
    head_learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup: NonNegativeInt
    clip: PositiveFloat
    cache_gradients: bool
    mini_batch: PositiveInt
    seed: NonNegativeInt

    @property
    def sizes(self) -> BatchSizes:
        """The queries of a batch."""
        return BatchSizes(self.marked, self.unmarked, self.terms)


def build_tower(base: Path, recipe: TowerRecipe) -> SentenceTransformer:
    """The encoder in `base` as a tower that is ready to train."""
    torch.manual_seed(recipe.seed)
    tower = add_head(open_tower(base, recipe.attention), recipe.dimensions)
    tower.max_seq_length = recipe.max_tokens
    set_dropout(tower, recipe.dropout)
    return tower


class TitleBank(TrainerCallback):
    """The titles of all codes, embedded by the tower as it is when an epoch begins."""

    def __init__(
        self,
        tower: SentenceTransformer,
        loss: MultiPositiveInfoNCELoss,
        titles: Mapping[str, str],
        batch: int,
    ) -> None:
        """Give the loss its bank of titles, by their codes; `batch` are embedded at once."""
        self._codes, self._titles = list(titles), list(titles.values())
        self._tower, self._loss, self._batch = tower, loss, batch
        self._step: int | None = None

    def embed(self, step: int) -> Tensor:
        """The embeddings after so many steps: (codes, dimensions), in the order of the codes."""
        if step != self._step or self._loss.bank is None:
            self._loss.bank = embed(self._tower, self._titles, self._batch)
            self._step = step
        return self._loss.bank

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Embed the titles, unless the held-out documents were just scored with them."""
        self.embed(state.global_step)

    def recall(self, documents: Sequence[Sequence[Pair]], step: int) -> dict[str, float]:
        """Recall of the codes of documents, each ranked by the sentence closest to its title.

        A document is a list of sentences; those without codes are left out of the mean.
        """
        titles = self.embed(step)
        sentences = [pair.texts[0] for document in documents for pair in document]
        queries = embed(self._tower, sentences, self._batch)
        parts = queries.split_with_sizes([len(document) for document in documents])
        most = min(max(CUTOFFS), len(titles))
        notes = []
        for number, (document, part) in enumerate(zip(documents, parts, strict=True)):
            gold = frozenset().union(*(pair.codes for pair in document))
            best = (part @ titles.T).max(dim=0).values.topk(most)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ranked = {self._codes[row]: score for row, score in rows}
            notes.append(Scored(str(number), gold, ranked))
        scores = metrics.rank_scores([note for note in notes if note.gold], CUTOFFS)
        return {f"recall@{k}": scores[f"recall@{k}"] for k in CUTOFFS}


class TowerTrainer(SentenceTransformerTrainer):
    """The library's trainer, whose checkpoints quote nothing of what is trained on."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out the model card's samples of the dataset: they are sentences of notes."""


def build_trainer(
    tower: SentenceTransformer,
    data: TowerData,
    relations: CodeRelations,
    recipe: TowerRecipe,
    folder: Path,
) -> tuple[TowerTrainer, TitleBank]:
    """The trainer of a tower, and the bank of titles that it is trained against.

    Each of several processes has batches of its own.
    """
    loss, info_nce = build_loss(tower, recipe)
    [head] = [name for name, module in tower.named_children() if isinstance(module, Dense)]
    arguments = SentenceTransformerTrainingArguments(
        **common_arguments(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.sizes.total,
        learning_rate=recipe.learning_rate,
        learning_rate_mapping={rf"^model\.{head}\.": recipe.head_learning_rate},
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        save_strategy="epoch",
        seed=recipe.seed,
        batch_sampler=partial(EpochBatchSampler, epochs=recipe.epochs),
    )
    batches = recipe.epochs * recipe.steps * arguments.world_size
    bank = TitleBank(tower, info_nce, data.titles, 2 * recipe.mini_batch)
    trainer = TowerTrainer(
        tower,
        arguments,
        data.draw(batches, recipe.title_share, recipe.seed),
        loss=loss,
        data_collator=CodeCollator(tower.preprocess, relations=relations),
        callbacks=[bank],
    )
    return trainer, bank


def build_loss(
    tower: SentenceTransformer, recipe: TowerRecipe
) -> tuple[MatryoshkaLoss, MultiPositiveInfoNCELoss]:
    """The recipe's objective at all prefixes, and the loss within it that has the bank."""
    loss: MultiPositiveInfoNCELoss | CachedMultiPositiveInfoNCELoss
    if recipe.cache_gradients:
        loss = CachedMultiPositiveInfoNCELoss(tower, recipe.temperature, recipe.mini_batch)
        info_nce = loss.loss
    else:
        loss = info_nce = MultiPositiveInfoNCELoss(tower, recipe.temperature)
    total = sum(recipe.prefixes.values())
    shares = [weight / total for weight in recipe.prefixes.values()]
    return MatryoshkaLoss(tower, loss, list(recipe.prefixes), shares), info_nce


def embed(tower: SentenceTransformer, texts: Sequence[str], batch: int) -> Tensor:
    """Embeddings without gradients, L2-normalised: float32 (texts, dimensions)."""
    # A copy in the dtype of the search, which is faster and what the towers will be used in.
    fast = copy.deepcopy(tower).to(weights.fast_dtype(tower.device.type))
    embeddings: Tensor = fast.encode(
        list(texts), batch_size=batch, convert_to_tensor=True, show_progress_bar=False
    )
    return torch.nn.functional.normalize(embeddings.float(), dim=1)
