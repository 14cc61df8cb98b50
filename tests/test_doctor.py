"""The doctor: what is installed, loaded and reachable is told as it is."""

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clh import config, doctor
from clh.config import Settings
from clh.doctor import Part
from tests.conftest import WEIGHTS
from tests.fakes import ToyTower

Examine = Callable[..., Part]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examine:
    """Examines one part; towers and index, which take seconds to load, are toys and missing."""
    monkeypatch.setattr("clh.models.embedder.load_embedder", lambda name, settings: ToyTower())

    def examine(part_name: str, profile: str = "cpu", **flags: Any) -> Part:
        places = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}
        settings = Settings.load(profile, **{**places, **flags})
        [part] = [part for part in doctor.examine(settings) if part.name == part_name]
        return part

    return examine


# --- packages and settings -----------------------------------------------------------------------


def test_packages_that_are_missing_are_named_with_what_installs_them(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = [
        "numpy>=2.0",
        "none-such>=1.2",
        "none-other<3,>=2 ; extra == 'server'",
        "numpy>=2 ; extra == 'train'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    assert examine("Packages") == Part("no", "Packages", "to install: pip install 'none-such>=1.2'")
    missing = "to install: pip install 'clh[server]'"
    assert examine("Extra server") == Part("unused", "Extra server", missing)
    numpy = f"numpy {importlib.metadata.version('numpy')}"
    assert examine("Extra train") == Part("ok", "Extra train", numpy)


def test_where_settings_come_from_is_told(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "clh.toml"
    monkeypatch.setattr(config, "USER_FILE", file)
    assert examine("Settings").message.startswith(f"profile cpu; no {file}")
    file.write_text('policy = "mention"\n')
    monkeypatch.setenv("CLH_ASSIGN__EVIDENCE", "0.5")
    settings = examine("Settings", "codiesp").message
    assert settings.startswith(f"profile codiesp; {file}; ")
    assert "CLH_ASSIGN__EVIDENCE" in settings


# --- models --------------------------------------------------------------------------------------


@pytest.mark.integration
def test_weights_that_are_cut_off_are_found(tmp_path: Path) -> None:
    towers = tmp_path / "towers"
    shutil.copytree(WEIGHTS / "clh-towers", towers)
    largest = max(towers.rglob("*"), key=lambda file: file.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    settings = Settings.load(towers={"query": str(towers)}, data_dir=tmp_path / "data")
    states = {part.name: part.state for part in doctor.examine(settings)}
    assert (states["Query tower"], states["Code tower"]) == ("no", "ok")


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")
def test_what_a_profile_uses_is_opened(tmp_path: Path) -> None:
    settings = Settings.load("codiesp", data_dir=tmp_path / "data")
    parts = {part.name: part for part in doctor.examine(settings)}
    names = ("Index", "Prior", "Verifier", "Reranker", "Code calibrator")
    assert {parts[name].state for name in names} == {"ok"}
    assert parts["Reranker"].message.startswith("verify-codiesp@")
    assert parts["Language model"].state == "unused"


def test_a_model_of_the_hub_is_not_downloaded(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    part = examine("Query tower", towers={"query": "nobody/none-such"})
    assert part.state == "no"
    assert "hf download nobody/none-such" in part.message


def test_weights_that_are_named_wrongly_are_found(examine: Examine) -> None:
    part = examine("Code calibrator", assign={"weights": "none-such"})
    assert part.state == "no"
    assert "none-such" in part.message


def test_what_a_profile_does_not_use_is_neither_right_nor_wrong(examine: Examine) -> None:
    for name in ("Prior", "Reranker", "Code calibrator", "Language model"):
        assert examine(name) == Part("unused", name, "profile cpu does not use it")


def test_an_index_that_is_not_built_is_not_built(examine: Examine, tmp_path: Path) -> None:
    part = examine("Index")
    assert part.state == "no"
    assert "clh index build" in part.message
    assert list((tmp_path / "cache").glob("index-*")) == []


# --- language models -----------------------------------------------------------------------------

IN_PROCESS = {"analyze": {"source": "llm"}}


def write_adapter(folder: Path, base: str) -> Path:
    folder.mkdir()
    settings = {"base_model_name_or_path": base, "r": 1, "lora_alpha": 1}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"weight": np.zeros(100, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_needs_what_it_was_trained_on(examine: Examine, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"weight": np.zeros(100, np.float32)}, base / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", str(base))
    part = examine("Language model", llm={"model": str(adapter)}, **IN_PROCESS)
    assert part == Part("ok", "Language model", f"{adapter} on {base}")

    orphan = write_adapter(tmp_path / "orphan", "none-such")
    part = examine("Language model", llm={"model": str(orphan)}, **IN_PROCESS)
    assert part.state == "no"
    assert "none-such" in part.message

    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-1])
    part = examine("Language model", llm={"model": str(adapter)}, **IN_PROCESS)
    assert part.state == "no"
    assert "damaged" in part.message


@pytest.mark.parametrize("missing", ["torch", "llguidance"])
def test_a_language_model_in_this_process_needs_its_packages(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    part = examine("Language model", **IN_PROCESS)
    assert part.state == "no"
    assert f"{missing} is not installed: pip install 'clh[local-llm]'" in part.message


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the server's answer."""

    def do_GET(self) -> None:
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.server.asked.append((self.path, self.headers["Authorization"]))  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


MODELS = json.dumps({"object": "list", "data": [{"id": "tiny"}, {"id": "large"}]})


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        ((200, MODELS), "ok", "large at http://127.0.0.1:"),
        ((200, MODELS.replace("large", "huge")), "no", "no model 'large' but tiny, huge"),
        ((200, '{"data": []}'), "no", "no model 'large' but none"),
        ((200, "<html>Welcome</html>"), "no", "is not an OpenAI API"),
        ((200, '["large"]'), "no", "is not an OpenAI API"),
        ((401, "{}"), "no", "answers 401: set CLH_LLM__API_KEY"),
        ((404, "{}"), "no", "answers 404: the path of llm.base_url"),
        ((500, "{}"), "no", "answers 500: see its log"),
        ((499, "{}"), "no", "answers 499: see its log"),
    ],
)
def test_a_server_must_serve_the_model(
    examine: Examine,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str],
    state: str,
    says: str,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # this machine is never behind one
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answer = answer
    host, port = server.server_address
    llm = {"base_url": f"http://me:secret@{host}:{port}/v1/", "model": "large", "api_key": "key"}
    part = examine("Language model", "vllm", llm=llm)
    assert part.state == state
    assert says in part.message
    assert "secret" not in part.message
    assert server.asked == [("/v1/models", "Bearer key")]


def test_a_server_that_is_not_there(examine: Examine) -> None:
    part = examine("Language model", "vllm", llm={"base_url": "http://127.0.0.1:9/v1"})
    assert part.state == "no"
    assert "nothing answers at http://127.0.0.1:9/v1" in part.message


def test_a_server_needs_a_package_of_this_side(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    part = examine("Language model", "vllm")
    assert part.state == "no"
    assert "pip install 'clh[server]'" in part.message


# --- the audit -----------------------------------------------------------------------------------


def test_an_audit_is_told_with_its_size_and_who_may_read_it(
    examine: Examine, tmp_path: Path
) -> None:
    from clh.audit import Audit

    database = tmp_path / "data" / "audit.sqlite"
    assert examine("Audit") == Part("ok", "Audit", f"{database}: none yet")
    assert not database.exists()
    Audit(database, store_text=False)
    database.chmod(0o600)
    part = examine("Audit")
    assert part.state == "ok"
    assert "mode 0600, without note text" in part.message
    assert " MB" in part.message


def test_an_audit_that_cannot_be_used_is_found(examine: Examine, tmp_path: Path) -> None:
    assert examine("Audit", data_dir=Path("/dev/null/here")).state == "no"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "audit.sqlite").write_text("not a database" * 1000)
    assert examine("Audit").state == "no"
