"""Stand-ins for what is slow or far away."""

import hashlib
import re
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from clh.errors import ReplyError
from clh.icd.tabular import CodeSystem, Entry, Heading
from clh.models.embedder import Vectors
from clh.models.language import Messages, Reply, SchemaT
from clh.retrieval.lexical import content_words


class QueuedModel:
    """A language model that answers from queues, in order, and remembers what it was asked.

    Args:
        replies: for `chat`: an object is the value of the reply, a string its raw text, and an
            exception is raised.
        probabilities: for `choose`: the row of one conversation each, or the error in its place.
    """

    id = "queued"

    def __init__(
        self,
        replies: Iterable[BaseModel | str | Exception] = (),
        probabilities: Iterable[Sequence[float] | ReplyError] = (),
    ) -> None:
        self._replies = deque(replies)
        self._probabilities = deque(probabilities)
        self.chats: list[Messages] = []
        self.choices: list[Messages] = []

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """See `clh.models.language.LanguageModel.chat`."""
        self.chats.extend(conversations)
        return [self._reply(schema) for _ in conversations]

    def _reply(self, schema: type[SchemaT]) -> Reply[SchemaT] | ReplyError:
        reply = self._replies.popleft()
        if isinstance(reply, ReplyError):
            return reply
        if isinstance(reply, Exception):
            raise reply
        return Reply.try_parse(
            reply.model_dump_json() if isinstance(reply, BaseModel) else reply, schema
        )

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float] | ReplyError]:
        """See `clh.models.language.LanguageModel.choose`."""
        self.choices.extend(conversations)
        return [self._row(len(options)) for _ in conversations]

    def _row(self, length: int) -> list[float] | ReplyError:
        row = self._probabilities.popleft()
        if isinstance(row, ReplyError):
            return row
        if len(row) != length:
            raise AssertionError(f"a queued row of {len(row)} does not fit {length} options")
        return list(row)


