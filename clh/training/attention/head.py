"""Label-aware attention: every code attends to the tokens of the note that are evidence for it.

CAML (Mullenbach et al. 2018), LAAT (Vu et al. 2020) and PLM-ICD (Huang et al. 2022) learn a query
for each code. Here it is made of the code's embedding in the ICD tower, so that codes can be scored
which training never saw.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor
from torch.nn.functional import normalize

from clh.errors import ModelError
from clh.retrieval.lexical import query
from clh.schema import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tokens(NamedTuple):
    """A note's tokens: the encoder's state of each in its sentence, and its place in the note."""

    states: Tensor  # float16, (tokens, width of the encoder)
    spans: NDArray[np.int64]  # (tokens, 2): start and end in the note


class LabelAttention(torch.nn.Module):
    """Scores codes for a note, as the towers do and by what each code attends to in it.

    Untrained, it ranks codes by the towers' similarity and attends to the tokens that the towers
    find closest to the code; training moves both.
    """

    def __init__(
        self, tower: SentenceTransformer, dimensions: int, *, uniform: bool = False
    ) -> None:
        """A small head on the towers, which stay as they are.

        With `uniform`, every code attends to all tokens alike: mean pooling.
        """
        super().__init__()
        head = next((module for module in tower if isinstance(module, Dense)), None)
        width = encoder_of(tower).config.hidden_size
        codes = width if head is None else head.out_features
        self.query = torch.nn.Linear(codes, dimensions, bias=False)
        self.key = torch.nn.Linear(width, dimensions, bias=False)
        self.value = torch.nn.Linear(width, dimensions)
        self.code_value = torch.nn.Linear(codes, dimensions)
        self.log_sharpness = torch.nn.Parameter(torch.tensor(20.0).log())
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.bias = torch.nn.Parameter(torch.tensor(0.0))
        self.uniform = uniform
        torch.nn.init.orthogonal_(self.query.weight)  # which keeps angles, as far as it can
        with torch.no_grad():
            onto = self.query.weight
            self.key.weight.copy_(onto if head is None else onto @ head.linear.weight)
        torch.nn.init.zeros_(self.code_value.weight)
        torch.nn.init.zeros_(self.code_value.bias)

    def weights(self, states: Tensor, codes: Tensor) -> Tensor:
        """How much each code attends to each token: (codes, tokens), rows that add up to 1.

        `states` is (tokens, width of the encoder), `codes` (codes, dimensions of the towers).
        """
        if self.uniform:
            return states.new_full((len(codes), len(states)), 1 / len(states))
        queries, keys = normalize(self.query(codes), dim=1), normalize(self.key(states), dim=1)
        weights: Tensor = (self.log_sharpness.exp() * queries @ keys.T).softmax(dim=1)
        return weights

    def forward(self, states: Tensor, codes: Tensor, similarity: Tensor) -> Tensor:
        """One logit for each code; `similarity` is the towers', the rest as for `weights`."""
        attended = self.weights(states, codes) @ self.value(states)
        evidence: Tensor = (attended * self.code_value(codes)).sum(dim=1)
        return self.scale * similarity + self.bias + evidence


def read_tokens(tower: SentenceTransformer, sentences: Sequence[Span], max_tokens: int) -> Tokens:
    """The tokens of a note's sentences, without the encoder's own ([CLS], [SEP]).

    Sentences are read as the query tower does; beyond the maximum of tokens they are cut.
    """
    queries = [query(sentence.text) for sentence in sentences]
    tokens = tower.tokenizer(
        queries, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    ).to(tower.device)
    with torch.inference_mode():
        states = encoder_of(tower)(**tokens).last_hidden_state.half().cpu()
    cells, spans = [], []
    for row, (text, sentence) in enumerate(zip(queries, sentences, strict=True)):
        places = _align(text, sentence.text)
        for column in range(states.shape[1]):
            chars = tokens.token_to_chars(row, column)
            if chars is not None and chars.start < chars.end:
                cells.append((row, column))
                first, last = places[chars.start], places[chars.end - 1]
                spans.append((sentence.start + first[0], sentence.start + last[1]))
    rows, columns = torch.tensor(cells, dtype=torch.long).reshape(-1, 2).T
    return Tokens(states[rows, columns], np.array(spans, dtype=np.int64).reshape(-1, 2))


def encoder_of(tower: SentenceTransformer) -> "PreTrainedModel":
    """The transformer in a tower; ModelError if it is of another kind."""
    if tower.transformers_model is None:
        raise ModelError("the tower has no transformer, whose tokens codes could attend to")
    return tower.transformers_model


def _align(query_text: str, sentence: str) -> list[tuple[int, int]]:
    """For each character of the query, the start and end of what it is made of in the sentence.

    A word that is in both stands for itself, others for all words in whose place they are.
    """
    ours, theirs = (list(re.finditer(r"\w+|[^\w\s]", text)) for text in (query_text, sentence))
    places = [(0, len(sentence))] * len(query_text)
    own_words, other_words = ([word[0] for word in words] for words in (ours, theirs))
    matcher = SequenceMatcher(None, own_words, other_words, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            for own, other in zip(ours[a:b], theirs[c:d], strict=True):
                for shift in range(len(own[0])):
                    at = other.start() + shift
                    places[own.start() + shift] = (at, at + 1)
        elif kind == "replace":
            start, end = ours[a].start(), ours[b - 1].end()
            places[start:end] = [(theirs[c].start(), theirs[d - 1].end())] * (end - start)
    return places
