"""Settings: plain frozen values.

Flags override `CLH_*` variables, which override the user's `clh.toml`, which overrides the profile;
`cpu` is the profile below all others, and explains each setting.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Secret,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from clh.cache import sha256
from clh.errors import InputError
from clh.schema import Policy

PROFILES = Path(str(files("clh"))) / "profiles"
USER_FILE = platformdirs.user_config_path("clh") / "clh.toml"

_PREFIX = "CLH_"
_OTHER_VARIABLES = frozenset({"CLH_PROFILE", "CLH_TEST_DATA"})  # that are no settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Neither variables nor TOML have a word for none, so an empty text stands for it.
_none_if_empty = BeforeValidator(lambda value: None if value == "" else value)
OptionalName = Annotated[str | None, _none_if_empty]
OptionalPath = Annotated[Path | None, _none_if_empty]


class ServerUrl(Secret[str]):
    """The URL of a server, shown without the user name and password that may be in it."""

    def _display(self) -> str:
        url = urlsplit(self.get_secret_value())
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


class Section(BaseModel):
    """Base of the sections: frozen, and no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Towers(Section):
    """The two encoders."""

    query: str
    code: str
    max_tokens: Positive
    batch_tokens: Positive


class Llm(Section):
    """The language model of the agents whose source is `llm`."""

    backend: Literal["local", "server"]
    model: str
    base_url: ServerUrl
    timeout: Annotated[float, Field(gt=0)]
    retries: Annotated[int, Field(ge=0)]
    max_tokens: Positive
    think: bool
    api_key: SecretStr = Field(default=SecretStr(""), exclude=True)

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: ServerUrl) -> ServerUrl:
        try:
            url = urlsplit(value.get_secret_value())
            sound = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # a port that is not a number, as in http://user:pass/word@host
            sound = False
        if not sound:  # the value may hold a password: it is not quoted
            raise ValueError(
                "not a URL like http://127.0.0.1:8000/v1 (write @ in a password as %40)"
            )
        return value


class RetrievalAnalysis(Section):
    """Terms as spans that lie close to the code system."""

    span_words: Positive
    neighbours: Positive
    shortlist: Positive
    min_closeness: Share
    min_precedent: Share
    length_weight: Annotated[float, Field(ge=0)]
    sentences: bool


class LlmAnalysis(Section):
    """Terms that a language model names."""

    window_words: Positive


class Analyze(Section):
    """How terms are found."""

    source: Literal["retrieval", "llm"]
    retrieval: RetrievalAnalysis
    llm: LlmAnalysis


class Locate(Section):
    """How codes are searched."""

    coarse_dim: Positive
    shortlist: Positive
    candidates: Positive
    words: Annotated[float, Field(ge=0)]
    length: Annotated[float, Field(ge=0)]
    prior: OptionalName = None


class RetrievalVerification(Section):
    """Candidates judged by similarity and shared words."""

    weights: str


class Reranking(Section):
    """The best candidates read by a reranker as well."""

    model: str
    top_k: Positive
    max_tokens: Positive
    batch_tokens: Positive


class LlmVerification(Section):
    """Candidates that a language model is asked about."""

    candidates: Positive
    threshold: Share


class Verify(Section):
    """How candidates are judged."""

    source: Literal["retrieval", "reranking", "llm"]
    retrieval: RetrievalVerification
    reranking: Reranking
    llm: LlmVerification


class Assign(Section):
    """How the final set is chosen."""

    source: Literal["rules", "llm"]
    threshold: Share | None = None
    weights: OptionalName = None
    evidence: Share


class Rules(Section):
    """What the code book's rules need to know."""

    setting: Literal["inpatient", "outpatient"]
    edits: OptionalPath = None
    groupers: dict[str, Path]


class Audit(Section):
    """What is kept of a run."""

    store_text: bool


