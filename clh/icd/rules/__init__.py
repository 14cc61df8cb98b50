"""The rules of the code book: checks of a claim, and what can be mended automatically."""

from clh.icd.rules.book import CodeBook, load_code_book
from clh.icd.rules.checks import check
from clh.icd.rules.claim import Claim, Encounter, Setting, Sex
from clh.icd.rules.resolve import Proposal, resolve

__all__ = [
    "Claim",
    "CodeBook",
    "Encounter",
    "Proposal",
    "Setting",
    "Sex",
    "check",
    "load_code_book",
    "resolve",
]
