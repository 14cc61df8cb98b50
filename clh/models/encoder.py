"""Transformer encoders in ONNX Runtime: what the embedder and the reranker run on."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clh.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

GRAPHS = ("model.onnx", "onnx/model.onnx")  # ours, and where sentence-transformers puts it
HEADERS = "safetensors_headers"  # metadata of a graph whose weights lie in safetensors files

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CHUNK = 4096  # texts tokenised at once: their tokens are all that a long note keeps in memory


class Batch(NamedTuple):
    """What the graph gives for some of the texts."""

    rows: NDArray[np.intp]  # the places of the texts among those given
    mask: NDArray[np.int64]  # (texts, tokens): 0 for padding
    output: NDArray[np.float32]


class Encoder:
    """A tokenizer and the ONNX graph that reads its tokens."""

    def __init__(
        self, session: "InferenceSession", tokenizer: "Tokenizer", batch_tokens: int
    ) -> None:
        """Run `session` on batches of at most `batch_tokens` tokens, or of one text."""
        self._session, self._tokenizer = session, tokenizer
        self._batch_tokens = batch_tokens
        self._inputs = [one.name for one in session.get_inputs()]
        self._output = session.get_outputs()[0]

    @classmethod
    def load(cls, folder: Path, max_tokens: int, batch_tokens: int) -> Self:
        """The encoder in `folder`; texts, or pairs together, are cut at `max_tokens`.

        Raises:
            ModelError: there is no graph, it does not belong to the weights beside it, a file is
                damaged, or `max_tokens` are more than the encoder reads.

        """
        graph = next((folder / name for name in GRAPHS if (folder / name).is_file()), None)
        if graph is None:
            raise ModelError(
                f"{folder} holds no model.onnx: run `python experiments/export_onnx.py "
                f"--model {folder} --output OUT`, then name OUT instead"
            )
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tokenizer = _open_tokenizer(folder / "tokenizer.json", max_tokens)
            session = _open_session(graph)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"cannot load an encoder from {folder}: {reason}") from error
        _check_headers(session, graph.parent)
        unknown = {one.name for one in session.get_inputs()} - {*_INPUTS}
        if unknown or not isinstance(session.get_outputs()[0].shape[-1], int):
            raise ModelError(f"{graph} is not the graph of an encoder: export it anew")
        most = config.get("max_position_embeddings", max_tokens)
        if max_tokens > most:
            raise ModelError(f"{folder} reads at most {most} tokens: lower max_tokens to that")
        return cls(session, tokenizer, batch_tokens)

    @property
    def width(self) -> int:
        """The last dimension of the output."""
        return int(self._output.shape[-1])

    def run(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Iterator[Batch]:
        """The graph's first output for all texts or pairs, in batches of similar length."""
        for start in range(0, len(texts), _CHUNK):
            read = self._tokenizer.encode_batch_fast(texts[start : start + _CHUNK])
            lengths = np.array([len(one) for one in read])
            for rows in _batches(lengths, self._batch_tokens):
                inputs = _padded([read[row] for row in rows])
                given = {name: inputs[name] for name in self._inputs}
                [output] = self._session.run([self._output.name], given)
                yield Batch(rows + start, inputs["attention_mask"], output)


def _batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.intp]]:
    """Places of texts, shortest first, as many as fit into `batch_tokens` with their padding."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        following = (end + 1 - start) * lengths[order[end]] if end < len(order) else np.inf
        if following > batch_tokens:
            yield order[start:end]
            start = end


def _padded(read: "Sequence[Encoding]") -> dict[str, NDArray[np.int64]]:
    """The graph's inputs, each of shape (texts, tokens of the longest)."""
    shape = len(read), max(len(one) for one in read)
    inputs = {name: np.zeros(shape, np.int64) for name in _INPUTS}
    for row, one in enumerate(read):
        inputs["input_ids"][row, : len(one)] = one.ids
        inputs["attention_mask"][row, : len(one)] = 1
        inputs["token_type_ids"][row, : len(one)] = one.type_ids
    return inputs


def _open_tokenizer(file: Path, max_tokens: int) -> "Tokenizer":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _open_session(graph: Path) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # As many threads as other numeric libraries use: the variable's, or one for each core.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdigit() else 0
    # Threads that wait in a loop would take the cores from whatever runs between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # More than this fuses layers into ones that are slower on a CPU (SkipLayerNormalization).
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = basic
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _check_headers(session: "InferenceSession", folder: Path) -> None:
    """ModelError if the weights are other files than the graph has the offsets of."""
    written = session.get_modelmeta().custom_metadata_map.get(HEADERS, "{}")
    expected: dict[str, Any] = json.loads(written)
    for name, digest in expected.items():
        if header_digest(folder / name) != digest:
            raise ModelError(
                f"{folder}/model.onnx was made for another {name}: run "
                f"`python experiments/export_onnx.py --model {folder}`"
            )


def header_digest(file: Path) -> str:
    """The SHA-256 of a safetensors file's header: names, types, shapes and offsets of all tensors.

    Source: the format, 8 bytes of length (little-endian), then the header in JSON, then the data.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return hashlib.sha256(stream.read(length)).hexdigest()