class Settings(BaseSettings):
    """All settings of a run; `hash` names their values."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
    )

    profile: str
    policy: Policy
    note_bytes: Positive
    index_files: tuple[Path, ...]
    cache_dir: Path = Field(default="", validate_default=True)
    data_dir: Path = Field(default="", validate_default=True)
    towers: Towers
    llm: Llm
    analyze: Analyze
    locate: Locate
    verify: Verify
    assign: Assign
    rules: Rules
    audit: Audit

    @field_validator("cache_dir", "data_dir", mode="before")
    @classmethod
    def _default_folder(cls, value: object, info: ValidationInfo) -> object:
        folders = {
            "cache_dir": platformdirs.user_cache_path,
            "data_dir": platformdirs.user_data_path,
        }
        return folders[str(info.field_name)]("clh") if value == "" else value

    @field_validator("cache_dir", "data_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError as error:  # ~name of a user whom the system does not know
            raise ValueError(str(error)) from None

    @classmethod
    def load(cls, profile: str | None = None, **flags: Any) -> Self:
        """The settings of a profile, with the user's file, environment and flags on top.

        `profile` is what CLH_PROFILE or the user's file names, or cpu, if it is None. `flags` are
        top-level names or nested dictionaries; those that are None are not given. Raises InputError
        for an unknown profile, name, variable or value, and for a file that cannot be read.
        """
        _check_variables(cls)
        user = _read(USER_FILE)
        if profile is None:
            profile = os.environ.get("CLH_PROFILE") or user.get("profile", "cpu")
        known = sorted(path.stem for path in PROFILES.glob("*.toml"))
        if profile not in known:
            raise InputError(f"there is no profile {profile!r}: choose one of {', '.join(known)}")
        layers = [user, *(_read(PROFILES / f"{name}.toml") for name in (profile, "cpu"))]

        class Layered(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                tomls = (InitSettingsSource(settings_cls, values) for values in layers)
                return (init_settings, env_settings, *tomls)

        given = {name: value for name, value in flags.items() if value is not None}
        try:
            merged = Layered(**{**given, "profile": profile})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            raise InputError(f"setting {name!r}: {reason}") from None
        except (SettingsError, RecursionError) as error:  # not the list or section it should hold
            raise InputError(f"{error}: CLH_* variables hold lists and sections as JSON") from None
        return cls.model_construct(**dict(merged))

    @property
    def uses_language_model(self) -> bool:
        """Whether any agent asks a language model."""
        return "llm" in (self.analyze.source, self.verify.source, self.assign.source)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that name these settings, and the contents of the files in them.

        Secrets, and where cache and data lie, are left out. Raises InputError for a file that
        cannot be read.
        """
        values = self.model_dump(mode="json", exclude={"cache_dir", "data_dir"})
        rules = self.rules
        values["index_files"] = [_digest(file) for file in self.index_files]
        values["rules"]["edits"] = rules.edits and _digest(rules.edits)
        values["rules"]["groupers"] = {
            name: _digest_folder(folder) for name, folder in sorted(rules.groupers.items())
        }
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def _check_variables(settings: type[BaseModel]) -> None:
    """Raise InputError for a CLH_* variable that is not a setting, such as a misspelt one."""
    known = dict(_variables(settings, _PREFIX))
    open_ended = tuple(f"{name}__" for name, field in known.items() if get_origin(field) is dict)
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(_PREFIX) or name in known or name in _OTHER_VARIABLES:
            continue
        if not name.startswith(open_ended):
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "clh/profiles/cpu.toml has their names"
            raise InputError(f"the variable {variable} is not a setting: {hint}")


def _variables(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """The variables that set the fields of a section and of the sections in it, and their types."""
    for name, field in section.model_fields.items():
        variable = f"{prefix}{name}".upper()
        yield variable, field.annotation
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _variables(kind, f"{variable}__")


def _read(file: Path) -> dict[str, Any]:
    """The values in a TOML file, none if there is no such file; InputError if it is unreadable."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # a home that is not a folder has no file
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"the settings file {file} cannot be read ({reason}): correct or remove it"
        ) from None


def _digest_folder(folder: Path) -> dict[str, str]:
    try:
        listed = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}): set rules.groupers"
        ) from error
    return {file.name: _digest(file) for file in listed}


def _digest(file: Path) -> str:
    try:
        state = file.stat()
        return _digest_once(file, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}: correct the settings that name it") from error


@lru_cache(maxsize=256)
def _digest_once(file: Path, modified: int, size: int) -> str:  # noqa: ARG001
    """The checksum of a file, which is read again only when it has changed."""
    return sha256(file)
