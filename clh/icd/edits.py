"""The Medicare Code Editor's lists: what Medicare refuses beside the rules of the Tabular List.

Source: CMS, Definitions of Medicare Code Edits, as one JSON file: `codes` has the codes of each
list, written without dot, `age_categories` the years of each age. data/README.md shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from clh.errors import InputError


@dataclass(frozen=True, slots=True)
class Edits:
    """Codes, without dot, that are no principal diagnosis, and the ages that codes are for."""

    never_first: frozenset[str]
    never_alone: frozenset[str]  # first, with no other diagnosis
    ages: Mapping[str, tuple[str, int, int]]  # name of the age, its first and last year


class _Listed(BaseModel):
    code: str


class _Years(BaseModel):
    min_age: int
    max_age: int


class _File(BaseModel):
    codes: dict[str, list[_Listed]]
    age_categories: dict[str, _Years]


def read_edits(file: Path) -> Edits:
    """The lists in the file. Raises InputError if it cannot be read or holds no such lists."""
    try:
        lists = _File.model_validate_json(file.read_text(encoding="utf-8"))
        listed = {name: [listing.code for listing in codes] for name, codes in lists.codes.items()}
        return Edits(
            never_first=frozenset([*listed["unacceptable_pdx"], *listed["manifestation_not_pdx"]]),
            never_alone=frozenset(listed["unacceptable_pdx_unless_secondary"]),
            ages={
                code: (age, years.min_age, years.max_age)
                for age, years in lists.age_categories.items()
                for code in listed[f"age_{age}"]
            },
        )
    except OSError as error:
        raise InputError(f"cannot read the edits {file}: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError, KeyError) as error:
        raise InputError(
            f"{file} lacks the Medicare Code Editor's lists: data/README.md shows their layout"
        ) from error
