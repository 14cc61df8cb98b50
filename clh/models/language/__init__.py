"""Language models behind one small interface: `chat` for objects, `choose` for probabilities.

`LocalModel` runs in this process, `LangChainModel` asks any LangChain chat model, and `connect`
makes the latter for a server that speaks OpenAI's API, such as vLLM.
"""

import asyncio
import copy
import json
import logging
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict  # typing's own is for pydantic only from Python 3.12 on

from clh.config import ServerUrl
from clh.errors import InputError, ModelError, ReplyError, ServerError
from clh.models.weights import fast_dtype, model_id, resolve, silence_bars

if TYPE_CHECKING:
    import torch
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from transformers import DynamicCache

_log = logging.getLogger(__name__)

_THOUGHT = 240  # characters, some 60 tokens; a small model that thinks longer repeats itself
# In Lark, as llguidance reads it. The line break keeps the tokens of thought and reply apart.
_THINKING = rf'start: "<think>" /[^<]{{0,{_THOUGHT}}}/ "</think>\n"'

T = TypeVar("T")
SchemaT = TypeVar("SchemaT", bound=BaseModel)


class Message(TypedDict):
    """One turn of a conversation, as in OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = Sequence[Message]


@dataclass(frozen=True)
class Reply(Generic[SchemaT]):
    """What a model answered: the object, and the text it was read from, with any thought."""

    value: SchemaT
    raw: str

    @classmethod
    def parse(cls, raw: str, schema: type[SchemaT]) -> Self:
        """Reads `raw`, less the thought in front, as a `schema`.

        Raises:
            ReplyError: it is not JSON, or not such an object.

        """
        try:
            return cls(schema.model_validate_json(spoken(raw)), raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ReplyError(
                f"the reply is not a valid {schema.__name__}: {where}: {first['msg']}", raw
            ) from error

    @classmethod
    def hear(cls, raw: str, schema: type[SchemaT]) -> "Self | ReplyError":
        """As `parse`, but the error is what comes back."""
        try:
            return cls.parse(raw, schema)
        except ReplyError as error:
            return error


def spoken(raw: str) -> str:
    """A reply without the thought in front of it."""
    return re.sub(r"\A\s*<think>.*?</think>\s*", "", raw, flags=re.DOTALL)


def thinking(thought: str, reply: str) -> str:
    """A reply with a thought in front of it, cut to what `LocalModel` has room for.

    A `<` in the thought, such as of a note that says `</think>`, is left out.
    """
    said = textwrap.shorten(thought.replace("<", " "), _THOUGHT, placeholder="")
    return f"<think>{said}</think>\n{reply}"


class LanguageModel(Protocol):
    """What the agents ask of a language model."""

    @property
    def id(self) -> str:
        """Names the model in outputs and audit, for example `SmolLM2-135M-Instruct@7ef915c9`."""
        ...

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """The model's answer to each conversation, as an object of `schema`.

        Ask all questions about one note in one call: they are answered side by side. A model
        writes better, and stops surely, if the schema forbids extra fields and bounds its strings
        and lists.

        Returns:
            An answer for each conversation; the error for one that is no such object.

        Raises:
            InputError: a conversation does not fit the model's context window.
            ServerError: the model cannot be reached.

        """
        ...

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        """How probably the model answers each conversation with each option.

        Ask all questions about one note in one call, each conversation beginning with the note:
        a prefix that all conversations share is computed only once.

        Returns:
            A row for each conversation, a column for each option; every row sums to 1, because
            probabilities are relative to the other options.

        Raises:
            InputError: one option begins another, or a conversation does not fit the model's
                context window.
            ReplyError: the model gives no probability to any option.
            ServerError: the model cannot be reached.

        """
        ...


class LocalModel:
    """A causal language model that runs in this process, on the GPU if there is one.

    Decoding is greedy, so the same conversations get the same answers. Message contents reach the
    model as they are and as text only: `<|im_end|>` in a note ends no turn.

    Args:
        name: any instruct model that `clh.models.resolve` finds.
        cache_dir: where converted weights are kept.
        max_tokens: the length of a reply after which `chat` closes its JSON, with a warning.
        batch_size: how many sequences are computed at once.
        think: whether a short `<think>…</think>` comes before each answer and each choice.
        dtype: of weights and activations; by default bfloat16 where the processor computes in it,
            else float32.

    Raises:
        ModelError: there is no such model, or it is no chat model.

    """

    id: str

    def __init__(
        self,
        name: str,
        cache_dir: Path,
        *,
        max_tokens: int = 1024,
        batch_size: int = 16,
        think: bool = False,
        dtype: "torch.dtype | None" = None,
    ) -> None:
        import llguidance.hf
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

        folder = resolve(name, cache_dir)
        silence_bars()
        self.id = model_id(name, folder) + (" thinking" if think else "")
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._think = think
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or fast_dtype())
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"cannot load a language model from {folder}: {reason}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or not tokenizer.chat_template:
            raise ModelError(f"{name} has no tokenizer for chat: name an instruct model")
        self._tokenizer = tokenizer
        self._model = model.to(self._device).eval()  # type: ignore[arg-type]
        config = self._model.config.get_text_config()
        self._window: int = config.max_position_embeddings
        self._grammar_tokenizer = llguidance.hf.from_tokenizer(
            self._tokenizer, n_vocab=config.vocab_size
        )
        # One worker thread: requests queue, and the event loop stays free.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clh-llm")

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """See `LanguageModel.chat`.

        A grammar made from the schema masks every token that cannot lead to a valid object.
        """
        raws = await self._run(lambda: self._generate(conversations, schema.model_json_schema()))
        return [Reply.hear(raw, schema) for raw in raws]

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        """See `LanguageModel.choose`; an option's probability is that of all its tokens."""
        return await self._run(lambda: self._score(conversations, options))

    async def think(self, conversations: Sequence[Messages]) -> list[str]:
        """What the model writes before each answer, marks and all; "" unless it is to think."""
        if not self._think:
            return [""] * len(conversations)
        prompts = list(map(self._encode, conversations))
        thoughts = await self._run(lambda: self._write(prompts, _THINKING, _THOUGHT))
        return list(map(self._decode, thoughts))

    async def _run(self, work: Callable[[], T]) -> T:
        import torch

        def run() -> T:
            with torch.inference_mode():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._worker, run)

    def _generate(self, conversations: Sequence[Messages], schema: dict[str, Any]) -> list[str]:
        from llguidance import LLMatcher

        # One way to write each object, that of json.dumps: whitespace would be room to ramble.
        grammar = LLMatcher.grammar_from_json_schema(
            schema,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
            },
        )
        prompts = list(map(self._encode, conversations))
        thoughts = self._ponder(prompts)
        asked = [[*one, *thought] for one, thought in zip(prompts, thoughts, strict=True)]
        replies = self._write(asked, grammar, self._max_tokens)
        for reply in replies:
            if len(reply) > self._max_tokens:
                _log.warning("a reply of %s was closed after %d tokens", self.id, self._max_tokens)
        return [self._decode(a + b) for a, b in zip(thoughts, replies, strict=True)]

    def _ponder(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The thought that comes after each prompt, empty unless the model is to think."""
        return self._write(prompts, _THINKING, _THOUGHT) if self._think else [[] for _ in prompts]

    def _write(self, prompts: Sequence[list[int]], grammar: str, most: int) -> list[list[int]]:
        """What comes after each prompt, closed after `most` tokens or cut at the window's end."""
        shared, prefix = self._read_prefix(prompts)
        self._check_fits(max(map(len, prompts), default=0) + most)
        written: list[list[int]] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = [one[shared:] for one in prompts[start : start + self._batch_size]]
            written += self._continue(batch, prefix, grammar, most)
        return written

    def _continue(
        self, rows: Sequence[list[int]], prefix: "DynamicCache", grammar: str, most: int
    ) -> list[list[int]]:
        """What comes after `prefix` and each row; all rows grow side by side."""
        import torch
        from llguidance import LLMatcher

        matchers = [LLMatcher(self._grammar_tokenizer, grammar) for _ in rows]
        written: list[list[int]] = [[] for _ in rows]
        unread = [[*row] for row in rows]
        closing = self._closing_bias()
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(rows))
        seen = torch.ones(len(rows), cache.get_seq_length(), dtype=torch.long)
        live = list(range(len(rows)))
        while True:
            for row in live:  # tokens that the grammar leaves no choice about cost no step
                forced = matchers[row].compute_ff_tokens()
                matchers[row].consume_tokens(forced)
                written[row] += forced
                unread[row] += forced
            kept = [
                place
                for place, row in enumerate(live)
                if not matchers[row].is_stopped()
                and int(seen[place].sum()) + len(unread[row]) < self._window
            ]
            if len(kept) < len(live):
                live, seen = [live[place] for place in kept], seen[kept]
                cache.batch_select_indices(torch.tensor(kept, dtype=torch.long))
            if not live:
                break
            # Padding stands to the left, so that each row's last token is in the last column.
            width = max(len(unread[row]) for row in live)
            blanks = [width - len(unread[row]) for row in live]
            padded = [[0] * blank + unread[row] for blank, row in zip(blanks, live, strict=True)]
            new = torch.tensor([[0] * blank + [1] * (width - blank) for blank in blanks])
            seen = torch.cat([seen, new], dim=1)
            scores = self._forward(padded, cache, keep=1, seen=seen)[:, -1]
            for place, row in enumerate(live):
                matcher = matchers[row]
                bias = closing if len(written[row]) >= most else 0
                mask = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                token = int((scores[place] + bias).masked_fill(mask == 0, -torch.inf).argmax())
                matcher.consume_token(token)
                written[row].append(token)
                unread[row] = [token]
        for matcher in matchers:
            if matcher.is_error():
                reason = matcher.get_error().partition("\n")[0]
                raise InputError(f"cannot constrain replies to the schema: {reason}")
        return written

    def _closing_bias(self) -> "torch.Tensor":
        """What to add to the logits so that, wherever the grammar permits, JSON is closed."""
        import torch

        # Quotes first: inside a string the other marks are allowed too, but end nothing.
        bias = torch.zeros(self._model.config.get_text_config().vocab_size)
        for rank, mark in enumerate([",", "]", "}", '"'], start=1):
            bias[self._encode_text(mark)] = rank * 1e6
        return bias

    def _score(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        import torch

        answers = [self._encode_text(option) for option in options]
        _check_distinct(options, answers)
        if not conversations:
            return []
        prompts = [self._encode(messages) for messages in conversations]
        self._check_fits(max(map(len, prompts)))

        thoughts = self._ponder(prompts)
        prompts = [[*one, *thought] for one, thought in zip(prompts, thoughts, strict=True)]
        shared, prefix = self._read_prefix(prompts)

        # An option's last token is predicted, never read: options of one token share a row.
        uses: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for c, prompt in enumerate(prompts):
            for o, answer in enumerate(answers):
                uses[(*prompt, *answer[:-1])].append((c, o))
        rows = sorted(uses, key=len)  # so that rows of a batch need little padding
        self._check_fits(len(rows[-1]))

        scores = torch.empty(len(prompts), len(answers))
        batches = iter(rows)
        while batch := list(islice(batches, self._batch_size)):
            width = len(batch[-1])
            first = min(len(prompts[c]) for row in batch for c, _ in uses[row]) - 1
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(len(batch))
            # Padding stands to the right, where no token that counts attends to it.
            padded = [[*row[shared:], *[0] * (width - len(row))] for row in batch]
            logits = self._forward(padded, cache, keep=width - first)
            for r, row in enumerate(batch):
                for c, o in uses[row]:
                    at = len(prompts[c]) - 1 - first
                    tokens = torch.tensor(answers[o])
                    steps = logits[r, at : at + len(tokens)].log_softmax(-1)
                    scores[c, o] = steps.gather(-1, tokens[:, None]).sum()
        probabilities: list[list[float]] = scores.double().softmax(-1).tolist()
        return probabilities

    def _read_prefix(self, prompts: Sequence[list[int]]) -> tuple[int, "DynamicCache"]:
        """How many tokens all prompts begin with, less their last ones, and what comes of these."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        shared = min(_common_prefix(prompts), *(len(one) - 1 for one in prompts)) if prompts else 0
        if shared:
            self._forward([prompts[0][:shared]], cache, keep=1)
        return shared, cache

    def _forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: "DynamicCache",
        keep: int,
        seen: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """The logits after each of the last `keep` tokens of equally long rows, in float32.

        The rows continue what `cache` holds, and are added to it. `seen`, a row for each, is 0 for
        tokens of cache and row that are padding, which others neither see nor count.
        Shape: rows, keep, vocabulary.
        """
        import torch

        ids = torch.tensor(rows, device=self._device)
        places = None
        if seen is not None:
            seen = seen.to(self._device)
            places = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # By its place, for releases of transformers differ in what they call the cache.
        output = self._model(ids, seen, places, cache, use_cache=True, logits_to_keep=keep)
        logits: torch.Tensor = output.logits.float().cpu()
        return logits

    def _encode(self, messages: Messages) -> list[int]:
        """The tokens of a conversation, up to where the model's answer begins.

        Only the chat template may write control tokens. So it is rendered around placeholders,
        and the contents, encoded as plain text, take their places.
        """
        placeholders = [
            {"role": message["role"], "content": f"\ue000{i}\ue000"}
            for i, message in enumerate(messages)
        ]
        rendered = cast(
            str,
            self._tokenizer.apply_chat_template(
                placeholders, tokenize=False, add_generation_prompt=True
            ),
        )
        ids: list[int] = []
        for i, piece in enumerate(re.split("\ue000([0-9]+)\ue000", rendered)):
            if i % 2:
                ids += self._encode_text(messages[int(piece)]["content"])
            else:
                ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        return ids

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def _check_fits(self, tokens: int) -> None:
        if tokens > self._window:
            raise InputError(
                f"conversation and reply take {tokens} tokens, but {self.id} reads only "
                f"{self._window}: send a shorter text, or use a model with a longer context"
            )


class LangChainModel:
    """Any LangChain chat model.

    `choose` needs one that returns log-probabilities as OpenAI's API does. It reads the first
    token of the answer, among the 20 most probable: an option that is not there counts as
    impossible, and options must differ in that token.

    A server applies the chat template itself. Whether it keeps control tokens in a note apart
    from its own is up to the server; `LocalModel` does.

    Args:
        model: the LangChain model; set it to temperature 0.
        id: what to report as the model's name.
        concurrency: how many requests one call has under way.

    """

    id: str

    def __init__(self, model: "BaseChatModel", id: str, *, concurrency: int = 16) -> None:
        self.id = id
        self._model = model
        self._concurrency = concurrency

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """See `LanguageModel.chat`."""
        # The schema as a dict: given the class, the client would parse, and lose a bad reply.
        model = self._model.with_structured_output(schema.model_json_schema(), include_raw=True)
        gate = asyncio.Semaphore(self._concurrency)

        async def ask(messages: Messages) -> Reply[SchemaT] | ReplyError:
            try:
                async with gate:
                    with _server_errors(self.id):
                        answer = await model.ainvoke(_turns(messages))
            except ReplyError as error:
                return error
            message: AIMessage = answer["raw"]  # type: ignore[index]  # a dict, by include_raw
            calls = message.tool_calls  # how models without a JSON mode answer
            return Reply.hear(json.dumps(calls[0]["args"]) if calls else message.text, schema)

        return await asyncio.gather(*map(ask, conversations))

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        """See `LanguageModel.choose`; an option's probability is that of its first token."""
        model = self._model.bind(logprobs=True, top_logprobs=20, max_tokens=1)
        gate = asyncio.Semaphore(self._concurrency)

        async def ask(messages: Messages) -> list[float]:
            async with gate:
                with _server_errors(self.id):
                    message = await model.ainvoke(_turns(messages))
            return self._read_options(message, options)

        return await asyncio.gather(*map(ask, conversations))

    def _read_options(self, message: "AIMessage", options: Sequence[str]) -> list[float]:
        tokens = (message.response_metadata.get("logprobs") or {}).get("content")
        if not tokens:
            raise ReplyError(f"{self.id} returned no log-probabilities", message.text)
        found = {top["token"]: math.exp(top["logprob"]) for top in tokens[0]["top_logprobs"]}
        firsts = [
            max(
                (token for token in found if token and option.startswith(token)),
                key=len,
                default="",
            )
            for option in options
        ]
        if any(token and firsts.count(token) > 1 for token in firsts):
            raise InputError(f"options must differ in their first token for {self.id}: {options}")
        masses = [found.get(token, 0.0) for token in firsts]
        total = sum(masses)
        if not total:
            raise ReplyError(f"{self.id} answered none of {list(options)}", message.text)
        return [mass / total for mass in masses]


def connect(
    base_url: str,
    model: str,
    *,
    api_key: str = "none",
    timeout: float = 60.0,
    retries: int = 2,
    max_tokens: int = 1024,
) -> LangChainModel:
    """The model named `model` on a server that speaks OpenAI's API; nothing is sent yet.

    Args:
        model: its name there.
        base_url: for example `http://localhost:8000/v1`.
        api_key: local servers take any.
        timeout: seconds to wait for one answer.
        retries: how often to ask again, each time after a longer pause, when the server is
            unreachable, overloaded or failing.
        max_tokens: the length after which a reply counts as cut off.

    """
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        base_url=base_url,
        model=model,
        api_key=SecretStr(api_key),
        timeout=timeout,
        max_retries=retries,
        max_completion_tokens=max_tokens,
        temperature=0,
    )
    return LangChainModel(chat, f"{model}@{ServerUrl(base_url)}")


