"""Verifiable rewards: from 0 to 1, and no higher for a longer reply that says nothing more."""

from collections.abc import Collection, Sequence


def share(part: int, whole: int) -> float:
    """Part of the whole; all of nothing is 1."""
    return part / whole if whole else 1.0


def agreement(leads: Sequence[Collection[str]], gold: Collection[str]) -> float:
    """F1 of what terms lead to, each to some codes, against the gold codes.

    Right are the gold codes that a term leads to, wrong the terms that lead to none. So a term that
    leads only where another does changes nothing.
    """
    reached = set(gold) & set().union(*leads)
    wrong = sum(reached.isdisjoint(codes) for codes in leads)
    return share(2 * len(reached), len(reached) + wrong + len(set(gold)))
