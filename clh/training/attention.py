"""Label-aware attention: every code looks through the note for what speaks for it.

CAML (Mullenbach et al. 2018), LAAT (Vu et al. 2020) and PLM-ICD (Huang et al. 2022) learn a query
for each code. Here it is made of the code's vector in the ICD tower, so that codes can be looked
for which training never saw.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from clh.retrieval.lexical import query
from clh.schema import Span
from clh.training.towers import TextEncoder


class Tokens(NamedTuple):
    """A note's tokens: what the encoder makes of each in its sentence, and where it stands."""

    states: Tensor  # float16, (tokens, width of the encoder)
    spans: NDArray[np.int64]  # (tokens, 2): start and end in the note


class LabelAttention(torch.nn.Module):
    """Scores codes for a note, as the towers do and by what each code attends to in it.

    Untrained, it ranks codes by the towers' similarity and attends to the tokens that the towers
    find closest to the code; training moves both.
    """

    def __init__(self, encoder: TextEncoder, dimensions: int, *, uniform: bool = False) -> None:
        """A small head on the towers, which stay as they are.

        With `uniform`, every code attends to all tokens alike: mean pooling.
        """
        super().__init__()
        codes, states = encoder.dimensions, int(encoder.encoder.config.hidden_size)
        self.query = torch.nn.Linear(codes, dimensions, bias=False)
        self.key = torch.nn.Linear(states, dimensions, bias=False)
        self.value = torch.nn.Linear(states, dimensions)
        self.reading = torch.nn.Linear(codes, dimensions)
        self.log_sharpness = torch.nn.Parameter(torch.tensor(20.0).log())
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.bias = torch.nn.Parameter(torch.tensor(0.0))
        self.uniform = uniform
        torch.nn.init.orthogonal_(self.query.weight)  # which keeps angles, as far as it can
        with torch.no_grad():
            onto = self.query.weight
            self.key.weight.copy_(onto if encoder.head is None else onto @ encoder.head.weight)
        torch.nn.init.zeros_(self.reading.weight)
        torch.nn.init.zeros_(self.reading.bias)

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
        read: Tensor = (attended * self.reading(codes)).sum(dim=1)
        return self.scale * similarity + self.bias + read


def read_tokens(encoder: TextEncoder, sentences: Sequence[Span], max_tokens: int) -> Tokens:
    """The tokens of a note's sentences, without the encoder's own ([CLS], [SEP]).

    Sentences are read as the query tower does; beyond the maximum of tokens they are cut.
    """
    said = [query(sentence.text) for sentence in sentences]
    tokens = encoder.tokens(said, max_tokens)
    with torch.inference_mode():
        states = encoder.encoder(**tokens).last_hidden_state.half().cpu()
    kept, spans = [], []
    for row, (text, sentence) in enumerate(zip(said, sentences, strict=True)):
        places = _places(text, sentence.text)
        for column in range(states.shape[1]):
            chars = tokens.token_to_chars(row, column)
            if chars is not None and chars.start < chars.end:
                kept.append((row, column))
                first, last = places[chars.start], places[chars.end - 1]
                spans.append((sentence.start + first[0], sentence.start + last[1]))
    rows, columns = torch.tensor(kept, dtype=torch.long).reshape(-1, 2).T
    return Tokens(states[rows, columns], np.array(spans, dtype=np.int64).reshape(-1, 2))


def _places(said: str, written: str) -> list[tuple[int, int]]:
    """For each character of `said`, from where to where it is written.

    A word that is in both stands for itself, others for all words in whose place they are.
    """
    ours, theirs = (list(re.finditer(r"\w+|[^\w\s]", text)) for text in (said, written))
    places = [(0, len(written))] * len(said)
    words, others = ([word[0] for word in text] for text in (ours, theirs))
    for kind, a, b, c, d in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if kind == "equal":
            for one, other in zip(ours[a:b], theirs[c:d], strict=True):
                for shift in range(len(one[0])):
                    at = other.start() + shift
                    places[one.start() + shift] = (at, at + 1)
        elif kind == "replace":
            start, end = ours[a].start(), ours[b - 1].end()
            places[start:end] = [(theirs[c].start(), theirs[d - 1].end())] * (end - start)
    return places
