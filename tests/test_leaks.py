"""What leaves a process: no word of a note on disk, in a message, or on the way to another host."""

import bz2
import gzip
import hashlib
import json
import lzma
import re
import sqlite3
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

from clh.icd.tabular import load_tabular
from clh.retrieval.lexical import searchable
from tests import servers
from tests.machine import AGENT_FAILED, CANARY, DONE, NOTE, ROOT, Done, Machine, ask
from tests.servers import Server, serving

pytestmark = pytest.mark.integration

SECRET = "pa55word-canary"

# --- on the way to a server ----------------------------------------------------------------------


class Asked(NamedTuple):
    """A note coded by a server on loopback, in surroundings that would send it elsewhere."""

    done: Done
    machine: Machine
    server: Server
    proxy: Server
    collector: Server


@pytest.fixture(scope="module")
def asked(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    machine = Machine.make(tmp_path_factory.mktemp("asked"), cache)
    reply = servers.completion('{"terms": []}')
    with (
        serving(reply) as server,
        serving(servers.accept) as proxy,
        serving(servers.accept) as collector,
    ):
        variables = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy.url)
        variables |= {name.lower(): url for name, url in variables.items()}
        for prefix in ("LANGSMITH", "LANGCHAIN"):
            variables[f"{prefix}_TRACING"] = variables[f"{prefix}_TRACING_V2"] = "true"
            variables[f"{prefix}_ENDPOINT"] = collector.url
            variables[f"{prefix}_API_KEY"] = "key"
        url = f"http://coder:{SECRET}@127.0.0.1:{server.port}/v1"
        done = ask(machine, server, CLH_LLM__BASE_URL=url, **variables)
        yield Asked(done, machine, server, proxy, collector)


def test_a_note_for_a_server_on_loopback_goes_there_alone(asked: Asked) -> None:
    assert asked.done.code == DONE
    assert any(CANARY.encode() in body for body in asked.server.bodies)
    assert asked.proxy.paths == []


def test_no_trace_is_sent_whatever_the_environment_asks_for(asked: Asked) -> None:
    assert asked.collector.paths == []


def test_the_served_graph_sends_no_trace_if_langchain_was_there_first(machine: Machine) -> None:
    code = f"""
import asyncio
import langsmith.utils
assert langsmith.utils.tracing_is_enabled()
from agents.pipeline import serve_graph
from clh.schema import Note
asyncio.run(serve_graph().ainvoke({{"note": Note(id="n", text={NOTE!r})}}))
"""
    with serving(servers.accept) as collector:
        variables = {
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_ENDPOINT": collector.url,
            "LANGSMITH_API_KEY": "key",
        }
        environment = machine.environment(**variables)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
        assert collector.paths == []


def test_the_host_that_a_note_goes_to_is_told(asked: Asked) -> None:
    assert f"127.0.0.1:{asked.server.port}" in asked.done.out + asked.done.err


def test_a_password_in_a_url_stays_there(asked: Asked) -> None:
    assert SECRET not in asked.done.out + asked.done.err
    assert found_under(asked.machine, [SECRET]) == []


def test_the_doctor_tells_no_password(machine: Machine) -> None:
    with serving(servers.accept) as server:
        url = f"http://coder:{SECRET}@127.0.0.1:{server.port}/v1"
        done = machine.clh("doctor", "--profile", "vllm", CLH_LLM__BASE_URL=url)
    dead = machine.clh("doctor", "--profile", "vllm", CLH_LLM__BASE_URL=url)
    assert dead.code == AGENT_FAILED
    assert SECRET not in done.out + done.err + dead.out + dead.err


@pytest.mark.parametrize("script", ["1_analyse_agent.py", "benchmark.py"])
def test_experiments_send_no_trace_either(machine: Machine, tmp_path: Path, script: str) -> None:
    row = {"id": "n", "text": NOTE, "codes": ["J45.909"]}
    (tmp_path / "dev.jsonl").write_text(json.dumps(row))
    with serving(servers.completion('{"terms": []}')) as server, serving(servers.accept) as trap:
        variables = {
            "CLH_LLM__BASE_URL": f"{server.url}/v1",
            "CLH_LLM__MODEL": servers.MODEL,
            "HTTP_PROXY": trap.url,
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_ENDPOINT": trap.url,
            "LANGSMITH_API_KEY": "key",
        }
        flags = ["--dataset", "jsonl", "--split", "dev", "--profile", "vllm"]
        places = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "output")]
        subprocess.run(
            [sys.executable, str(ROOT / "experiments" / script), *flags, *places],
            cwd=ROOT,
            env=machine.environment(**variables),
            check=True,
            capture_output=True,
            timeout=120,
        )
        assert server.bodies
        assert trap.paths == []


# --- what a disk can tell of patients ------------------------------------------------------------

