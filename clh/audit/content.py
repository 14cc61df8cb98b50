"""What the audit keeps of a run: the best that was found and, unless asked, no word of the note."""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from clh.schema import AGENTS

_BEST_OF_TERM = 5  # candidates and verdicts
_BEST_OF_NOTE = 50  # probabilities of codes
_DIGITS = 3  # of numbers, where text is not kept
_SMALLEST = 9  # level of compression

# Fields whose strings come from the code book, the settings or the program. A string in any other
# field may be the note's, or tell what the note says, as the title that a term matched does.
_NOT_FROM_NOTE = frozenset(
    {
        *AGENTS,  # the models of each
        *("agent", "change", "code", "codes", "flags", "icd_release", "policy", "prompt_sha256"),
        *("reason", "rule", "run_id", "severity", "status", "suggestions"),
    }
)
_JSON = TypeAdapter[Any](Any)


def to_plain(value: object) -> Any:
    """Shapes and dataclasses as the dictionaries, lists and numbers of JSON."""
    return _JSON.dump_python(value, mode="json")


def shorten(output: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's plain output with the best candidates and verdicts, and how many there were."""
    short = dict(output)
    if "candidates" in output:
        short["candidates"] = [
            {"of": len(found), "best": found[:_BEST_OF_TERM]} for found in output["candidates"]
        ]
    if "verdicts" in output:
        terms = defaultdict(list)
        for verdict in output["verdicts"]:
            terms[verdict["term"]].append(verdict)
        short["verdicts"] = [
            {"of": len(found), "best": sorted(found, key=_probability)[:_BEST_OF_TERM]}
            for found in terms.values()
        ]
    if "probabilities" in output:
        found = output["probabilities"]
        best = sorted(found, key=lambda code: -found[code])[:_BEST_OF_NOTE]
        short["probabilities"] = {"of": len(found), "best": {code: found[code] for code in best}}
    return short


def without_text(record: Mapping[str, Any]) -> dict[str, Any]:
    """A plain record with its numbers, and of its strings only those that cannot be the note's.

    Errors are kept in full, as their messages never quote the note.
    """
    kept: dict[str, Any] = _without_text(record)
    return {**kept, "errors": record["errors"]} if "errors" in record else kept


def hash_text(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def pack(value: Any) -> bytes:
    """A plain value as compressed JSON."""
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), _SMALLEST)


def unpack(packed: Any) -> Any:
    """The value that was packed; ValueError if it is damaged."""
    try:
        return json.loads(zlib.decompress(packed))
    except (zlib.error, TypeError) as error:
        raise ValueError("the record is damaged") from error


def _without_text(value: Any) -> Any:
    match value:
        case dict():
            return {
                name: part if name in _NOT_FROM_NOTE and _is_text(part) else _without_text(part)
                for name, part in value.items()
                if name in _NOT_FROM_NOTE or not isinstance(part, str)
            }
        case list():
            return [_without_text(part) for part in value if not isinstance(part, str)]
        case float():
            return round(value, _DIGITS)
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is a string, or a list of strings and nothing else."""
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str) for part in parts)


def _probability(verdict: Mapping[str, Any]) -> float:
    return -float(verdict["probability"])
