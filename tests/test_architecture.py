"""Imports point one way, without circles; run time and research time are different rooms."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("clh", "agents", "prompts")
RESEARCH = ("clh.evaluation", "clh.training", "clh.corpora", "agents.evaluation", "agents.training")
RESEARCH_LIBRARIES = {
    *("argparse", "tqdm", "sklearn", "scipy", "matplotlib", "torch", "transformers", "datasets"),
    *("trl", "peft", "accelerate", "sentence_transformers", "spacy", "pandas", "pyarrow", "yaml"),
}
# Language models that run in this process need torch; so does preparing their weights.
MAY_USE_TORCH = ("clh.models.language.local", "clh.models.weights")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports(node: ast.AST, lazy: bool = True) -> Iterator[str]:
    """What a file imports at run time; without `lazy`, only what it imports when it is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield whole if whole in FILES else child.module
        elif not is_type_checking(child) and (
            lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            yield from imports(child, lazy)


def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


RUN_TIME = [module for module in FILES if not is_in(module, RESEARCH)]


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(parse(module), lazy=False) if name in FILES} - {module}
        for module in FILES
    }
    assert len([*TopologicalSorter(graph).static_order()]) == len(FILES)


@pytest.mark.parametrize("module", RUN_TIME)
def test_what_a_note_passes_through_imports_no_research(module: str) -> None:
    found = {*imports(parse(module))}
    libraries = {name.partition(".")[0] for name in found} & RESEARCH_LIBRARIES
    if is_in(module, MAY_USE_TORCH):
        libraries -= {"torch", "transformers", "accelerate", "peft"}
    assert libraries == set()
    assert [name for name in found if is_in(name, RESEARCH)] == []


@pytest.mark.parametrize(
    "module", [module for module in FILES if is_in(module, ("clh", "prompts"))]
)
def test_only_what_serves_people_uses_the_agents(module: str) -> None:
    if not is_in(module, ("clh.cli", "clh.server", "clh.engines")) and module != "clh":
        assert not any(is_in(name, ("agents",)) for name in imports(parse(module)))
