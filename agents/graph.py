"""The graph: nodes and edges, nothing else."""

from langgraph.graph import END, START, StateGraph

from agents.analyze import analyze
from agents.assign import assign
from agents.context import Context
from agents.locate import locate
from agents.state import Input, Output, State, begin, finish, unless_failed
from agents.verify import verify

builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)

builder.add_node("begin", begin)
builder.add_node("analyze", analyze)
builder.add_node("locate", locate)
builder.add_node("verify", verify)
builder.add_node("assign", assign)
builder.add_node("finish", finish)

builder.add_edge(START, "begin")
builder.add_edge("begin", "analyze")
builder.add_conditional_edges("analyze", unless_failed("locate"), ["locate", "finish"])
builder.add_conditional_edges("locate", unless_failed("verify"), ["verify", "finish"])
builder.add_conditional_edges("verify", unless_failed("assign"), ["assign", "finish"])
builder.add_edge("assign", "finish")
builder.add_edge("finish", END)

graph = builder.compile(name="clh")
