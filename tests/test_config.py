"""Settings: who overrides whom, what is refused, and what the hash stands for."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clh.config import Settings
from clh.errors import InputError


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's clh.toml, not there yet; no CLH_* variable is set."""
    file = tmp_path / "clh.toml"
    monkeypatch.setattr("clh.config.USER_FILE", file)
    for name in ("CLH_POLICY", "CLH_LLM__BACKEND", "CLH_NOTE_BYTES", "CLH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return file


def refusal(profile: str = "cpu", **flags: Any) -> str:
    with pytest.raises(InputError) as caught:
        Settings.load(profile, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- precedence -----------------------------------------------------------------------------


def test_each_layer_overrides_the_one_below(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.load().llm.backend == "local"
    assert Settings.load("vllm").llm.backend == "server"
    user_file.write_text('[llm]\nbackend = "local"\nretries = 7\n')
    assert Settings.load("vllm").llm.backend == "local"
    monkeypatch.setenv("CLH_LLM__BACKEND", "server")
    assert Settings.load().llm.backend == "server"
    merged = Settings.load(llm={"backend": "local", "max_tokens": 9}).llm
    assert (merged.backend, merged.max_tokens) == ("local", 9)
    assert merged.retries == 7  # each layer changes only what it names
    assert merged.model == Settings.load().llm.model


def test_a_flag_that_is_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLH_POLICY", "mention")
    assert Settings.load(policy=None).policy == "mention"
    assert Settings.load(policy="encounter").policy == "encounter"


def test_directories_are_the_users_own_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().cache_dir.is_absolute()
    assert Settings.load().cache_dir != Settings.load().data_dir
    monkeypatch.setenv("CLH_CACHE_DIR", "~/models")
    assert Settings.load().cache_dir == Path.home() / "models"


def test_files_of_the_index_come_from_a_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLH_INDEX_FILES", '["a.xml", "b.xml"]')
    assert Settings.load().index_files == (Path("a.xml"), Path("b.xml"))


def test_settings_are_frozen() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.policy = "mention"
    with pytest.raises(ValidationError, match="frozen"):
        settings.llm.retries = 1


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["tpu", "", "../cpu"])
def test_an_unknown_profile_lists_those_there_are(profile: str) -> None:
    assert "choose one of codiesp, cpu, vllm" in refusal(profile)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"polcy": "mention"}, "polcy"),
        ({"policy": "inpatient"}, "policy"),
        ({"note_bytes": 0}, "note_bytes"),
        ({"llm": {"modle": "x"}}, "llm.modle"),
        ({"llm": {"backend": "cloud"}}, "llm.backend"),
        ({"llm": {"timeout": "soon"}}, "llm.timeout"),
        ({"llm": {"timeout": 0}}, "llm.timeout"),
        ({"llm": {"retries": -1}}, "llm.retries"),
        ({"llm": {"think": "perhaps"}}, "llm.think"),
        ({"assign": {"threshold": 1.5}}, "assign.threshold"),
        ({"assign": {"threshold": float("nan")}}, "assign.threshold"),
        ({"audit": {"store_text": "perhaps"}}, "audit.store_text"),
    ],
)
def test_a_wrong_name_or_value_is_named(flags: dict[str, Any], name: str) -> None:
    assert f"'{name}'" in refusal(**flags)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CLH_POLICY", "inpatient", "'policy'"),
        ("CLH_LLM__MODLE", "x", "'llm.modle'"),
        ("CLH_INDEX_FILES", "a.xml", '"index_files".*JSON'),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=says) as caught:
        Settings.load()
    assert "clh.toml" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [("polcy = 'mention'", "'polcy'"), ("[llm]\nretries = 'x'", "'llm.retries'"), ("[llm", "mend")],
)
def test_a_wrong_file_is_refused(user_file: Path, content: str, says: str) -> None:
    user_file.write_text(content)
    assert says in refusal()


# --- the hash -------------------------------------------------------------------------------


def test_the_hash_follows_the_values_wherever_they_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Settings.load().hash
    assert Settings.load().hash == plain
    assert Settings.load(policy="encounter").hash == plain  # the default, spelt out
    mention = Settings.load(policy="mention").hash
    assert mention != plain
    monkeypatch.setenv("CLH_POLICY", "mention")
    assert Settings.load().hash == mention
    monkeypatch.delenv("CLH_POLICY")
    assert Settings.load(llm={"max_tokens": 511}).hash != plain
    assert Settings.load("vllm").hash != plain


def test_directories_do_not_change_the_hash(tmp_path: Path) -> None:
    assert Settings.load(cache_dir=tmp_path, data_dir=tmp_path).hash == Settings.load().hash


def test_the_api_key_is_used_and_shown_nowhere() -> None:
    settings = Settings.load(llm={"api_key": "sk-secret"})
    assert settings.llm.api_key.get_secret_value() == "sk-secret"
    assert settings.hash == Settings.load().hash
    for shown in (settings.model_dump_json(), repr(settings), str(settings.model_dump())):
        assert "sk-secret" not in shown


def test_a_wrong_key_is_not_quoted() -> None:
    assert "sk-secret" not in refusal(llm={"api_key": ["sk-secret"]})
