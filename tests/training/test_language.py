"""Training language models: what fits, what TRL reads, what packing and adapters leave as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.training.examples import VerifyExample
from clh.errors import InputError, ModelError
from clh.models.language import LocalModel, Message, with_thinking
from clh.models.weights import model_id, resolve
from clh.training import language
from clh.training.language import LoraRecipe, SftRecipe, assistant_turn, select_fitting
from tests.fakes import tiny_llama

RECIPE = Path(__file__).parents[2] / "experiments" / "recipes" / "run_training.yaml"
TEXTS = ["Cough & <b>fever</b>, 38.5\u00b0.", "He has heart failure.\nNo pain in his right knee!"]


def recipe(**changed: Any) -> SftRecipe:
    return SftRecipe.model_validate(yaml.safe_load(RECIPE.read_text()) | changed)


def example(text: str, reply: str = "yes") -> VerifyExample:
    turns: tuple[Message, ...] = (
        {"role": "system", "content": "You are a clinical coder."},
        {"role": "user", "content": text},
    )
    return VerifyExample.model_construct(prompt=turns, completion=reply, document="d")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", TEXTS)


def test_long_examples_and_control_tokens_are_left_out(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    short, long = example("Cough."), example("Cough. " * 50)
    assert select_fitting([short, long], tokenizer, 100) == [short]
    assert select_fitting([short, example("Cough. <|im_end|>")], tokenizer, 100) == [short]
    with pytest.raises(InputError, match="no example to train on fits 10 tokens: raise max_tokens"):
        select_fitting([short, long], tokenizer, 10)


@pytest.mark.parametrize("thought", ["", with_thinking("right knee means Pain in right knee", "")])
@pytest.mark.parametrize("reply", ["yes", '{"terms": []}'])
@pytest.mark.parametrize("text", [*TEXTS, "A note that says </think> and <think>."])
def test_training_reads_the_tokens_that_inference_does(
    tiny: Path, text: str, reply: str, thought: str
) -> None:
    model = LocalModel(str(tiny), tiny)
    one = example(text, thought + reply)
    trained = model._tokenizer.apply_chat_template(
        [*one.prompt, *assistant_turn(one.completion)], return_dict=False
    )
    asked = model._encode(one.prompt)
    answered = [*model._encode_text(thought), *model._encode_text(reply)]
    assert trained[: len(asked) + len(answered)] == asked + answered
    assert model._decode(trained[len(asked) :]).strip() == one.completion


def gradients(
    tiny: Path, folder: Path, examples: list[VerifyExample], **changed: Any
) -> dict[str, Any]:
    """What one step of training would change, without dropout or noise."""
    given = recipe(base=str(tiny), max_tokens=200, batch=8, lora=None, **changed)
    trainer: Any = language.sft_trainer(language.load_model(given, folder), examples, given, folder)
    trainer.model.train()
    [batch] = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return {name: one.grad for name, one in trainer.model.named_parameters()}


def test_packed_conversations_do_not_see_each_other(tiny: Path, tmp_path: Path) -> None:
    examples = [example(text, reply) for text in TEXTS for reply in ("yes", "no")]
    packed, apart = (
        gradients(tiny, tmp_path, examples, packing=packing) for packing in (True, False)
    )
    for name, one in packed.items():
        torch.testing.assert_close(one, apart[name], rtol=0.05, atol=1e-3)


def test_nothing_of_the_prompt_is_learned(tiny: Path, tmp_path: Path) -> None:
    given = recipe(base=str(tiny), max_tokens=200, packing=False)
    trainer: Any = language.sft_trainer(
        language.load_model(given, tmp_path), [example("Cough.", "no")], given, tmp_path
    )
    [batch] = trainer.get_train_dataloader()
    learned = batch["labels"][batch["labels"] != -100]
    assert trainer.processing_class.decode(learned).strip() == "no<|im_end|>"


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """An adapter with random weights, as training would save it, and PEFT's model of it beside."""
    from peft import get_peft_model

    lora = LoraRecipe(rank=4, alpha=12, dropout=0, modules=("q_proj", "down_proj"))
    given = recipe(base=str(tiny), lora=lora)
    trainable = language.load_model(given, tmp_path)
    model: Any = get_peft_model(trainable.model.float(), trainable.adapter)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for name, one in model.named_parameters():
        if "lora_" in name:
            one.data = torch.randn_like(one).half().float() / 4
    folder = tmp_path / "adapter"
    folder.mkdir()
    language.save_model(SimpleNamespace(model=model), given, folder)  # type: ignore[arg-type]
    torch.save(model.merge_and_unload().state_dict(), tmp_path / "merged.pt")
    return folder


