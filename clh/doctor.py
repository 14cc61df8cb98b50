"""Examines what is installed, loaded and reachable, and says what to do about what is not.

What the profile uses is really opened; nothing is built or downloaded.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import stat
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from clh import __version__, config
from clh.config import Llm, Rules, Settings
from clh.errors import ClhError, InputError, ModelError, ServerError
from clh.models.language.server import is_loopback

_PATIENCE = 5.0  # seconds for an answer of a server
_LONGEST_ANSWER = 1_000_000  # bytes
_LISTED = 5  # models of a server
_REMEDIES = {  # by the status that a server answers with
    401: "set CLH_LLM__API_KEY to its key",
    403: "set CLH_LLM__API_KEY to a key that it accepts",
    404: "the path of llm.base_url is wrong; it mostly ends in /v1",
}
_OTHERS = stat.S_IRWXG | stat.S_IRWXO  # permissions of group and others
_IN_PROCESS = ("torch", "transformers", "llguidance")  # what a language model needs to run here


class Part(NamedTuple):
    """A part of the installation: fit for use, missing or broken, or not used by the profile."""

    state: Literal["ok", "no", "unused"]
    name: str
    message: str


def examine(settings: Settings) -> Iterator[Part]:
    """Examine all parts, one by one."""
    yield from _packages()
    yield Part("ok", "Settings", _describe_settings(settings))
    towers, verify = settings.towers, settings.verify
    prior, calibrator = settings.locate.prior, settings.assign.weights
    parts: list[tuple[str, bool, Callable[[], str]]] = [
        ("Code system", True, _check_code_system),
        ("Rules", True, partial(_check_rules, settings.rules)),
        ("Query tower", True, partial(_check_tower, towers.query, settings)),
        ("Code tower", True, partial(_check_tower, towers.code, settings)),
        ("Index", True, partial(_check_index, settings)),
        ("Prior", prior is not None, partial(_check_prior, prior or "", settings)),
        ("Verifier", verify.source != "llm", partial(_check_logistic, verify.retrieval.weights)),
        (
            "Reranker",
            verify.source == "reranking",
            partial(_check_reranker, verify.reranking.model, settings),
        ),
        ("Code calibrator", calibrator is not None, partial(_check_logistic, calibrator or "")),
        ("Language model", settings.uses_language_model, partial(_check_llm, settings.llm)),
        ("Audit", True, partial(_check_audit, settings)),
    ]
    for name, used, check in parts:
        if not used:
            yield Part("unused", name, f"profile {settings.profile} does not use it")
            continue
        try:
            yield Part("ok", name, check())
        except ClhError as error:
            yield Part("no", name, str(error))


# --- packages and settings -----------------------------------------------------------------------


def _packages() -> Iterator[Part]:
    """CLH and Python; what CLH needs; what each extra adds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Part("ok", "CLH", f"{__version__}, {system}, {cores} cores")
    try:
        requirements = importlib.metadata.requires("clh") or []
    except importlib.metadata.PackageNotFoundError:
        yield Part("unused", "Packages", "CLH is not installed, so what it needs is not known")
        return
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        marked = re.search(r"extra == ['\"]([\w-]+)", marker)
        if not name.startswith("clh["):  # another extra
            groups[marked[1] if marked else ""].append(name.strip())
    groups.pop("dev", None)
    for extra, needed in groups.items():
        versions, missing = _find_versions(needed)
        name = f"Extra {extra}" if extra else "Packages"
        if missing:
            install = f"'clh[{extra}]'" if extra else " ".join(f"'{need}'" for need in missing)
            yield Part("unused" if extra else "no", name, f"to install: pip install {install}")
        else:
            yield Part("ok", name, ", ".join(versions))


def _find_versions(requirements: list[str]) -> tuple[list[str], list[str]]:
    """The packages that are installed, with their versions, and the requirements that are not."""
    versions, missing = [], []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement)
    return versions, missing


def _describe_settings(settings: Settings) -> str:
    file = config.USER_FILE
    variables = sorted(name for name in os.environ if name.startswith("CLH_"))
    return "; ".join(
        [
            f"profile {settings.profile}",
            str(file) if file.exists() else f"no {file}",
            *([f"set by {', '.join(variables)}"] if variables else []),
        ]
    )


# --- code system and models ----------------------------------------------------------------------


def _check_code_system() -> str:
    from clh.icd.tabular import load_tabular

    system = load_tabular()
    return f"ICD-10-CM {system.release}: {len(system):,} codes and categories"


def _check_rules(rules: Rules) -> str:
    from clh.icd import groupers
    from clh.icd.rules import load_code_book

    load_code_book(rules.edits)
    groups = ", ".join(groupers.load(rules.groupers)) or "no groupers"
    return f"{rules.setting}, {rules.edits or 'no edits'}, {groups}"