def _turns(messages: Messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@contextmanager
def _server_errors(id: str) -> Iterator[None]:
    """Turns what the OpenAI client raises into errors that say what to do."""
    import openai

    try:
        yield
    except openai.APITimeoutError as error:
        raise ServerError(f"{id} did not answer in time: raise llm.timeout") from error
    except openai.APIConnectionError as error:
        raise ServerError(
            f"no server answers for {id}: start vLLM there, or set llm.base_url"
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ServerError(f"{id} refused the API key: set llm.api_key") from error
    except openai.NotFoundError as error:
        raise ServerError(f"{id} is not served there: set llm.model or llm.base_url") from error
    except openai.APIStatusError as error:
        reason = error.message.partition("\n")[0]
        raise ServerError(f"{id} failed, see the log of the server: {reason}") from error
    except openai.LengthFinishReasonError as error:
        raw = error.completion.choices[0].message.content or ""
        raise ReplyError(f"{id} was cut off before its reply was complete", raw) from error
    except openai.OpenAIError as error:
        raise ServerError(f"{id} failed: {error}") from error
    # The client checks no body that comes with status 200, and trips over what it lacks.
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ServerError(f"{id} does not speak OpenAI's API: set llm.base_url") from error


def _common_prefix(rows: Sequence[list[int]]) -> int:
    """The number of tokens that all rows begin with."""
    low, high = min(rows), max(rows)  # the two that differ earliest
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def _check_distinct(options: Sequence[str], answers: Sequence[list[int]]) -> None:
    for a, answer in enumerate(answers):
        if not answer:
            raise InputError("an option must not be empty")
        for b, other in enumerate(answers):
            if a != b and other[: len(answer)] == answer:
                raise InputError(f"option {options[a]!r} begins {options[b]!r}: word them apart")