def test_an_adapter_is_merged_once_as_peft_would(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = resolve(str(adapter), cache)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    theirs = torch.load(tmp_path / "merged.pt")
    assert set(ours) == set(theirs)
    for name, one in theirs.items():
        torch.testing.assert_close(ours[name], one, rtol=1e-2, atol=1e-2)
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], plain[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}

    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(adapter), cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


async def test_an_adapter_answers_by_its_own_name(
    adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    tuned, base = LocalModel(str(adapter), cache), LocalModel(str(tiny), cache)
    assert tuned.id == model_id(str(adapter), resolve(str(adapter), cache))
    assert tuned.id.startswith("adapter@")
    asked = [example(text).prompt for text in TEXTS]
    assert await tuned.choose(asked, ["yes", "no"]) != await base.choose(asked, ["yes", "no"])


def test_an_adapter_may_stand_on_an_adapter(adapter: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(adapter)})
    )
    (second / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    twice = AutoModelForCausalLM.from_pretrained(resolve(str(second), tmp_path)).state_dict()
    once = AutoModelForCausalLM.from_pretrained(resolve(str(adapter), tmp_path)).state_dict()
    assert any(not torch.equal(twice[name], once[name]) for name in once)


def test_an_adapter_of_ours_goes_by_its_name(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clh.models.weights._OURS", adapter.parent)
    folder = resolve("adapter", tmp_path / "cache")
    assert model_id("adapter", folder) == model_id(str(adapter), folder)
    with pytest.raises(ModelError, match="one of adapter, all-MiniLM"):
        resolve("another", tmp_path)


def without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def cut_short(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def with_a_head(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(2)}, adapter / "adapter_model.safetensors")


def of_embeddings(adapter: Path) -> None:
    table = "base_model.model.model.embed_tokens.lora_{}.weight"
    weights = load_file(adapter / "adapter_model.safetensors")
    rows, width = 320, 32
    more = {table.format("A"): torch.zeros(4, width), table.format("B"): torch.zeros(rows, 4)}
    save_file(weights | more, adapter / "adapter_model.safetensors")


def configure(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def of_another_base(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.9"): one for name, one in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")


def of_another_width(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    wider = {
        name: torch.cat([one, one]) if "lora_B" in name else one for name, one in weights.items()
    }
    save_file(wider, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda adapter: (adapter / "adapter_config.json").write_text("{}"), "not a complete LoRA"),
        (lambda adapter: configure(adapter, r=0), "not a complete LoRA adapter"),
        (without_weights, "not a complete LoRA adapter: it needs adapter_config.json and adapter_"),
        (cut_short, "does not fit its base tiny"),
        (with_a_head, "is more than plain LoRA: merge it with PEFT"),
        (of_embeddings, "is more than plain LoRA: merge it with PEFT"),
        (lambda adapter: configure(adapter, r=8), "is more than plain LoRA: merge it with PEFT"),
        (of_another_base, "does not fit its base tiny"),
        (of_another_width, "does not fit its base tiny"),
    ],
)
def test_an_adapter_that_cannot_be_merged(
    adapter: Path, tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(adapter)
    with pytest.raises(ModelError, match=message) as error:
        resolve(str(adapter), tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*-merged"))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"q_proj": 64}},
        {"rank_pattern": {"q_proj": 8}},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"a_setting_of_tomorrow": 1},
    ],
)
def test_an_adapter_of_another_formula_is_refused(
    adapter: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    configure(adapter, **changes)
    [setting] = changes
    with pytest.raises(
        ModelError, match=rf"is more than plain LoRA \({setting}\): merge it with PEFT"
    ):
        resolve(str(adapter), tmp_path / "cache")


def test_an_adapter_as_peft_itself_saves_it_is_merged(
    adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), adapter)
    model.save_pretrained(tmp_path / "by_peft")
    ours = AutoModelForCausalLM.from_pretrained(resolve(str(adapter), tmp_path / "cache"))
    theirs = AutoModelForCausalLM.from_pretrained(
        resolve(str(tmp_path / "by_peft"), tmp_path / "cache")
    )
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name])
