"""Re-ranking by attention: what a shortlist holds, and what a head can learn from it."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from clh.corpora import Example
from clh.errors import InputError
from clh.evaluation.metrics import rank_scores
from clh.retrieval.lexical import searchable
from clh.schema import Note
from clh.training.attention.head import LabelAttention, Tokens
from clh.training.attention.shortlist import CodeVectors, Retriever, Shortlist
from clh.training.attention.training import HeadRecipe, find_evidence, score_codes, train_head
from clh.training.towers import open_tower
from tests.fakes import ToyTower, tiny_encoder, toy_system

SYSTEM = toy_system()
TEXTS = [(SYSTEM.reported(code), text) for code, text in searchable(SYSTEM)]
WIDTH = 32  # of the tiny encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return open_tower(tiny_encoder(tmp_path_factory.mktemp("encoder"))).eval()


@pytest.fixture(scope="module")
def retriever(encoder: SentenceTransformer) -> Retriever:
    tower = ToyTower()
    vectors = tower.encode([text for _, text in TEXTS])
    codes = CodeVectors([code for code, _ in TEXTS], vectors)
    return Retriever(encoder, tower, 64, codes, SYSTEM)


def example(text: str, *codes: str) -> Example:
    return Example(id="n", notes=(Note(id="n", text=text),), codes=codes, split="train")


@given(st.integers(0, 500), st.integers(1, 5), st.lists(st.sampled_from("ABCD"), min_size=1))
def test_a_code_is_as_similar_as_its_closest_text(
    seed: int, sentences: int, codes: list[str]
) -> None:
    generator = np.random.default_rng(seed)
    texts = generator.standard_normal((len(codes), 8), dtype=np.float32)
    asked = generator.standard_normal((sentences, 8), dtype=np.float32)
    found = CodeVectors(codes, texts)
    assert found.codes.tolist() == sorted(set(codes))
    similarity = found.similarity(asked)
    for column, code in enumerate(found.codes):
        own = [row for row, one in enumerate(codes) if one == code]
        assert similarity[:, column] == pytest.approx((asked @ texts[own].T).max(axis=1), abs=1e-5)


def test_a_shortlist_holds_what_is_closest_to_any_sentence(retriever: Retriever) -> None:
    text = "He coughs: cough, unspecified. Pain in right knee since monday."
    note = retriever.shortlist(example(text, "R05", "S83.411A", "X99"), 3, with_gold=False)
    assert set(note.codes[:2]) == {"R05.9", "M25.561"}
    assert len(note.codes) == 3
    assert note.similarity.tolist() == sorted(note.similarity.tolist(), reverse=True)
    said = {code: text[a:b] for code, (a, b) in zip(note.codes, note.closest, strict=True)}
    assert said["M25.561"] == "Pain in right knee since monday."
    assert "cough" in said["R05.9"]
    # Labels are what a mention is reported by; gold is what the scorer compares with.
    assert dict(zip(note.codes, note.labels.tolist(), strict=True))["R05.9"] == 1
    assert note.labels.sum() == 1
    assert note.gold == {"R05", "S83.411", "X99"}


def test_to_learn_from_a_note_its_own_codes_are_added(retriever: Retriever) -> None:
    given = example("Pain in right knee.", "I10", "M25.561", "S83.411A", "X99")
    without = retriever.shortlist(given, 3, with_gold=False)
    note = retriever.shortlist(given, 3, with_gold=True)
    assert note.codes[:3] == without.codes
    assert set(note.codes[3:]) == {"I10", "S83.411"}  # X99 is not in the release
    own = {code for code, label in zip(note.codes, note.labels, strict=True) if label}
    assert own == {"I10", "M25.561", "S83.411"}
    assert note.vectors.shape == (5, ToyTower.dimensions)
    torch.testing.assert_close(note.vectors.norm(dim=1), torch.ones(5))


def test_a_note_that_says_nothing_is_refused(retriever: Retriever) -> None:
    with pytest.raises(InputError, match="n has no sentence"):
        retriever.shortlist(example("- -"), 3, with_gold=False)


# --- what a head learns ---------------------------------------------------------------------------

KNOWN, NEW = range(60), range(60, 120)  # codes
TOKENS, SHORTLIST, OWN = 25, 12, 3


def planted(codes: range, notes: int, seed: int) -> list[Shortlist]:
    """Notes in which some token says each of their codes; similarity says nothing."""
    draw = np.random.default_rng(seed)
    vectors = normalize(torch.randn(120, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    found = []
    for number in range(notes):
        chosen = draw.choice(list(codes), SHORTLIST, replace=False)
        states = draw.standard_normal((TOKENS, WIDTH)) / WIDTH**0.5
        said = draw.choice(TOKENS, OWN, replace=False)  # the token of each of its codes
        states[said] += 2 * vectors[chosen[:OWN]].numpy()
        names = [f"C{code}" for code in chosen]
        closest = np.zeros((SHORTLIST, 2), dtype=np.int64)
        closest[:OWN] = np.stack([said, said + 1], axis=1)
        found.append(
            Shortlist(
                id=f"n{number}",
                gold=frozenset(names[:OWN]),
                tokens=Tokens(
                    torch.tensor(states).half(), np.array([(at, at + 1) for at in range(TOKENS)])
                ),
                codes=tuple(names),
                vectors=vectors[chosen],
                similarity=torch.tensor(draw.random(SHORTLIST)).float(),
                closest=closest,
                labels=torch.tensor([1.0] * OWN + [0.0] * (SHORTLIST - OWN)),
            )
        )
    return found


def recipe(**changed: Any) -> HeadRecipe:
    usual = {
        "pooling": "label-aware",
        "dimensions": WIDTH,
        "epochs": 12,
        "batch": 4,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
    }
    return HeadRecipe.model_validate({**usual, **changed})


def fitted(
    encoder: SentenceTransformer, **changed: Any
) -> tuple[LabelAttention, list[dict[str, float]]]:
    chosen = recipe(**changed)
    torch.manual_seed(0)
    head = LabelAttention(encoder, chosen.dimensions, uniform=chosen.pooling == "mean")
    notes = planted(KNOWN, 60, seed=1)
    log = train_head(head, notes[:50], notes[50:], chosen, 0, lambda: None)
    return head, log


def ranking(head: LabelAttention | None, notes: list[Shortlist]) -> float:
    return rank_scores([one.rank(score_codes(one, head)) for one in notes], ())["map"]


def test_attention_finds_codes_that_it_never_learned(encoder: SentenceTransformer) -> None:
    notes = planted(NEW, 40, seed=2)
    attentive, mean = (fitted(encoder, pooling=way)[0] for way in ("label-aware", "mean"))
    assert ranking(None, notes) < 0.5
    assert ranking(attentive, notes) > max(0.8, ranking(mean, notes) + 0.1)
    right = [
        (find_evidence(one, attentive)[:OWN] == find_evidence(one, None)[:OWN]).all(axis=1)
        for one in notes
    ]
    assert np.mean(right) > 0.9  # the token that says a code is the one that it attends to


def test_the_best_epoch_on_held_out_notes_is_kept(encoder: SentenceTransformer) -> None:
    head, log = fitted(encoder)
    assert [one["epoch"] for one in log] == list(range(13))
    kept = ranking(head, planted(KNOWN, 60, seed=1)[50:])
    assert kept == pytest.approx(max(one["map"] for one in log))
    assert log[-1]["loss"] < log[1]["loss"]


def test_a_head_that_never_gets_better_stays_as_it_was(encoder: SentenceTransformer) -> None:
    torch.manual_seed(0)
    head = LabelAttention(encoder, 8)
    before = copy.deepcopy(head.state_dict())
    notes = planted(KNOWN, 8, seed=3)
    certain = [
        Shortlist(**{**vars(one), "similarity": one.labels}) for one in notes
    ]  # the towers rank these perfectly
    log = train_head(head, notes, certain, recipe(epochs=2), 0, lambda: None)
    assert log[0]["map"] == 1
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_seed_gives_the_same_head(encoder: SentenceTransformer) -> None:
    (one, log), (same, again) = fitted(encoder, epochs=2), fitted(encoder, epochs=2)
    assert log == again
    torch.testing.assert_close(one.state_dict(), same.state_dict(), rtol=0, atol=0)