class ToyTower:
    """A tower without weights: texts lie as close as they share content words."""

    id = "toy@00000000"
    dimensions = 384

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """See `clh.models.embedder.Embedder.encode`; texts without content share a direction."""
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row] = sum(map(self._direction, sorted(content_words(text)) or [""]))
            vectors[row] /= np.linalg.norm(vectors[row])
        if progress is not None and texts:
            progress(len(texts))
        return vectors

    def _direction(self, word: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        return np.random.default_rng(seed).standard_normal(self.dimensions, dtype=np.float32)


_CHAPTERS = {
    "E": Heading("4", "Endocrine, nutritional and metabolic diseases"),
    "I": Heading("9", "Diseases of the circulatory system"),
    "J": Heading("10", "Diseases of the respiratory system"),
    "M": Heading("13", "Diseases of the musculoskeletal system and connective tissue"),
    "R": Heading("18", "Symptoms, signs and abnormal clinical and laboratory findings"),
    "S": Heading("19", "Injury, poisoning and certain other consequences of external causes"),
    "Z": Heading("21", "Factors influencing health status and contact with health services"),
}
_BLOCKS = {
    "E11": Heading("E08-E13", "Diabetes mellitus"),
    "I10": Heading("I10-I1A", "Hypertensive diseases"),
    "I50": Heading("I30-I5A", "Other forms of heart disease"),
    "J18": Heading("J09-J18", "Influenza and pneumonia"),
    "M25": Heading("M20-M25", "Other joint disorders"),
    "R05": Heading("R00-R09", "Symptoms of the circulatory and respiratory systems"),
    "R07": Heading("R00-R09", "Symptoms of the circulatory and respiratory systems"),
    "S83": Heading("S80-S89", "Injuries to the knee and lower leg"),
    "Z80": Heading("Z77-Z99", "Family and personal history"),
    "Z85": Heading("Z77-Z99", "Family and personal history"),
}
_TITLES = {
    "E11": "Type 2 diabetes mellitus",
    "E11.6": "Type 2 diabetes mellitus with other specified complications",
    "E11.65": "Type 2 diabetes mellitus with hyperglycemia",
    "E11.9": "Type 2 diabetes mellitus without complications",
    "I10": "Essential (primary) hypertension",
    "I50": "Heart failure",
    "I50.2": "Systolic (congestive) heart failure",
    "I50.20": "Unspecified systolic (congestive) heart failure",
    "I50.21": "Acute systolic (congestive) heart failure",
    "I50.22": "Chronic systolic (congestive) heart failure",
    "I50.9": "Heart failure, unspecified",
    "J18": "Pneumonia, unspecified organism",
    "J18.9": "Pneumonia, unspecified organism",
    "M25": "Other joint disorder, not elsewhere classified",
    "M25.5": "Pain in joint",
    "M25.56": "Pain in knee",
    "M25.561": "Pain in right knee",
    "M25.562": "Pain in left knee",
    "M25.569": "Pain in unspecified knee",
    "R05": "Cough",
    "R05.1": "Acute cough",
    "R05.9": "Cough, unspecified",
    "R07": "Pain in throat and chest",
    "R07.0": "Pain in throat",
    "R07.9": "Chest pain, unspecified",
    "S83": "Dislocation and sprain of joints and ligaments of knee",
    "S83.4": "Sprain of collateral ligament of knee",
    "S83.41": "Sprain of medial collateral ligament of knee",
    "S83.411": "Sprain of medial collateral ligament of right knee",
    "S83.412": "Sprain of medial collateral ligament of left knee",
    "S83.419": "Sprain of medial collateral ligament of unspecified knee",
    "Z80": "Family history of primary malignant neoplasm",
    "Z80.3": "Family history of malignant neoplasm of breast",
    "Z80.9": "Family history of malignant neoplasm, unspecified",
    "Z85": "Personal history of malignant neoplasm",
    "Z85.3": "Personal history of malignant neoplasm of breast",
    "Z85.9": "Personal history of malignant neoplasm, unspecified",
}
_NOTES: dict[str, dict[str, Any]] = {
    "E11": {
        "includes": ("diabetes NOS",),
        "excludes1": ("gestational diabetes (O24.4-)",),
        "use_additional_code": ("insulin (Z79.4)",),
    },
    "I10": {
        "includes": (
            "high blood pressure",
            "hypertension (arterial) (benign) (essential) (malignant) (primary) (systemic)",
        ),
    },
    "I50.2": {"inclusion_terms": ("Heart failure with reduced ejection fraction [HFrEF]",)},
    "I50.9": {"inclusion_terms": ("Congestive heart disease", "Congestive heart failure NOS")},
    "R05": {"excludes1": ("smoker's cough (J41.0)",)},
    "S83.41": {"inclusion_terms": ("Sprain of tibial collateral ligament",)},
}
_ENCOUNTERS = {"A": "initial encounter", "D": "subsequent encounter", "S": "sequela"}


def toy_system() -> CodeSystem:
    """Ten categories in the book's words: with a side, with a 7th character, with a default."""

    def entry(code: str, title: str) -> Entry:
        parent = code[:-1].rstrip(".") if len(code) > len("I10") else None
        injury = code.startswith("S") and len(code) <= len("S83.411")
        return Entry(
            code=code,
            title=title,
            parent=parent,
            chapter=_CHAPTERS[code[0]],
            block=_BLOCKS[code[:3]],
            seventh_characters=_ENCOUNTERS if injury else {},
            **_NOTES.get(code, {}),
        )

    entries: list[Entry] = []
    for code, title in _TITLES.items():
        entries.append(entry(code, title))
        if len(code) == len("S83.411") and code.startswith("S"):
            entries += [entry(code + end, f"{title}, {said}") for end, said in _ENCOUNTERS.items()]
    return CodeSystem("toy", entries)


def toy_guidelines() -> dict[str, Any]:
    """The guidelines less what they say of codes, which a toy system lacks."""
    said = tomllib.loads((files("clh.icd.rules") / "guidelines.toml").read_text("utf-8"))
    return {rule: every if rule == "sections" else [] for rule, every in said.items()}


def tiny_encoder(folder: Path) -> Path:
    """Write a real, untrained encoder of a few thousand weights; returns its folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    titles = (toy_system()[code].title for code in toy_system())
    words = sorted(
        {word for title in titles for word in re.findall(r"\w+|[^\w\s]+", title.lower())}
    )
    vocabulary = {word: row for row, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
    ).save_pretrained(folder)
    return folder


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(folder: Path, texts: Iterable[str], window: int = 1024) -> Path:
    """Write a real, untrained chat model whose tokenizer knows some texts; returns its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHATML

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.5,  # far from uniform, so that mistakes show
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
