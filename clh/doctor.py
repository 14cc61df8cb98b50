"""What is installed, loaded and reachable."""

import importlib.metadata
import platform
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from clh.audit import Audit
from clh.config import Settings
from clh.errors import ClhError
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models import weights
from clh.retrieval.index import index_folder, open_index


class Finding(NamedTuple):
    """One thing looked at."""

    ok: bool
    what: str
    says: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything a run needs, one by one; nothing is built or downloaded on the way."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    yield Finding(True, "Python", ", ".join([platform.python_version(), *versions]))
    yield Finding(True, "Device", _device())
    system = load_tabular()
    says = f"ICD-10-CM {system.release}: {len(system):,} codes and categories"
    yield Finding(True, "Code system", says)
    for name in dict.fromkeys((settings.towers.query, settings.towers.code)):
        yield _model("Tower", name)
    if settings.llm.backend == "local":
        yield _model("Language model", settings.llm.model)
    else:
        yield _server(str(settings.llm.base_url), settings.llm.timeout)
    yield _index(settings, system)
    try:
        audit = Audit(settings.data_dir / "audit.sqlite", settings.audit.store_text)
        yield Finding(True, "Audit", str(audit.path))
    except ClhError as error:
        yield Finding(False, "Audit", str(error))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    precision = str(weights.fast_dtype("cpu")).removeprefix("torch.")
    return f"CPU, {torch.get_num_threads()} threads, {precision}"


def _model(what: str, name: str) -> Finding:
    try:
        return Finding(True, what, f"{name}: {weights.source(name)}")
    except ClhError as error:
        return Finding(False, what, str(error))


def _server(base_url: str, timeout: float) -> Finding:
    url = f"{base_url.rstrip('/')}/models"
    try:
        # Any answer, even a refusal, says that a server is there.
        urllib.request.urlopen(url, timeout=min(timeout, 5.0)).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return Finding(error.code < 500, "Server", f"{base_url} answers {error.code}")  # noqa: PLR2004
    except (OSError, ValueError) as error:
        return Finding(
            False, "Server", f"nothing answers at {base_url} ({error}): start vLLM there"
        )
    return Finding(True, "Server", f"{base_url} answers")


def _index(settings: Settings, system: CodeSystem) -> Finding:
    try:
        folder = index_folder(settings, system)
        if not folder.exists():
            return Finding(False, "Index", "not built yet: run `clh index build`")
        open_index(settings, system)  # checks every file of it
    except ClhError as error:
        return Finding(False, "Index", str(error))
    return Finding(True, "Index", str(folder))
