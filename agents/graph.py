"""The graph: nodes and edges, nothing else."""

from collections.abc import Callable, Mapping
from itertools import pairwise

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agents.node import Node, failed
from agents.state import Input, State
from clh.schema import Agent

Graph = CompiledStateGraph[State, None, Input, State]


def build_graph(agents: Mapping[Agent, Node], begin: Node, finish: Node) -> Graph:
    """The agents in order, between `begin` and `finish`; a failure leads straight to `finish`.

    For the whole pipeline `agents` has all four; an agent alone, on gold input, is a graph of one.
    """
    builder: StateGraph[State, None, Input, State] = StateGraph(State, input_schema=Input)
    order = ["begin", *agents, "finish"]
    for name, node in zip(order, [begin, *agents.values(), finish], strict=True):
        builder.add_node(name, node)
    builder.add_edge(START, "begin")
    builder.add_edge("begin", order[1])
    for name, following in pairwise(order[1:]):
        builder.add_conditional_edges(name, _unless_failed(following), [following, "finish"])
    builder.add_edge("finish", END)
    return builder.compile(name="clh")


def _unless_failed(following: str) -> Callable[[State], str]:
    def choose_edge(state: State) -> str:
        return "finish" if failed(state) else following

    return choose_edge
