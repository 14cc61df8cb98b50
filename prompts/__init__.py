"""Prompts: one Jinja file per task, with a block for the system's turn and one for the user's."""

import hashlib
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

# Notes are text, not markup: nothing is escaped, so the model reads what the clinician wrote.
_ENVIRONMENT = Environment(
    loader=PackageLoader("prompts", ""),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701
    trim_blocks=True,
    lstrip_blocks=True,
)


class Prompt(NamedTuple):
    """The two turns that open a conversation."""

    system: str
    user: str


def render(task: str, **values: Any) -> Prompt:
    """The prompt of a task, filled in; jinja2.UndefinedError when a value is missing."""
    template = _ENVIRONMENT.get_template(f"{task}.jinja")
    context = template.new_context(values)
    return Prompt(*("".join(template.blocks[turn](context)).strip() for turn in Prompt._fields))


def tasks() -> list[str]:
    """The tasks that have a prompt."""
    return [name.removesuffix(".jinja") for name in _ENVIRONMENT.list_templates(["jinja"])]


def sha256(task: str) -> str:
    """The fingerprint of a task's prompt file, for the audit."""
    return hashlib.sha256((files("prompts") / f"{task}.jinja").read_bytes()).hexdigest()
