"""A causal language model that runs in this process."""

import asyncio
import copy
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from clh.errors import InputError, ModelError, ReplyError, requires_extra
from clh.models.language.base import MAX_THOUGHT, Messages, Reply, SchemaT
from clh.models.weights import fast_dtype, model_id, pick_device, resolve, silence_bars

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher
    from transformers import DynamicCache

_log = logging.getLogger(__name__)

# In Lark, as llguidance reads it. The line break keeps the tokens of thought and reply apart.
_THINKING = rf'start: "<think>" /[^<]{{0,{MAX_THOUGHT}}}/ "</think>\n"'

T = TypeVar("T")


class LocalModel:
    """A causal language model that runs in this process, on the GPU if there is one.

    Decoding is greedy, so the same conversations get the same answers. Message contents reach the
    model as they are and as text only: `<|im_end|>` in a note ends no turn.

    Args:
        name: any instruct model that `clh.models.weights.resolve` finds.
        cache_dir: where converted weights are kept.
        max_tokens: the length of a reply after which `chat` closes its JSON, with a warning.
        batch_size: how many sequences are computed at once.
        think: whether a short `<think>…</think>` comes before each answer and each choice.
        dtype: of weights and activations; by default bfloat16 where the device computes in it, else
            float32.

    Raises:
        ModelError: there is no such model, it is not a chat model, or an extra is not installed.

    """

    id: str
    device: str  # "cpu" or "cuda"

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
        with requires_extra("local-llm"):
            import llguidance.hf
            from safetensors import SafetensorError
            from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

        folder = resolve(name, cache_dir)
        silence_bars()
        self.id = model_id(name, folder) + (" thinking" if think else "")
        self.device = pick_device()
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._thinks = think
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or fast_dtype(self.device)
            )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"cannot load a language model from {folder}: {reason}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or not tokenizer.chat_template:
            raise ModelError(f"{name} has no tokenizer for chat: name an instruct model")
        self._tokenizer = tokenizer
        self._model = model.to(self.device).eval()  # type: ignore[arg-type]
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
        replies = await self._run(lambda: self._generate(conversations, schema.model_json_schema()))
        return [Reply.try_parse(reply, schema) for reply in replies]

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float] | ReplyError]:
        """See `LanguageModel.choose`; an option's probability is that of all its tokens."""
        rows = await self._run(lambda: self._score(conversations, options))
        return [
            row
            if all(map(math.isfinite, row))
            else ReplyError(f"{self.id} gave no probabilities: its weights may be damaged")
            for row in rows
        ]

    async def think(self, conversations: Sequence[Messages]) -> list[str]:
        """What the model writes before each answer, with its marks; "" unless it is to think."""
        thoughts = await self._run(lambda: self._think(list(map(self._encode, conversations))))
        return list(map(self._decode, thoughts))

    async def _run(self, work: Callable[[], T]) -> T:
        import torch

        def run() -> T:
            with torch.inference_mode():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._worker, run)

    def _generate(self, conversations: Sequence[Messages], schema: dict[str, Any]) -> list[str]:
        """The JSON that answers each conversation, after any thinking."""
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
        matcher = self._matcher(grammar)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise InputError(f"cannot constrain replies to the schema: {reason}")
        prompts = list(map(self._encode, conversations))
        thoughts = self._think(prompts)
        prompts = [[*prompt, *thought] for prompt, thought in zip(prompts, thoughts, strict=True)]
        replies = self._generate_ids(prompts, grammar, self._max_tokens)
        for reply in replies:
            if len(reply) > self._max_tokens:
                _log.warning("a reply of %s was closed after %d tokens", self.id, self._max_tokens)
        return [
            self._decode(thought + reply) for thought, reply in zip(thoughts, replies, strict=True)
        ]

    def _think(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The thought that comes after each prompt, empty unless the model is to think."""
        if not self._thinks:
            return [[] for _ in prompts]
        return self._generate_ids(prompts, _THINKING, MAX_THOUGHT)

    def _generate_ids(
        self, prompts: Sequence[list[int]], grammar: str, max_tokens: int
    ) -> list[list[int]]:
        """The tokens that follow each prompt.

        After `max_tokens` a reply is closed as soon as the grammar permits; where the context
        window ends it is cut.
        """
        shared, prefix = self._read_prefix(prompts)
        self._check_fits(max(map(len, prompts), default=0) + max_tokens)
        generated: list[list[int]] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = [prompt[shared:] for prompt in prompts[start : start + self._batch_size]]
            generated += self._decode_batch(batch, prefix, grammar, max_tokens)
        return generated

    def _decode_batch(
        self, rows: Sequence[list[int]], prefix: "DynamicCache", grammar: str, max_tokens: int
    ) -> list[list[int]]:
        """The tokens that follow `prefix` and each row; all rows grow side by side."""
        import torch

        matchers = [self._matcher(grammar) for _ in rows]
        generated: list[list[int]] = [[] for _ in rows]
        unread = [[*row] for row in rows]
        closing_bias = self._closing_bias()
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(rows))
        # Row i of `mask` and of the cache belongs to `growing[i]`.
        mask = torch.ones(len(rows), cache.get_seq_length(), dtype=torch.long)
        growing = list(range(len(rows)))
        while True:
            for row in growing:  # tokens that the grammar leaves no choice about cost no step
                forced = matchers[row].compute_ff_tokens()
                matchers[row].consume_tokens(forced)
                generated[row] += forced
                unread[row] += forced
            # A row ends with its grammar, with the context window, or where its matcher gives up:
            # then its reply is cut, and does not parse.
            kept = [
                i
                for i, row in enumerate(growing)
                if not matchers[row].is_stopped()
                and int(mask[i].sum()) + len(unread[row]) < self._window
            ]
            if len(kept) < len(growing):
                growing, mask = [growing[i] for i in kept], mask[kept]
                cache.batch_select_indices(torch.tensor(kept, dtype=torch.long))
            if not growing:
                break
            # Padding stands to the left, so that each row's last token is in the last column.
            width = max(len(unread[row]) for row in growing)
            blanks = [width - len(unread[row]) for row in growing]
            padded = [[0] * blank + unread[row] for blank, row in zip(blanks, growing, strict=True)]
            new = torch.tensor([[0] * blank + [1] * (width - blank) for blank in blanks])
            mask = torch.cat([mask, new], dim=1)
            logits = self._forward(padded, cache, keep=1, mask=mask)[:, -1]
            for i, row in enumerate(growing):
                matcher = matchers[row]
                bias = closing_bias if len(generated[row]) >= max_tokens else 0
                allowed = torch.frombuffer(
                    bytearray(matcher.compute_logit_bias()), dtype=torch.uint8
                )
                token = int((logits[i] + bias).masked_fill(allowed == 0, -torch.inf).argmax())
                matcher.consume_token(token)
                generated[row].append(token)
                unread[row] = [token]
        return generated

    def _matcher(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher

        # Its warnings on standard error would quote what the model wrote, and so the note.
        return LLMatcher(self._grammar_tokenizer, grammar, log_level=0)

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
        """The probability of each option (columns) as the answer to each conversation (rows)."""
        import torch

        answers = [self._encode_text(option) for option in options]
        _check_distinct(options, answers)
        if not conversations:
            return []
        prompts = [self._encode(messages) for messages in conversations]
        self._check_fits(max(map(len, prompts)))

        thoughts = self._think(prompts)
        prompts = [[*prompt, *thought] for prompt, thought in zip(prompts, thoughts, strict=True)]
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
                    start = len(prompts[c]) - 1 - first
                    tokens = torch.tensor(answers[o])
                    steps = logits[r, start : start + len(tokens)].log_softmax(-1)
                    scores[c, o] = steps.gather(-1, tokens[:, None]).sum()
        probabilities: list[list[float]] = scores.double().softmax(-1).tolist()
        return probabilities

    def _read_prefix(self, prompts: Sequence[list[int]]) -> tuple[int, "DynamicCache"]:
        """The number of tokens that all prompts begin with, and the cache after reading them.

        At least the last token of each prompt is left to read.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        if not prompts:
            return 0, cache
        shared = min(_common_prefix(prompts), *(len(prompt) - 1 for prompt in prompts))
        if shared:
            self._forward([prompts[0][:shared]], cache, keep=1)
        return shared, cache

    def _forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: "DynamicCache",
        keep: int,
        mask: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """The logits after each of the last `keep` tokens of equally long rows, in float32.

        The rows continue what `cache` holds, and are added to it. `mask` (rows, tokens of cache and
        row) is 0 for padding, which other tokens neither attend to nor count.
        Shape: rows, keep, vocabulary.
        """
        import torch

        ids = torch.tensor(rows, device=self.device)
        positions = None
        if mask is not None:
            mask = mask.to(self.device)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # The cache by its place: releases of transformers differ in what they call it.
        output = self._model(ids, mask, positions, cache, use_cache=True, logits_to_keep=keep)
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
