"""Settings: who overrides whom, what is refused, and what the hash stands for."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clh.config import Settings
from clh.errors import InputError
from clh.models.language import connect


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's clh.toml, not there yet; no CLH_* variable is set."""
    file = tmp_path / "clh.toml"
    monkeypatch.setattr("clh.config.USER_FILE", file)
    monkeypatch.delenv("CLH_CACHE_DIR", raising=False)
    return file


def refusal(profile: str | None = "cpu", **flags: Any) -> str:
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


def test_a_variable_names_an_entry_of_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLH_RULES__GROUPERS__CC", str(tmp_path))
    assert Settings.load().rules.groupers == {"cc": tmp_path}


def test_an_empty_text_is_none(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Settings.load()
    assert (plain.locate.prior, plain.assign.weights, plain.rules.edits) == (None, None, None)
    assert Settings.load("codiesp").locate.prior == "prior-codiesp"
    user_file.write_text('cache_dir = ""\n[locate]\nprior = ""\n')
    assert Settings.load("codiesp").locate.prior is None
    assert Settings.load().cache_dir == plain.cache_dir
    for name in ("CLH_ASSIGN__WEIGHTS", "CLH_RULES__EDITS", "CLH_DATA_DIR"):
        monkeypatch.setenv(name, "")
    again = Settings.load("codiesp")
    assert (again.assign.weights, again.rules.edits) == (None, None)
    assert again.data_dir == plain.data_dir


def test_the_users_file_chooses_the_profile(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_file.write_text('profile = "vllm"\n[llm]\nretries = 7\n')
    chosen = Settings.load()
    assert (chosen.profile, chosen.llm.backend, chosen.llm.retries) == ("vllm", "server", 7)
    monkeypatch.setenv("CLH_PROFILE", "codiesp")
    assert Settings.load().profile == "codiesp"
    assert Settings.load("cpu").profile == "cpu"
    monkeypatch.delenv("CLH_PROFILE")
    user_file.write_text("profile = 3\n")
    assert "there is no profile 3: choose one of" in refusal(None)


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
        ("CLH_LLM__MODLE", "x", r"CLH_LLM__MODLE is not a setting: did you mean CLH_LLM__MODEL\?"),
        ("CLH_POLCY", "mention", "did you mean CLH_POLICY"),
        ("clh_polcy", "mention", "clh_polcy is not a setting: did you mean CLH_POLICY"),
        ("CLH_ANALYZE_SOURCE", "llm", "did you mean CLH_ANALYZE__SOURCE"),
        ("CLH_AUDIT_STORE_TEXT", "true", "did you mean CLH_AUDIT__STORE_TEXT"),
        ("CLH_RULES__GROUPER__CC", "x", "did you mean CLH_RULES__GROUPERS"),
        ("CLH_", "x", "CLH_ is not a setting"),
        ("CLH_INDEX_FILES", "[" * 100_000, "JSON"),
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
    [
        (b"polcy = 'mention'", "'polcy'"),
        (b"[llm]\nretries = 'x'", "'llm.retries'"),
        (b"cache_dir = 5", "'cache_dir'"),
        (b"data_dir = '~nobody-of-that-name/clh'", "'data_dir'"),
    ],
)
def test_a_wrong_value_in_the_file_is_named(user_file: Path, content: bytes, says: str) -> None:
    user_file.write_bytes(content)
    assert says in refusal()


@pytest.mark.parametrize(
    "content", [b"[llm", b"policy = '\xe9'", b"a = " + b"[" * 100_000 + b"]" * 100_000]
)
def test_a_file_that_is_not_toml_is_named(user_file: Path, content: bytes) -> None:
    user_file.write_bytes(content)
    assert f"the settings file {user_file} cannot be read" in refusal()


def test_a_file_that_cannot_be_opened_is_named(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_file.mkdir()
    assert f"{user_file} cannot be read (Is a directory)" in refusal()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    assert f"{user_file} cannot be read (Permission denied)" in refusal()


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


SECRET = "http://coder:pa%40ss@llm.example:8000/v1?key=pa%40ss"


def test_a_password_in_a_url_is_used_and_shown_nowhere() -> None:
    settings = Settings.load(llm={"base_url": SECRET})
    assert settings.llm.base_url.get_secret_value() == SECRET
    for shown in (settings.model_dump_json(), repr(settings), str(settings.model_dump())):
        assert "llm.example:8000/v1" in shown
        assert "pa%40ss" not in shown
    other = Settings.load(llm={"base_url": SECRET.replace("pa%40ss", "other")})
    assert other.hash == settings.hash
    assert connect(SECRET, "smol").id == "smol@llm.example:8000"


@pytest.mark.parametrize("url", ["http://me:pa/ss@host/v1", "me:pass", "", "http://", "ftp://pass"])
def test_what_is_not_a_url_is_refused_and_not_quoted(url: str) -> None:
    message = refusal(llm={"base_url": url})
    assert "'llm.base_url'" in message
    assert "pass" not in message.replace("password", "")


def test_the_hash_names_the_contents_of_files(tmp_path: Path) -> None:
    def hash_of(folder: Path) -> str:
        return Settings.load(
            index_files=[folder / "index.xml"],
            rules={"edits": folder / "edits.json", "groupers": {"cc": folder / "cc"}},
        ).hash

    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "cc").mkdir(parents=True)
        for name in ("index.xml", "edits.json", "cc/table.txt"):
            (folder / name).write_text("one")
    before = hash_of(here)
    assert hash_of(there) == before != Settings.load().hash
    for name in ("index.xml", "edits.json", "cc/table.txt"):
        (there / name).write_text("another")
        assert hash_of(there) != before
        (there / name).write_text("one")
    assert hash_of(there) == before
    (there / "edits.json").unlink()
    with pytest.raises(InputError, match=r"edits\.json: No such file"):
        hash_of(there)


def test_settings_travel_to_another_process() -> None:
    settings = Settings.load(llm={"base_url": SECRET})
    assert pickle.loads(pickle.dumps(settings)) == settings
