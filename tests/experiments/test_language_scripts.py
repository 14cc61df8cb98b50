"""Fine-tuning language models from the outside: real steps of each script, a kill, bad input."""

import asyncio
import json
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from agents.training import preference_pairs, training_set
from agents.training.examples import AGENT_EXAMPLE, AgentExample
from clh.corpora import find, hold_out, read
from clh.models.language import LocalModel
from clh.training import language
from clh.training.export import export_onnx
from clh.training.reranker import open_reranker
from clh.training.towers import save_half
from tests.conftest import MakePipeline
from tests.fakes import tiny_encoder, tiny_llama

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = {
    "run_training": "run_training",
    "run_unsloth": "run_training",
    "run_dpo": "run_dpo",
    "run_grpo_unsloth": "run_grpo",
}
REWARDS = ("format_reward", "verbatim_reward", "code_f1_reward")
DOCUMENTS = [
    {"He has had a cough since {}.": ["R05.9"], "He came by bus.": []},
    {"There is pain in his right knee since {}.": ["M25.561"], "He slept well.": []},
    {"His mother had heart failure in {}.": ["I50.9"], "He had chest pain in {}.": ["R07.9"]},
]
MONTHS = ["January", "February", "March", "April", "May", "June", "July"]
SMALL = {
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "modules": ["q_proj", "v_proj"]},
    "train_examples": {"analyze": 4, "verify": 8},
    "held_out_examples": {"analyze": 2, "verify": 6},
    "candidates": 4,
    "held_out": 0.34,
    "max_tokens": 1500,
    "reply_tokens": 16,
    "epochs": 2,
    "batch": 2,
    "accumulate": 2,
    "learning_rate": 1.0e-2,
    "checkpoint_steps": 1,
}

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, make_toy: MakePipeline, tmp_path: Path) -> Run:
    """Runs a script in this process, agents on fakes, and gives its exit code."""

    @cache  # a pipeline of its own would be another run: its weights lie elsewhere
    def load(dataset: str, candidates: int) -> Any:
        policy = find(dataset).policy
        locate = {"candidates": candidates}
        return make_toy(policy=policy, locate=locate, cache_dir=tmp_path / "cache")

    monkeypatch.setattr(training_set, "load_pipeline", load)

    def script(name: str, flags: list[str], *more: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *flags, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return script


def corpus(folder: Path) -> list[str]:
    """Write a corpus of six documents, and one more not to be seen; returns their texts."""
    texts = []
    for split, numbers in (("train", range(6)), ("dev", range(6, 7))):
        rows = []
        for number in numbers:
            lines = {
                line.format(MONTHS[number]): codes
                for line, codes in DOCUMENTS[number % len(DOCUMENTS)].items()
            }
            text = "\n".join(lines)
            marks = [
                {"code": code, "note_id": str(number), "spans": [span(text, line)]}
                for line, codes in lines.items()
                for code in codes
            ]
            codes = [mark["code"] for mark in marks]
            rows.append({"id": str(number), "text": text, "codes": codes, "evidence": marks})
            texts.append(text)
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


def span(text: str, quote: str) -> dict[str, Any]:
    start = text.index(quote)
    return {"start": start, "end": start + len(quote), "text": quote}


@pytest.fixture
def flags(tmp_path: Path) -> Callable[..., list[str]]:
    """The flags of a script: a corpus, and its recipe made small."""
    texts = corpus(tmp_path)
    base = tiny_llama(tmp_path / "base", texts, window=4096)

    def given(script: str, **changed: Any) -> list[str]:
        recipe = yaml.safe_load((EXPERIMENTS / "recipes" / f"{SCRIPTS[script]}.yaml").read_text())
        recipe |= SMALL | {"base": str(base)} | changed
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        data = ["--dataset", "jsonl", "--data-dir", str(tmp_path)]
        return [*data, "--recipe", str(tmp_path / "recipe.yaml")]

    return given


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    clocks = ("seconds", "step_time")
    return [{name: one for name, one in row.items() if name not in clocks} for row in rows]


def weights(folder: Path) -> bytes:
    return (folder / "best" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("script", "logged"),
    [
        ("run_training", {"loss"}),
        ("run_unsloth", {"loss"}),
        ("run_dpo", {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins"}),
        (
            "run_grpo_unsloth",
            {"reward", "rewards/format_reward/mean", "rewards/code_f1_reward/mean"},
        ),
    ],
)
def test_a_run_writes_the_best_adapter_and_a_log(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    logged: set[str],
) -> None:
    out = tmp_path / "out"
    assert run(script, flags(script), "--output", str(out)) == 0, capsys.readouterr().err
    rows = log(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert all(logged <= row.keys() for row in rows[1:])
    assert json.loads((out / "best" / "adapter_config.json").read_text())["r"] == 4
    assert weights(out)
    assert not list(out.glob("tmp*"))
    assert not (out / "README.md").exists()  # a trainer's card, of neither base nor data


@pytest.mark.parametrize(
    ("script", "step"), [("run_training", 2), ("run_training", 5), ("run_dpo", 4)]
)
def test_a_killed_run_ends_as_if_it_had_never_stopped(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    step: int,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = (
        flags(script, train_examples={"verify": 8}, batch=1, packing=False)
        if script == "run_training"
        else flags(script)
    )
    assert run(script, given, "--output", str(whole)) == 0

    steps = iter(range(1000))

    def until(self: Any, *given: Any, **more: Any) -> Any:
        if next(steps) == step:
            raise KeyboardInterrupt
        return training_step(self, *given, **more)

    training_step = Trainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", until)
        with pytest.raises(KeyboardInterrupt):
            run(script, given, "--output", str(killed))
    assert list(killed.glob("checkpoint-*"))

    assert run(script, given, "--output", str(killed)) == 0
    assert without_clock(log(killed)) == without_clock(log(whole))
    assert weights(killed) == weights(whole)


def test_a_kill_between_the_end_of_an_epoch_and_its_score(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, given = tmp_path / "whole", tmp_path / "killed", flags("run_training")
    assert run("run_training", given, "--output", str(whole)) == 0

    scores = iter(range(1000))

    async def until(*given: Any) -> dict[str, float]:
        if next(scores) == 1:
            raise KeyboardInterrupt
        return await evaluate(*given)

    evaluate = training_set.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(training_set, "evaluate", until)
        with pytest.raises(KeyboardInterrupt):
            run("run_training", given, "--output", str(killed))
    assert [row["epoch"] for row in log(killed)] == [0]

    assert run("run_training", given, "--output", str(killed)) == 0
    assert without_clock(log(killed)) == without_clock(log(whole))
    assert weights(killed) == weights(whole)


def test_pairs_that_were_made_are_not_made_again(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "out", flags("run_dpo")
    completed: list[AgentExample] = []

    async def until(batch: Sequence[AgentExample], *given: Any) -> Any:
        if len(completed) == 5:
            raise KeyboardInterrupt
        completed.extend(batch)
        return await make_pairs(batch, *given)

    make_pairs = preference_pairs.make_pairs
    monkeypatch.setattr(preference_pairs, "BATCH", 5)
    with monkeypatch.context() as patch:
        patch.setattr(preference_pairs, "make_pairs", until)
        with pytest.raises(KeyboardInterrupt):
            run("run_dpo", given, "--output", str(out))
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 5
    assert run("run_dpo", given, "--output", str(out)) == 0
    examples = (out / "train.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == len(examples) == 12
    assert len(completed) == 5
    completions = [json.loads(line)["completion"] for line in examples]
    for pair, completion in zip(pairs, completions, strict=True):
        assert pair is None or (pair["completion"] == completion != pair["rejected"])


def test_no_held_out_document_is_learned(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("run_training", flags("run_training"), "--output", str(out)) == 0
    documents = {
        name: {
            json.loads(line)["document"]
            for line in (out / f"{name}.jsonl").read_text().splitlines()
        }
        for name in ("train", "held_out")
    }
    assert all(documents.values())
    assert not documents["train"] & documents["held_out"]
    kept, held = hold_out(list(read("jsonl", tmp_path, "train")), 0.34, 0)
    assert documents["train"] <= {one.id for one in kept}
    assert documents["held_out"] <= {one.id for one in held}


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": "sigmoid"},
        {"lora": None, "learning_rate": 1.0e-3},
        {"neftune": 5},
        {"gradient_checkpointing": True},
        {"think": True},
    ],
)
def test_what_a_recipe_may_change(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path, changed: dict[str, Any]
) -> None:
    script = "run_dpo" if "loss" in changed else "run_training"
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert run(script, flags(script, epochs=1), "--output", str(plain)) == 0
    assert run(script, flags(script, epochs=1, **changed), "--output", str(other)) == 0
    losses = [log(folder)[1]["loss"] for folder in (plain, other)]
    if "gradient_checkpointing" in changed:
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    else:
        assert losses[0] != losses[1]
    model = (
        other / "best" / ("model.safetensors" if "lora" in changed else "adapter_model.safetensors")
    )
    assert model.exists()


def test_models_are_held_against_each_other_on_the_same_questions(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags("run_training")
    recipe = {"examples": SMALL["held_out_examples"], "candidates": 4, "negatives": 3}
    recipe |= {"reply_tokens": 16, "bootstrap": 20, "seed": 0}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(recipe))
    given = ["--dataset", "jsonl", "--data-dir", str(tmp_path), "--split", "train"]
    given += ["--recipe", str(tmp_path / "eval.yaml"), "--output", str(tmp_path / "out")]
    base, encoder = str(tmp_path / "base"), tmp_path / "encoder"
    save_half(open_reranker(tiny_encoder(tmp_path / "tower"), 64), encoder)
    export_onnx(encoder)
    given += ["--models", base, base, "--thinking", base, "--encoder", str(encoder)]
    assert run("eval_language", given) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, again, thinks, reads = report["models"]
    assert {name: value for name, value in first.items() if "seconds" not in name} == {
        name: value for name, value in again.items() if name in first and "seconds" not in name
    }
    assert set(map(tuple, again["over_first"].values())) == {(0, 0, 0)}
    assert thinks["model"] == f"{first['model']} thinking"
    assert set(map(tuple, thinks["over_first"].values())) != {(0, 0, 0)}
    low, high = first["verify_roc_auc"][1:]
    assert low <= first["verify_roc_auc"][0] <= high
    assert "analyze_f1" not in reads
    assert "analyze_f1" not in reads["over_first"]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 4
    assert all(line.count("|") == table[0].count("|") for line in table)


@pytest.mark.parametrize("script", ["run_training", "run_dpo"])
def test_a_model_that_thinks_is_scored_thinking(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    thoughts: list[str] = []

    async def spy(items: Any, model: Any) -> dict[str, float]:
        thoughts.extend(await model.think([items[0].prompt]))
        return await evaluate(items, model)

    evaluate = training_set.evaluate
    monkeypatch.setattr(training_set, "evaluate", spy)
    out = tmp_path / "out"
    assert run(script, flags(script, epochs=1, think=True), "--output", str(out)) == 0
    assert [row["analyze_usable"] for row in log(out)] == [1, 1]
    assert all(re.fullmatch("<think>[^<]+</think>\n", one) for one in thoughts)
    tuned = LocalModel(str(out / "best"), tmp_path / "cache", max_tokens=16, think=True)
    item = training_set.cached_jsonl(out / "held_out.jsonl", AGENT_EXAMPLE, list)[0]
    assert asyncio.run(tuned.think([item.prompt])) == thoughts[1:]
    if script == "run_dpo":
        lines = (out / "pairs.jsonl").read_bytes().decode().split("\n")[:-1]
        pairs = [pair for line in lines if (pair := json.loads(line)) is not None]
        assert pairs
        for pair in pairs:
            assert pair["completion"].startswith("<think>")
            assert pair["rejected"].startswith("<think>")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "dev.jsonl").unlink(), "there is no .*dev.jsonl"),
        (
            lambda folder: (folder / "recipe.yaml").write_text("base: x"),
            "recipe.yaml, held_out: Field",
        ),
        (
            lambda folder: (folder / "train.jsonl").write_text(
                json.dumps({"id": "a", "text": "Cough.", "codes": ["R05.9"]}) + "\n"
            ),
            "a has codes without evidence",
        ),
    ],
)
def test_bad_input_is_one_line(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    break_it: Callable[[Path], object],
    message: str,
) -> None:
    given = flags(script)
    break_it(tmp_path)
    capsys.readouterr()
    assert run(script, given, "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error)


def test_another_recipe_does_not_go_on_in_the_folder_of_the_first(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    assert run("run_training", flags("run_training", epochs=1), "--output", out) == 0
    before = log(tmp_path / "out")
    assert run("run_training", flags("run_training", epochs=1), "--output", out) == 0
    assert log(tmp_path / "out") == before
    assert run("run_training", flags("run_training", epochs=2), "--output", out) == 2
    assert "holds another run (recipe differ)" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["run_unsloth", "run_grpo_unsloth"])
def test_without_a_gpu_a_line_says_that_unsloth_does_not_train(
    run: Run,
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    (tmp_path / "train.jsonl").unlink()
    assert run(script, flags(script), "--output", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err.splitlines()
    assert "unsloth cannot run (there is no GPU): TRL and PEFT train instead" in said


class Unsloth:
    """Stands in for unsloth: models as it gives them, its adapter on, and what it was asked."""

    asked: dict[str, Any]

    @classmethod
    def from_pretrained(cls, name: str, **given: Any) -> tuple[Any, Any]:
        cls.asked = given
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    @classmethod
    def get_peft_model(cls, model: Any, **given: Any) -> Any:
        cls.asked |= given
        names = ("r", "lora_alpha", "lora_dropout", "target_modules")
        return get_peft_model(model, LoraConfig(**{name: given[name] for name in names}))


def test_with_unsloth_the_same_is_written(
    run: Run, flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsloth = SimpleNamespace(FastLanguageModel=Unsloth)
    monkeypatch.setattr(language, "find_unsloth", lambda **_: unsloth)
    out = tmp_path / "out"
    assert run("run_unsloth", flags("run_unsloth", epochs=1), "--output", str(out)) == 0
    assert [row["epoch"] for row in log(out)] == [0, 1]
    assert weights(out)
    assert (Unsloth.asked["max_lora_rank"], Unsloth.asked["r"]) == (4, 4)
    assert not Unsloth.asked["fast_inference"]