CANARIES = [CANARY, "Quetzalcoatlus", "zibberwick", "MRN0047113"]
PRIVATE = {
    "MRN0047113-Quetzalcoatlus": (
        "Assessment: Mr. Quetzalcoatlus has zibberwick pneumonia and atrial fibrillation. "
        f"His wife {CANARY} has diabetes."
    ),
    "asthma": "asthma",
    "Hypertension": "Hypertension",
}


@pytest.fixture(scope="module")
def searched(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, list[Done]]:
    """A machine that has coded notes in several ways, some of which failed."""
    folder = tmp_path_factory.mktemp("private")
    machine = Machine.make(folder, cache)
    done = []
    for name, text in PRIVATE.items():
        (folder / f"{name}.txt").write_text(text)
        done.append(machine.clh("code", folder / f"{name}.txt", "--format", "json"))
    [first, *_] = PRIVATE
    done.append(machine.clh("code", folder / f"{first}.txt", "--policy", "mention"))
    quoting = servers.completion(json.dumps({"terms": [{"quote": CANARY}]}))
    for answer in (servers.repeating(422), quoting, servers.dripping(0.5)):
        with serving(answer) as server:
            done.append(ask(machine, server, CLH_LLM__TIMEOUT="2"))
    return machine, done


def contents(machine: Machine) -> Iterator[tuple[Path, bytes]]:
    for folder in (machine.home, machine.temporary):
        for file in folder.rglob("*"):
            if file.is_file():
                yield file, file.read_bytes()
                yield file, "\n".join(texts(file)).encode()


def texts(file: Path) -> Iterator[str]:
    """All values of a database, those that were compressed in the clear."""
    if not file.name.endswith(".sqlite"):
        return
    database = sqlite3.connect(file)
    tables = [
        name for [name] in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    for table in tables:
        for row in database.execute(f'SELECT * FROM "{table}"'):
            for value in row:
                yield inflated(value) if isinstance(value, bytes) else str(value)
    database.close()


def inflated(value: bytes) -> str:
    for decompress in (zlib.decompress, gzip.decompress, bz2.decompress, lzma.decompress):
        try:
            return decompress(value).decode("utf-8", "backslashreplace")
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            continue
    return value.decode("utf-8", "backslashreplace")


def found_under(machine: Machine, words: Iterable[str]) -> list[tuple[str, str]]:
    """Which of the words are in which file of the machine, in any case and in UTF-16 as well."""
    return [
        (word, str(file.relative_to(machine.home.parent)))
        for file, data in contents(machine)
        for word in words
        if any(word.lower().encode(kind) in data.lower() for kind in ("utf-8", "utf-16-le"))
    ]


def test_no_word_of_a_note_is_on_disk_or_in_a_message(
    searched: tuple[Machine, list[Done]],
) -> None:
    machine, done = searched
    assert sum(one.code == DONE for one in done) >= 4
    assert any(machine.data.rglob("*"))
    assert found_under(machine, CANARIES) == []
    assert [word for word in CANARIES for one in done if word in one.err] == []


def dictionary() -> set[str]:
    """What an attacker would try: titles, their words, synonyms, names of files, whole notes."""
    book = {text for _, text in searchable(load_tabular())}
    words = {word for text in book for word in re.findall(r"[\w'-]+", text)}
    synonyms = tomllib.loads((files("clh.retrieval") / "synonyms.toml").read_text())
    tried = {*book, *words, *map(str, synonyms), *PRIVATE, *PRIVATE.values(), *CANARIES}
    tried |= {span for text in PRIVATE.values() for span in spans(text)}
    cases = (str, str.lower, str.upper, str.title, str.capitalize)
    return {case(text) for text in tried for case in cases}


def spans(text: str) -> Iterator[str]:
    """All stretches of up to six words."""
    words = text.split()
    for start in range(len(words)):
        for end in range(start + 1, min(start + 6, len(words)) + 1):
            yield " ".join(words[start:end]).strip(".,")


def test_no_digest_on_disk_can_be_read_back_with_a_dictionary(
    searched: tuple[Machine, list[Done]],
) -> None:
    machine, _ = searched
    stored = [data for _, data in contents(machine)]
    hexadecimal = {
        digits[:16] for data in stored for digits in re.findall(rb"[0-9a-f]{16,}", data.lower())
    }
    read_back = [
        (text, kind)
        for text in dictionary()
        for kind in ("sha256", "md5", "sha1", "blake2b", "blake2s")
        if hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()[:16].encode()
        in hexadecimal
    ]
    assert read_back == []
    everything = b"".join(stored)
    for text in (*PRIVATE, *PRIVATE.values(), "pneumonia", "diabetes", "atrial fibrillation"):
        for kind in ("sha256", "md5", "sha1", "blake2b", "blake2s"):
            digest = hashlib.new(kind, text.encode(), usedforsecurity=False).digest()
            assert digest[:8] not in everything