def _check_tower(name: str, settings: Settings) -> str:
    from clh.models.embedder import load_embedder

    _require_download(name)
    tower = load_embedder(name, settings)
    _, dimensions = tower.encode(["hypertension"]).shape
    return f"{tower.id}, {dimensions} dimensions"


def _check_index(settings: Settings) -> str:
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import index_folder, open_index

    system = load_tabular()
    folder = index_folder(settings, system)
    if not folder.exists():
        raise ModelError("not built yet: run `clh index build`")
    index = open_index(settings, system)  # checks every file of it
    return f"{len(index):,} texts in {folder}"


def _check_prior(name: str, settings: Settings) -> str:
    from clh.icd.tabular import load_tabular
    from clh.retrieval.index import index_folder, open_index
    from clh.retrieval.prior import Prior

    system = load_tabular()
    if not index_folder(settings, system).exists():
        raise ModelError("it needs the index: run `clh index build`")
    return Prior.load(name, open_index(settings, system), system).id


def _check_logistic(name: str) -> str:
    from clh.models.logistic import Logistic

    return Logistic.load(name).id


def _check_reranker(name: str, settings: Settings) -> str:
    from clh.models.reranker import load_reranker

    _require_download(name)
    reranker = load_reranker(name, settings)
    reranker.score([("high blood pressure", "hypertension")])
    return f"{reranker.id}, calibrated by {_check_logistic(name)}"


def _require_download(name: str) -> None:
    """ModelError for a model of the hub that would have to be downloaded first."""
    if "/" not in name or Path(name).exists():
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(name, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(f"{name} is not downloaded yet: `hf download {name}`") from error


# --- language models -----------------------------------------------------------------------------


def _check_llm(llm: Llm) -> str:
    if llm.backend == "server":
        return _check_server(llm)
    missing = [name for name in _IN_PROCESS if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"{missing[0]} is not installed: pip install 'clh[local-llm]'")
    return " on ".join(_check_weights(llm.model))


def _check_weights(name: str) -> list[str]:
    """The model, then what it is an adapter of; ModelError if any of them cannot be read."""
    from safetensors import SafetensorError, safe_open

    from clh.models.weights import ADAPTER, source

    _require_download(name)
    found = source(name)
    files = found.glob("*.safetensors") if found.is_dir() else ()
    try:
        for file in files:
            with safe_open(file, framework="numpy"):  # finds what is cut off
                pass
        if not (found / ADAPTER).is_file():
            return [name]
        base = json.loads((found / ADAPTER).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"the weights in {found} are damaged ({error}): get them anew") from error
    return [name, *_check_weights(base)]


def _check_server(llm: Llm) -> str:
    """Ask the server for its models, among which must be the agents'."""
    if importlib.util.find_spec("langchain_openai") is None:
        raise ModelError("langchain-openai is not installed: pip install 'clh[server]'")
    address = str(llm.base_url)
    models = _list_models(address, llm.api_key.get_secret_value(), llm.timeout)
    if llm.model not in models:
        served = ", ".join(models[:_LISTED]) or "none"
        raise ServerError(f"the server has no model {llm.model!r} but {served}: set llm.model")
    return f"{llm.model} at {address}"


def _list_models(address: str, api_key: str, timeout: float) -> list[str]:
    """The names of the models of a server that speaks OpenAI's API; ServerError if none does."""
    request = urllib.request.Request(f"{address.rstrip('/')}/models")  # noqa: S310
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    # No proxy can reach this machine; None means those of the environment.
    proxies: dict[str, str] | None = {} if is_loopback(urlsplit(address).hostname or "") else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(request, timeout=min(timeout, _PATIENCE)) as response:
            answer = json.loads(response.read(_LONGEST_ANSWER))
        return [model["id"] for model in answer["data"]]
    except urllib.error.HTTPError as error:
        todo = _REMEDIES.get(error.code, "see its log")
        raise ServerError(f"{request.full_url} answers {error.code}: {todo}") from error
    except (OSError, HTTPException) as error:
        raise ServerError(
            f"nothing answers at {address} ({error}): start vLLM there, or set llm.base_url"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{address} is not an OpenAI API: set llm.base_url") from error


# --- the audit -----------------------------------------------------------------------------------


def _check_audit(settings: Settings) -> str:
    from clh.audit import Audit

    path = settings.data_dir / "audit.sqlite"
    if not path.exists():
        folder = next(folder for folder in path.parents if folder.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} cannot be written: set CLH_DATA_DIR")
        return f"{path}: none yet"
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written: change its owner, or set CLH_DATA_DIR")
    Audit(path, settings.audit.store_text).latest(1)
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise InputError(f"{path} is open to other users ({mode:04o}): chmod 600 {path}")
    text = "with note text" if settings.audit.store_text else "without note text"
    return f"{path}: {status.st_size / 1e6:,.1f} MB, mode {mode:04o}, {text}"
