"""Label-aware attention: what it begins as, what it cannot depend on, and where it points."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch.nn.functional import cosine_similarity

from clh.models import weights
from clh.schema import Note
from clh.training.attention.head import LabelAttention, Tokens, read_tokens
from clh.training.towers import add_head, open_tower
from tests.fakes import tiny_encoder

WIDTH, DIMENSIONS = 32, 48
sizes = st.integers(1, 12)
seeds = st.integers(0, 1000)


@cache
def tiny() -> SentenceTransformer:
    """As small as it gets, with a linear layer as if it had been trained."""
    with TemporaryDirectory() as folder:
        tower = add_head(open_tower(tiny_encoder(Path(folder))), DIMENSIONS)
    return tower.requires_grad_(False)


@cache
def minilm() -> SentenceTransformer:
    return open_tower(weights.source("all-MiniLM-L6-v2"))


def drawn(tokens: int, codes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(codes, DIMENSIONS), dim=1)
    return torch.randn(tokens, WIDTH), vectors, torch.rand(codes)


def trained(seed: int, *, uniform: bool = False) -> LabelAttention:
    """A head that is no longer what it began as."""
    torch.manual_seed(seed)
    head = LabelAttention(tiny(), 16, uniform=uniform)
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return head


@given(sizes, sizes, seeds, st.booleans())
def test_untrained_it_ranks_as_the_towers_do(
    tokens: int, codes: int, seed: int, uniform: bool
) -> None:
    states, vectors, similarity = drawn(tokens, codes, seed)
    logits = LabelAttention(tiny(), 16, uniform=uniform)(states, vectors, similarity)
    assert logits.argsort().tolist() == similarity.argsort().tolist()


@given(sizes, sizes, seeds)
def test_untrained_it_attends_to_the_token_closest_to_the_code(
    tokens: int, codes: int, seed: int
) -> None:
    states, vectors, _ = drawn(tokens, codes, seed)
    head = LabelAttention(tiny(), DIMENSIONS)  # as many dimensions as the towers: nothing is lost
    dense = tiny()[2]
    assert isinstance(dense, Dense)
    closeness = cosine_similarity(dense.linear(states)[None], vectors[:, None], dim=2)
    assert head.weights(states, vectors).argmax(1).tolist() == closeness.argmax(1).tolist()


@given(sizes, sizes, seeds)
def test_the_weights_of_a_code_add_up_to_one(tokens: int, codes: int, seed: int) -> None:
    states, vectors, _ = drawn(tokens, codes, seed)
    weights = trained(seed).weights(states, vectors)
    assert weights.shape == (codes, tokens)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(codes))


@given(sizes, sizes, seeds, st.booleans())
def test_a_code_is_scored_by_itself_and_tokens_have_no_order(
    tokens: int, codes: int, seed: int, uniform: bool
) -> None:
    states, vectors, similarity = drawn(tokens, codes, seed)
    head = trained(seed, uniform=uniform)
    together = head(states, vectors, similarity)
    shuffled = states[torch.randperm(tokens)]
    alone = [head(shuffled, vectors[[row]], similarity[[row]]) for row in range(codes)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-4)


def test_uniform_is_the_mean_of_the_tokens() -> None:
    states, vectors, similarity = drawn(9, 5, seed=0)
    head = trained(0, uniform=True)
    one = states.mean(0, keepdim=True)
    torch.testing.assert_close(
        head(states, vectors, similarity), head(one, vectors, similarity), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(head.weights(states, vectors), torch.full((5, 9), 1 / 9))


# --- tokens and their places in the note ----------------------------------------------------------


def read(note: Note, sentences: Sequence[tuple[int, int]], max_tokens: int = 64) -> Tokens:
    spans = [note.span(start, end) for start, end in sentences]
    return read_tokens(minilm(), spans, max_tokens)


def words(note: Note, tokens: Tokens) -> list[str]:
    return [note.text[start:end] for start, end in tokens.spans]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dry cough.", ["A", "dry", "cough", "."]),
        ("Old HTN, treated", ["Old", "HTN", ",", "treated"]),  # hypertension
        ("acute  renal\nfailure", ["acute", "renal", "failure"]),  # acute kidney failure
        ("SOB, HTN.", ["SOB", ",", "HTN", "."]),
    ],
)
def test_a_token_points_at_the_words_it_comes_from(text: str, found: list[str]) -> None:
    note = Note(id="n", text=text)
    tokens = read(note, [(0, len(text))])
    assert list(dict.fromkeys(words(note, tokens))) == found
    assert tokens.states.shape == (len(tokens.spans), 384)
    assert tokens.states.dtype == torch.float16


some = st.sampled_from(["cough", "HTN", "T2DM,", "no", "fever.", "afib", "(mild)", "SOB", "acute"])


@pytest.mark.integration
@given(st.lists(st.lists(some, min_size=1, max_size=6), min_size=1, max_size=4))
def test_tokens_lie_in_their_sentences_in_order(sentences: list[list[str]]) -> None:
    texts = ["  ".join(sentence) for sentence in sentences]
    note = Note(id="n", text="\n".join(texts))
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    places = [(int(end) - len(text), int(end)) for text, end in zip(texts, ends, strict=True)]
    tokens = read(note, places)
    covered = ["-" if char.strip() else char for char in note.text]
    for start, end in tokens.spans:
        assert any(first <= start < end <= last for first, last in places)
        covered[start:end] = note.text[start:end]
    assert "".join(covered) == note.text  # every word is some token's
    assert tokens.spans[:, 0].tolist() == sorted(tokens.spans[:, 0])


@pytest.mark.integration
def test_a_sentence_is_cut_at_the_maximum_of_tokens() -> None:
    note = Note(id="n", text="no cough and no fever and no pain")
    tokens = read(note, [(0, len(note.text))], max_tokens=5)
    assert words(note, tokens) == ["no", "cough", "and"]  # beside [CLS] and [SEP]


@pytest.mark.integration
def test_the_states_are_those_of_the_encoder() -> None:
    note = Note(id="n", text="no cough. fever and pain")
    places = [(0, 9), (10, 24)]
    tokens = read(note, places)
    alone = [read(note, [place]).states for place in places]  # without padding
    torch.testing.assert_close(tokens.states, torch.cat(alone), rtol=1e-2, atol=1e-2)
