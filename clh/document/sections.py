"""The section that each sentence of a note stands in, by the headings and labels before it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from clh.document.sentences import Token, join_tokens

_LINE, _PARAGRAPH = 1, 2  # line breaks that end what a label covers
_LABEL = 8  # tokens within which the colon of a label stands


class Sections:
    """The headings that are known, and the kind of section that each opens."""

    def __init__(self, headings: Mapping[str, Sequence[str]]) -> None:
        """Take the headings of sections.toml, by kind."""
        self._kinds = {name: kind for kind, names in headings.items() for name in names}

    def assign(self, sentences: Iterable[list[Token]]) -> Iterator[tuple[list[Token], str]]:
        """Each sentence without its heading, and the kind of its section; blank ones are left out.

        The kind is "other" where no heading says more.
        """
        heading = section = "other"  # of the heading above, and of the text at hand
        reach = _LINE
        for sentence in sentences:
            if sentence[0].line_breaks >= reach:
                section, reach = heading, _LINE
            body, kind = self._split_heading(sentence)
            if kind is not None:
                section = kind
                if not _has_letters(body):
                    heading = kind
                # A label before text covers its line, or its paragraph when written as a heading.
                reach = _PARAGRAPH if sentence[0].text.isupper() else _LINE
            if _has_letters(body):
                yield body, section

    def _split_heading(self, sentence: list[Token]) -> tuple[list[Token], str | None]:
        """A sentence without the heading it begins with, and the kind of section that opens."""
        for place, token in enumerate(sentence[:_LABEL]):
            if token.text == ":" and (kind := self._kind(sentence[:place])) is not None:
                return sentence[place + 1 :], kind
        kind = self._kind(sentence) if len(sentence) <= _LABEL else None
        return (sentence, None) if kind is None else ([], kind)

    def _kind(self, heading: Sequence[Token]) -> str | None:
        return self._kinds.get(join_tokens(heading).strip(" :.-*\u2022#").lower())


def _has_letters(tokens: Iterable[Token]) -> bool:
    return any(char.isalpha() for token in tokens for char in token.text)  # also T2DM and COVID-19
