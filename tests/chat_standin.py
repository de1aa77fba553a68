"""Stand-ins for the counsellor's tests: a backend that says what it is told to, and a tiny random model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.chat.backends import Piece, Request, Usage


class ScriptedStream:
    def __init__(self, request: Request, text: str, logprob: float, fail: Exception | None = None):
        self.request, self.text, self.logprob, self.fail, self.usage = request, text, logprob, fail, Usage(7, 0)
        self.closed = False

    def __iter__(self):
        try:
            for word in re.findall(r"\S+\s*|\s+", self.text):
                self.usage = Usage(7, self.usage.completion_tokens + 1)
                yield Piece(word, 1, self.logprob)
            if self.fail:
                raise self.fail
        finally:
            self.closed = True

    def close(self):
        self.request.cancelled.set()


class ScriptedBackend:
    """Says the given texts one after another, the last one for ever; keeps what it was asked."""

    name, adapters = "scripted", ()

    def __init__(self, *texts: str, logprob: float = -1.0, context: int = 4096, fail: Exception | None = None):
        self.texts, self.logprob, self.context, self.fail = list(texts) or ["…"], logprob, context, fail
        self.asked: list[Request] = []
        self.streams: list[ScriptedStream] = []
        self.forgotten: list[str] = []

    def stream(self, requests: Sequence[Request]):
        made = []
        for request in requests:
            text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
            self.asked.append(request)
            made.append(ScriptedStream(request, text, self.logprob, self.fail))
        self.streams += made
        return made

    def count(self, messages):
        return sum(len(message["content"]) for message in messages)

    def score(self, messages, reply, adapter=None):
        return -1.0 if len(messages) > 1 else -2.0

    def forget(self, session):
        self.forgotten.append(session)

    def alive(self):
        return True

    def close(self):
        pass


def tiny_model(folder: Path, context: int = 512, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """A random Llama with a byte-level tokenizer and our chat template, as an ordinary model folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from pipeline.prompt import template

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["오늘 너무 힘들었어요. 괜찮아요, 이야기해 주셔서 고마워요."] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    fast.chat_template = template("gonggam")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, pad_token_id=0,
        bos_token_id=None, eos_token_id=4, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_adapter(model: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter that changes the tiny model visibly."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def bigram_memory(folder: Path, seal=None, **settings):
    """A memory store with character bigrams as vectors, so that it needs no model."""
    from langchain_core.embeddings import Embeddings

    from rag.memory import MemoryStore
    from rag.options import MemoryOptions

    class Bigrams(Embeddings):
        def embed_documents(self, texts):
            return [self.embed_query(text) for text in texts]

        def embed_query(self, text):
            vector = [0.01] * 64
            for a, b in itertools.pairwise(text):
                vector[(ord(a) * 31 + ord(b)) % 64] += 1.0
            norm = sum(v * v for v in vector) ** 0.5
            return [v / norm for v in vector]

    return MemoryStore(folder, Bigrams(), MemoryOptions(**settings), seal=seal)
