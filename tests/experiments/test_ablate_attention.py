"""The ablation of attention: its files and figures, and what it says of evidence."""

import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from clh.config import Settings
from clh.corpora import Evidence, Example
from clh.errors import InputError
from clh.evaluation import recipes
from clh.evaluation.metrics import Scored, compare, set_scores
from clh.evaluation.stages import read_predictions
from clh.icd.tabular import CodeSystem
from clh.models.embedder import Vectors
from clh.retrieval.lexical import searchable
from clh.schema import Note
from clh.training.attention import evaluation
from clh.training.attention.head import LabelAttention, Tokens
from clh.training.attention.shortlist import CodeVectors, Retriever, Shortlist
from clh.training.attention.training import AttentionRecipe
from clh.training.towers import open_tower
from tests.fakes import tiny_encoder, toy_system

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "ablate_attention.py"
RECIPES = {
    name: ROOT / "experiments" / "recipes" / f"attention_{name}.yaml"
    for name in ("laa", "mean", "plain")
}
SYSTEM = toy_system()
TRAIN = [
    (["R05.9"], "Cough since monday."),
    (["M25.561", "I10"], "Pain in right knee. Essential hypertension."),
    (["J18.9", "R05.9"], "Pneumonia, and cough. He went home."),
    (["E11.9"], "Type 2 diabetes mellitus."),
]
DEV = [
    (["R05.9", "J18.9"], "Pneumonia. Cough, unspecified."),
    (["M25.562"], "Pain in left knee, and no cough."),
    (["E11.9", "X99"], "Type 2 diabetes mellitus without complications."),
]


