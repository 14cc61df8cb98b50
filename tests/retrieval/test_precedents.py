"""Precedents: what annotators gave to the same words, and nothing for other words."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from clh.retrieval.lexical import phrases
from clh.retrieval.precedents import Precedents

SENTENCES = [
    ("He has chest pain on exertion.", ["R07.9"]),
    ("Chest pains at rest.", ["R07.9", "I20.9"]),
    ("There is pain in the chest and fever.", ["R50.9"]),
    ("No fever.", []),
]
WORDS = st.lists(st.sampled_from(["chest", "pain", "fever", "rest", "of", "the", "no"]), max_size=9)


def count(
    sentences: list[tuple[str, list[str]]] = SENTENCES, doubt: float = 0.0, least: float = 0.01
) -> Precedents:
    return Precedents.count(sentences, longest=3, doubt=doubt, least=least)


def test_a_share_is_of_the_sentences_that_say_the_same() -> None:
    known = count()
    assert known.shares("chest pain") == pytest.approx({"R07.9": 1, "I20.9": 1 / 2, "R50.9": 1 / 3})
    assert known.shares("Fever!") == pytest.approx({"R50.9": 1 / 2})
    assert known.shares("nothing like it") == known.shares("") == {}
    # "pain" is in three sentences, "chest" too; the phrase that says most counts.
    assert known.shares("pain of his chest")["R07.9"] == pytest.approx(2 / 3)


def test_doubt_lowers_what_was_seen_once() -> None:
    known = count(doubt=2)
    assert known.shares("chest pain")["R07.9"] == pytest.approx(2 / 4, abs=1e-3)
    assert known.shares("exertion")["R07.9"] == pytest.approx(1 / 3, abs=1e-3)
    assert count(doubt=2, least=0.4).shares("exertion") == {}


@pytest.mark.parametrize(
    ("text", "share"),
    [("chest pain", 1), ("Chest  PAINS", 1), ("fever", 1 / 2), ("chest pain tonight", 0), ("", 0)],
)
def test_a_span_has_a_share_only_as_a_whole(text: str, share: float) -> None:
    assert count().share(text) == pytest.approx(share)


CODES = st.frozensets(st.sampled_from("AB"))


@given(st.lists(st.tuples(WORDS.map(" ".join), CODES)), WORDS)
def test_shares_are_those_of_counting_by_hand(
    sentences: list[tuple[str, frozenset[str]]], words: list[str]
) -> None:
    text = " ".join(words)
    known = Precedents.count(sentences, longest=3, doubt=1, least=0.2)
    by_hand: dict[str, float] = {}
    for phrase in phrases(text, 3):
        saying = [codes for said, codes in sentences if phrase in phrases(said, 3)]
        for code in "AB":
            share = sum(code in codes for codes in saying) / (len(saying) + 1)
            if share >= 0.2:
                by_hand[code] = max(by_hand.get(code, 0), share)
    assert known.shares(text) == pytest.approx(by_hand, abs=1e-3)


def test_saved_precedents_hold_no_text(tmp_path: Path) -> None:
    file = tmp_path / "precedents.safetensors"
    count().save(file)
    loaded = Precedents.load(file)
    for text, _ in SENTENCES:
        assert loaded.shares(text) == pytest.approx(count().shares(text), abs=1e-3)
    assert not any(word in file.read_bytes() for word in (b"chest", b"pain", b"fever"))


def test_more_codes_than_16_bits_can_number(tmp_path: Path) -> None:
    file = tmp_path / "precedents.safetensors"
    codes = [f"C{number:05}" for number in range(40_000)]
    Precedents.count([("fever", codes)], longest=1, doubt=0, least=0.5).save(file)
    assert Precedents.load(file).shares("fever").keys() == {*codes}


def test_a_file_whose_numbers_of_codes_wrapped_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "precedents.safetensors"
    count().save(file)
    with safe_open(file, "numpy") as saved:
        metadata = saved.metadata()
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    tensors["codes"] = tensors["codes"].astype(np.int16)
    save_file(tensors, file, metadata)
    assert Precedents.load(file).shares("fever") == pytest.approx(count().shares("fever"), abs=1e-3)

    tensors["codes"] -= 3
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match="names codes that it does not hold"):
        Precedents.load(file)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 99])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "precedents.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="holds no precedents"):
        Precedents.load(file)
