"""Settings: plain frozen values.

Flags beat `CLH_*` variables, which beat the user's `clh.toml`, which beats the profile; `cpu` is
the profile below all others, and says what each setting means.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from clh.errors import InputError
from clh.schema import Policy

PROFILES = Path(str(files("clh"))) / "profiles"
USER_FILE = platformdirs.user_config_path("clh") / "clh.toml"

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


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
    base_url: str
    timeout: Annotated[float, Field(gt=0)]
    retries: Annotated[int, Field(ge=0)]
    max_tokens: Positive
    think: bool
    api_key: SecretStr = Field(default=SecretStr(""), exclude=True)


class Analyze(Section):
    """How terms are found."""

    source: Literal["retrieval", "llm"]
    span_words: Positive
    neighbours: Positive
    shortlist: Positive
    min_closeness: Share
    min_precedent: Share
    length_weight: Annotated[float, Field(ge=0)]
    sentences: bool
    window_words: Positive


class Locate(Section):
    """How codes are searched."""

    coarse_dim: Positive
    shortlist: Positive
    candidates: Positive
    words: Annotated[float, Field(ge=0)]
    length: Annotated[float, Field(ge=0)]
    prior: str


class Verify(Section):
    """How candidates are judged."""

    source: Literal["retrieval", "encoder", "llm"]
    weights: str
    encoder: str
    codes: Positive
    max_tokens: Positive
    batch_tokens: Positive
    llm_candidates: Positive


class Assign(Section):
    """How the final set is chosen."""

    source: Literal["rules", "llm"]
    threshold: Share
    weights: str
    evidence: Share


class Rules(Section):
    """What the code book's rules need to know."""

    setting: Literal["inpatient", "outpatient"]
    edits: Path | None
    groupers: dict[str, Path]

    @field_validator("edits", mode="before")
    @classmethod
    def _none(cls, value: str | Path | None) -> str | Path | None:
        return value or None


class Audit(Section):
    """What is kept of a run."""

    store_text: bool


class Settings(BaseSettings):
    """Everything a run depends on; `hash` names it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="CLH_",
        env_nested_delimiter="__",
    )

    profile: str
    policy: Policy
    note_bytes: Positive
    index_files: tuple[Path, ...]
    cache_dir: Path
    data_dir: Path
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
    def _users_own(cls, value: str | Path, info: ValidationInfo) -> Path:
        if value:
            return Path(value).expanduser()
        users = {"cache_dir": platformdirs.user_cache_path, "data_dir": platformdirs.user_data_path}
        return users[str(info.field_name)]("clh")

    @classmethod
    def load(cls, profile: str = "cpu", **flags: Any) -> Self:
        """The settings of a profile, with the user's file, environment and flags on top.

        `flags` are top-level names or nested dictionaries; those that are None are not given.
        Raises InputError for an unknown profile, name or value.
        """
        known = sorted(path.stem for path in PROFILES.glob("*.toml"))
        if profile not in known:
            raise InputError(f"there is no profile {profile!r}: choose one of {', '.join(known)}")
        layers = [USER_FILE, PROFILES / f"{profile}.toml", PROFILES / "cpu.toml"]

        class Layered(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                tomls = (TomlConfigSettingsSource(settings_cls, path) for path in layers)
                return (init_settings, env_settings, *tomls)

        given = {name: value for name, value in flags.items() if value is not None}
        try:
            merged = Layered(profile=profile, **given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(f"setting {name!r}: {first['msg']}") from None
        except SettingsError as error:  # a variable that should hold a list or a section
            raise InputError(f"{error}: CLH_* variables hold lists and sections as JSON") from None
        except ValueError as error:  # TOML that does not parse
            raise InputError(
                f"a settings file cannot be read ({error}): mend {USER_FILE}"
            ) from None
        return cls.model_construct(**dict(merged))

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that name these settings, secrets and directories left out."""
        values = self.model_dump_json(exclude={"cache_dir", "data_dir"})
        return hashlib.sha256(values.encode()).hexdigest()[:8]