def load() -> ModuleType:
    spec = spec_from_file_location("ablate_attention", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ablate = load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, notes in (("train", TRAIN * 5), ("dev", DEV)):
        lines = [
            json.dumps({"id": f"{split}{number}", "text": text, "codes": codes}) + "\n"
            for number, (codes, text) in enumerate(notes)
        ]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


Run = Callable[..., Path]


class TinyTower:
    """A tower of the tiny encoder."""

    id = "tiny"

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        vectors: Vectors = self._model.encode(list(texts), normalize_embeddings=True)
        return vectors


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a recipe in few epochs on the toy system and a tiny encoder; returns the output."""
    model = open_tower(tiny_encoder(tmp_path / "encoder")).eval()
    tower = TinyTower(model)
    texts = [(SYSTEM.reported(code), text) for code, text in searchable(SYSTEM)]
    vectors = CodeVectors([code for code, _ in texts], tower.encode([text for _, text in texts]))

    def towers(settings: Settings, system: CodeSystem) -> Retriever:
        return Retriever(model, tower, 32, vectors, system)

    def start(name: str, *more: str) -> Path:
        values = yaml.safe_load(RECIPES[name].read_text())
        values |= {"shortlist": 15, "bootstrap": 50, "held_out": 0.2}
        if values["head"] is not None:
            values["head"] |= {"epochs": 3, "batch": 4}
        recipe, output = tmp_path / f"{name}.yaml", tmp_path / name
        recipe.write_text(yaml.safe_dump(values))
        flags = {"dataset": "jsonl", "data-dir": data, "split": "dev", "output": output}
        given = [f"--{flag}={value}" for flag, value in {**flags, "recipe": recipe}.items()]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given, *more])
        ablate.main()
        return output

    monkeypatch.setattr(Retriever, "load", towers)
    monkeypatch.setattr("clh.icd.tabular.load_tabular", lambda: SYSTEM)
    return start


def rows(output: Path, name: str) -> list[Scored]:
    return read_predictions(output / name, SYSTEM)


def test_the_recipes_differ_in_one_thing() -> None:
    laa, mean, plain = (recipes.read_recipe(file, AttentionRecipe) for file in RECIPES.values())
    assert laa.head is not None
    assert laa.head.pooling == "label-aware"
    assert mean == laa.model_copy(update={"head": laa.head.model_copy(update={"pooling": "mean"})})
    assert plain == laa.model_copy(update={"head": None})


def test_what_is_held_out_is_what_the_towers_held_out() -> None:
    recipe = recipes.read_recipe(RECIPES["laa"], AttentionRecipe)
    towers = yaml.safe_load((RECIPES["laa"].parent / "train_retriever.yaml").read_text())
    assert (recipe.held_out, recipe.seed) == (towers["held_out"], towers["seed"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_agree(run: Run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    output = run(name)
    result = json.loads((output / "metrics.json").read_text())
    config = json.loads((output / "config.json").read_text())
    assert (result["n_notes"], result["code_space"]) == (3, len(SYSTEM))
    assert config["config_hash"] == result["config_hash"]
    assert config["tower"] == "tiny"
    assert len(result["epochs"]) == (0 if name == "plain" else 4)
    assert result["evidence"] is None  # this corpus marks nothing

    sets, ranked = rows(output, "predictions.jsonl"), rows(output, "rankings.jsonl")
    gold = [{"J18.9", "R05.9"}, {"M25.562"}, {"E11.9", "X99"}]
    assert [set(note.gold) for note in sets] == [set(note.gold) for note in ranked] == gold
    for final, whole in zip(sets, ranked, strict=True):
        assert whole.ranking == list(whole.predicted)
        assert len(whole.predicted) == 15
        reached = {c: s for c, s in whole.predicted.items() if s >= result["threshold"]}
        assert final.predicted == reached
    assert result["micro_f1"] == pytest.approx(set_scores(sets)["micro_f1"])
    hits = [len(set(note.ranking[:10]) & note.gold) / len(note.gold) for note in ranked]
    assert result["recall@10"] == pytest.approx(sum(hits) / 3)
    pairs = [(s, c in note.gold) for note in ranked for c, s in note.predicted.items()]
    better = [(a > b) + (a == b) / 2 for a, right in pairs if right for b, no in pairs if not no]
    assert result["roc_auc"] == pytest.approx(sum(better) / len(better))
    printed = capsys.readouterr().out
    for metric in ("micro_f1", "roc_auc", "precision@5", "recall@50"):
        low, high = result["ci95"][metric]
        assert low <= result[metric] <= high
        assert f"{metric:12} {result[metric]:.3f}" in printed


def test_unseen_codes_are_those_that_no_training_note_has(run: Run) -> None:
    output = run("plain")
    result = json.loads((output / "metrics.json").read_text())
    assert result["unseen"]["gold"] == 2  # M25.562 and X99
    first, second = (note.ranking for note in rows(output, "rankings.jsonl")[1:])
    assert "X99" not in second
    assert result["unseen"]["recall@10"] == ("M25.562" in first[:10]) / 2


def test_runs_can_be_compared_and_repeated(run: Run, tmp_path: Path) -> None:
    plain, laa = (rows(run(name), "rankings.jsonl") for name in ("plain", "laa"))
    assert compare(laa, plain, "map", samples=50).difference == pytest.approx(
        compare(plain, laa, "map", samples=50).difference * -1
    )
    (tmp_path / "laa").rename(tmp_path / "before")
    assert rows(run("laa"), "rankings.jsonl") == laa


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--track", "wandb"], "takes no --track"),
        (["--policy", "mention"], "takes no --policy"),
        (["--split", "train"], "the train split is what a head learns from"),
        (["--dataset", "nothing"], "there is no dataset 'nothing'"),
    ],
)
def test_flags_that_make_no_sense_are_refused(run: Run, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run("plain", *flags)


# --- the parts ------------------------------------------------------------------------------------

TEXT = "Dry cough. Knee pain, left. No fever."


def marked() -> Example:
    """Cough is marked in the first sentence, pain in two words of the second; I10 nowhere."""
    note = Note(id="n", text=TEXT)
    evidence = (
        Evidence(code="R05.9", note_id="n", spans=(note.span(0, 10),)),
        Evidence(code="M25.562", note_id="n", spans=(note.span(11, 20),)),
    )
    codes = ("R05.9", "M25.562", "I10", "J18.9")
    return Example(id="n", notes=(note,), codes=codes, evidence=evidence, split="dev")


def found(*closest: tuple[int, int]) -> Shortlist:
    """Three gold codes and another, and the ten words and stops of the note."""
    starts = [0, 4, 9, 11, 16, 20, 22, 26, 28, 31]
    spans = np.array([(at, at + 1) for at in starts])
    return Shortlist(
        id="n",
        gold=frozenset({"R05.9", "M25.562", "I10", "J18.9"}),
        tokens=Tokens(torch.eye(10, 32).half(), spans),
        codes=("R05.9", "M25.562", "I10", "E11.9"),
        vectors=torch.eye(4, 32),
        similarity=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        closest=np.array(closest),
        labels=torch.tensor([1.0, 1.0, 1.0, 0.0]),
    )


@pytest.mark.parametrize(
    ("closest", "share"),
    [
        ([(0, 10), (11, 27), (0, 10), (0, 10)], 1.0),
        ([(11, 27), (11, 27), (0, 10), (0, 10)], 0.5),
        ([(10, 11), (20, 27), (0, 10), (0, 10)], 0.0),  # beside what is marked
    ],
)
def test_evidence_is_right_where_annotators_marked_the_code(
    closest: list[tuple[int, int]], share: float
) -> None:
    scores = evaluation.score_evidence([marked()], [found(*closest)], None, SYSTEM, 20, 0)
    assert scores["gold_with_evidence"] == 2  # nothing is marked for I10, J18.9 was not found
    assert scores["right"] == share
    assert scores["chance"] == pytest.approx((3 / 10 + 2 / 10) / 2)


def test_attention_points_at_tokens(tmp_path: Path) -> None:
    head = LabelAttention(open_tower(tiny_encoder(tmp_path)), 32)
    with torch.no_grad():  # each code looks for the token of its own row
        head.query.weight.copy_(torch.eye(32))
        head.key.weight.copy_(torch.eye(32))
    note = found(*[(0, 1)] * 4)
    scores = evaluation.score_evidence([marked()], [note], head, SYSTEM, 20, 0)
    assert scores["right"] == 0.5  # the first word is marked for R05.9, the second not for M25.562
    uniform = LabelAttention(open_tower(tmp_path), 32, uniform=True)
    assert evaluation.score_evidence([marked()], [note], uniform, SYSTEM, 20, 0) is None


def scored(**predicted: Any) -> Scored:
    return Scored("n", frozenset({"A"}), predicted)


def test_roc_auc_is_over_what_is_ranked() -> None:
    notes = [scored(A=0.9, B=0.5, C=0.1), scored(B=0.95, A=0.5)]
    area, (low, high) = evaluation.pooled_roc_auc(notes, 200, 0)
    assert area == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0) / 6)
    assert low <= area <= high
    with pytest.raises(InputError, match="no gold code is among those found"):
        evaluation.pooled_roc_auc([scored(B=0.5)], 200, 0)
