"""Reading notes: sentences and mentions are the note's own words, in order."""

from hypothesis import given
from hypothesis import strategies as st

from clh.document.reader import Reader
from tests.document.test_view import TEXTS

READER = Reader()
NOTES = st.lists(
    st.sampled_from(["No fever. ", "Family history", ": ", "\n", "\n\n", "- ", "Gout"]) | TEXTS
).map("".join)


@given(NOTES)
def test_sentences_lie_in_the_note_in_order(text: str) -> None:
    end = 0
    for sentence in READER.all_sentences(text):
        assert end <= sentence.start < sentence.end <= len(text)
        assert any(map(str.isalpha, sentence.text))
        end = sentence.end


@given(NOTES, st.data())
def test_a_mention_holds_what_it_is_asked_for(text: str, data: st.DataObject) -> None:
    for sentence in READER.all_sentences(text):
        places = st.integers(0, len(sentence.tokens) - 1)
        first, last = sorted([data.draw(places), data.draw(places)])
        start, end = sentence.tokens[first].start, sentence.tokens[last].end
        mention = sentence.mention(start, end)
        assert (mention.first, mention.last) == (first, last)
        assert (mention.start, mention.end) == (start, end)
        assert mention.text in sentence.text
        assert mention.status == sentence.status(first, last)


def test_part_of_a_word_stands_for_the_word() -> None:
    text = "He has pneu-\nmonia today."
    [sentence] = READER.sentences(text)
    mention = sentence.mention(text.index("monia"), text.index("monia") + 2)
    assert mention.text == "pneumonia"
    assert text[mention.start : mention.end] == "pneu-\nmonia"
