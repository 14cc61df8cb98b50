"""How replies are read, and what importing the interface costs."""

import subprocess
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, create_model

from clh.errors import ReplyError, ServerError
from clh.models.language import (
    LanguageModel,
    Reply,
    strip_thinking,
    with_thinking,
)
from tests.fakes import QueuedModel
from tests.models.language.conversations import Term, Terms, chat, user

TAGGED = st.lists(st.text() | st.sampled_from(["<think>", "</think>", "<", "\n"])).map("".join)


@given(thought=TAGGED, quote=TAGGED)
def test_a_reply_is_read_the_same_with_a_thought_in_front(thought: str, quote: str) -> None:
    plain = Terms.model_construct(terms=[Term.model_construct(quote=quote[:40], status="negated")])
    raw = plain.model_dump_json()
    for reply in (
        with_thinking(thought, raw),
        f"\n<think>\n{thought.replace('<', '')}\n</think>\n\n{raw}",
    ):
        assert strip_thinking(reply) == raw
        parsed = Reply.parse(reply, Terms)
        assert (parsed.value, parsed.raw) == (Reply.parse(raw, Terms).value, reply)


@pytest.mark.parametrize("raw", ["<think>Hm. {}", "<think>a</think><think>b</think>{}", "a{}"])
def test_a_thought_without_its_end_is_not_a_reply(raw: str) -> None:
    with pytest.raises(ReplyError) as caught:
        Reply.parse(raw, create_model("Any"))
    assert caught.value.raw == raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("Mrs. Xylophonic", "the reply is not a valid Terms: json_invalid"),
        ('{"terms": "Xylophonic"}', "the reply is not a valid Terms: list_type at terms"),
        ('{"terms": [{"quote": "Xylophonic"}]}', "not a valid Terms: missing at terms.0.status"),
        (
            '{"terms": [{"quote": "a", "status": "Xylophonic"}]}',
            "not a valid Terms: literal_error at terms.0.status",
        ),
        ('{"terms": [], "Xylophonic": 1}', "the reply is not a valid Terms: extra_forbidden"),
        ('{"terms": [{"quote": "\ud800", "status": "negated"}]}', "not a valid Terms: "),
        ("[" * 100_000, "the reply is not a valid Terms: json_invalid"),
        ("", "the reply is not a valid Terms: json_invalid"),
    ],
)
def test_an_unusable_reply_is_kept_but_not_quoted(raw: str, message: str) -> None:
    error = Reply.try_parse(raw, Terms)
    assert isinstance(error, ReplyError)
    assert error.raw == raw
    assert message in str(error)
    with pytest.raises(ReplyError) as caught:
        Reply.parse(raw, Terms)
    printed = "".join(traceback.format_exception(caught.value))
    assert "Xylophonic" not in printed
    assert caught.value.__context__ is None


def test_a_validator_of_the_schema_may_quote_the_reply_and_the_error_does_not() -> None:
    from pydantic import field_validator

    class Checked(BaseModel):
        words: str

        @field_validator("words")
        @classmethod
        def _refuse(cls, value: str) -> str:
            raise ValueError(f"{value} is not a word")

    error = Reply.try_parse('{"words": "Xylophonic"}', Checked)
    assert str(error) == "the reply is not a valid Checked: value_error at words"


def test_the_interface_is_imported_without_the_libraries_behind_it() -> None:
    program = (
        "import sys, clh.models.language\n"
        "heavy = {'torch', 'transformers', 'langchain_core', 'langchain_openai', 'openai', "
        "'llguidance', 'huggingface_hub', 'numpy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


async def test_queued_model() -> None:
    terms, refused = Terms(terms=[]), ReplyError("none", "maybe")
    fake = QueuedModel([terms, "not JSON", ServerError("down")], [[0.5, 0.5], refused])
    model: LanguageModel = fake

    good, bad = await model.chat([user("a"), user("b")], Terms)
    assert isinstance(good, Reply)
    assert good.value == terms
    assert isinstance(bad, ReplyError)
    assert bad.raw == "not JSON"
    with pytest.raises(ServerError):
        await chat(model, "c", Terms)
    assert await model.choose([user("d"), user("e")], ["yes", "no"]) == [[0.5, 0.5], refused]
    assert [messages[0]["content"] for messages in fake.chats + fake.choices] == list("abcde")
