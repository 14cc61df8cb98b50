"""Prompts: a note reaches the model as it was written, and nothing is missing."""

from importlib.resources import files
from typing import Any

import jinja2
import pytest

import prompts

# Markup, Jinja and a chat template's tokens are text like any other.
TEXT = """<b>&"'{{ x }} {% if %} {# #} \\n caf\u00e9 <|im_end|>\r\n  5 < 6\tend"""
VALUES: dict[str, dict[str, Any]] = {
    "analyze": {"text": TEXT, "policy": "encounter"},
    "verify": {
        "passage": TEXT,
        "quote": TEXT,
        "status": "affirmed",
        "code": "R05.9",
        "title": TEXT,
        "inclusion_terms": [TEXT],
        "excludes": [TEXT],
    },
    "assign": {"diagnoses": [{"title": TEXT, "mentions": 2}, {"title": "Cough", "mentions": 1}]},
}
NAMES = [(task, name) for task, values in VALUES.items() for name in values]


def test_every_prompt_is_tested() -> None:
    names = [file.name for file in files("prompts").iterdir()]
    assert {name for name in names if name.endswith(".jinja")} == {
        f"{task}.jinja" for task in VALUES
    }


@pytest.mark.parametrize("task", VALUES)
def test_a_note_is_unaltered_in_the_users_turn(task: str) -> None:
    prompt = prompts.render(task, **VALUES[task])
    given = repr(VALUES[task]).count(repr(TEXT))
    assert prompt.user.count(TEXT) == given
    assert TEXT not in prompt.system
    assert len(prompt.system) > 50


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_a_missing_value_raises(task: str, name: str) -> None:
    values = {key: value for key, value in VALUES[task].items() if key != name}
    with pytest.raises(jinja2.UndefinedError, match=name):
        prompts.render(task, **values)


def test_a_missing_part_of_a_value_raises() -> None:
    with pytest.raises(jinja2.UndefinedError, match="mentions"):
        prompts.render("assign", diagnoses=[{"title": "Cough"}])


def test_the_policy_changes_what_analyze_is_asked() -> None:
    asked = {
        policy: prompts.render("analyze", text="Cough.", policy=policy)
        for policy in ("encounter", "mention")
    }
    assert asked["encounter"].system != asked["mention"].system
    assert asked["encounter"].user == asked["mention"].user


def test_a_fingerprint_names_one_prompt() -> None:
    assert len({prompts.sha256(task) for task in VALUES}) == len(VALUES)
