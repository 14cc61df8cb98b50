"""Worked claims, each with the section of the Official Guidelines that it rests on."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from clh.icd.rules import Claim, Encounter, check, load_code_book, resolve

CASES = tomllib.loads((Path(__file__).parent / "cases.toml").read_text("utf-8"))["case"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["about"])
def test_a_claim_is_found_and_mended(case: dict[str, Any]) -> None:
    encounter = Encounter(
        setting=case.get("setting"),
        sex=case.get("sex"),
        uncertain=frozenset(case.get("uncertain", ())),
    )
    claim = Claim(case["codes"], load_code_book(), encounter)
    found = [one for one in check(claim) if one.severity != "reminder"]
    assert sorted(f"{one.rule}: {' '.join(one.codes)}" for one in found) == case["finds"]
    assert all(one.citation.text for one in found)
    proposal = resolve(claim, case.get("support"))
    assert list(proposal.codes) == case.get("becomes", case["codes"])
