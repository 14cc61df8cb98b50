"""What the tests of language models ask, and the shapes of the replies."""

from collections.abc import Sequence
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from clh.errors import ReplyError
from clh.models.language import LanguageModel, Message, Messages, Reply, SchemaT

NOTE = "Discharge summary. Patient with community acquired pneumonia, treated with azithromycin. "
QUESTIONS = ["Pneumonia, unspecified?", "Asthma?", "Type 2 diabetes mellitus with neuropathy?"]


class Term(BaseModel):
    model_config = ConfigDict(extra="forbid")

    quote: str = Field(max_length=40)
    status: Literal["affirmed", "negated"]


class Terms(BaseModel):
    model_config = ConfigDict(extra="forbid")

    terms: list[Term] = Field(max_length=4)


def user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def about_the_note(questions: Sequence[str] = QUESTIONS) -> list[Messages]:
    return [user(f"{NOTE}\n{question} Answer yes or no.") for question in questions]


async def chat(model: LanguageModel, content: str, schema: type[SchemaT]) -> Reply[SchemaT]:
    [reply] = await model.chat([user(content)], schema)
    assert isinstance(reply, Reply)
    return reply


def assert_close(
    rows: Sequence[list[float] | ReplyError], expected: list[list[float]], tolerance: float
) -> None:
    for row, other in zip(rows, expected, strict=True):
        assert isinstance(row, list)
        assert sum(row) == pytest.approx(1)
        assert row == pytest.approx(other, abs=tolerance)
