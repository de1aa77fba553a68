"""A local model: one base, any number of LoRA adapters chosen per request, concurrent requests worked on as a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from pipeline.chat.backends import BackendError, Message, Request
from pipeline.chat.decode import Row
from pipeline.chat.worker import LocalStream, Worker
from pipeline.identity import check_identity
from pipeline.prompt import encode, end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.recipe.sections import ModelOptions


class TransformersBackend:
    """A causal model of transformers with named peft adapters.

    An adapter that is None names the weights themselves; they are then a trained model, and ``none`` is refused.
    Requests join and leave the running batch at every token. What was computed of a session is kept (all sessions
    together up to ``keep_bytes``), so that its next turn only reads what is new.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapters: Mapping[str, str | Path | None] | None = None,
        name: str = "local",
        max_batch: int = 16,
        keep_bytes: int = 1 << 30,
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.context = int(getattr(model.config, "max_position_embeddings", 4096))
        self.adapters = tuple(adapters or ())
        self._itself = next((key for key, folder in (adapters or {}).items() if folder is None), None)
        self.model = _with_adapters(model, adapters or {}).eval()
        eos = model.generation_config.eos_token_id if model.generation_config else None
        ends = frozenset([eos] if isinstance(eos, int) else eos or []) | {tokenizer.eos_token_id}
        if tokenizer.chat_template and (end := end_of_turn(tokenizer)):
            ends |= {tokenizer.convert_tokens_to_ids(end)}
        pad = tokenizer.pad_token_id
        self._worker = Worker(self.model, ends, pad=pad, max_batch=max_batch, keep_bytes=keep_bytes)

    def stream(self, requests: Sequence[Request]) -> list[LocalStream]:
        """See `pipeline.chat.backends.Backend.stream`.

        Raises:
            BackendError: a prompt leaves no room for a reply, or an adapter is not there.
        """
        streams = [self._open(request) for request in requests]
        self._worker.take(streams)
        return streams

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt."""
        return len(encode(self.tokenizer, messages))

    def score(self, messages: Sequence[Message], reply: str, adapter: str | None = None) -> float | None:
        """Mean token log-probability in nats of ``reply`` after ``messages``."""
        import torch

        prompt = encode(self.tokenizer, messages)
        answer = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        if not answer:
            return None
        ids = torch.tensor([prompt + answer], device=self.model.get_input_embeddings().weight.device)
        names = {"adapter_names": [self._adapter(adapter) or "__base__"]} if hasattr(self.model, "peft_config") else {}

        def mean() -> float:
            with torch.inference_mode():
                logits = self.model(input_ids=ids, logits_to_keep=len(answer) + 1, **names).logits[0, :-1]
            return float(logits.float().log_softmax(-1).gather(1, ids[0, -len(answer) :, None]).mean())

        return self._worker.call(mean)

    def forget(self, session: str) -> None:
        """Drop what was computed for a session."""
        self._worker.forget(session)

    def alive(self) -> bool:
        """Whether the worker runs, or will with the first request."""
        return self._worker.alive()

    def close(self) -> None:
        """End the worker; requests that are not done get an error."""
        self._worker.close()

    def _open(self, request: Request) -> LocalStream:
        prompt = encode(self.tokenizer, request.messages)
        room = self.context - len(prompt)
        if room < 1:
            raise BackendError(
                f"the prompt has {len(prompt)} tokens, the model reads {self.context}", "shorten the message"
            )
        row = Row(prompt, request.settings, self._adapter(request.settings.adapter), limit=room)
        return LocalStream(request, row, self.tokenizer)

    def _adapter(self, name: str | None) -> str | None:
        if not self.adapters or (name == "none" and self._itself is None):
            return None
        name = name or self.adapters[-1]
        if name not in self.adapters:
            there = self.adapters if self._itself else ("none", *self.adapters)
            raise BackendError(f"no adapter {name!r}", f"name one of: {', '.join(there)}")
        return None if name == self._itself else name


def _with_adapters(model: PreTrainedModel, adapters: Mapping[str, str | Path | None]) -> PreTrainedModel:
    """The model with every adapter loaded under its name."""
    from peft import PeftModel

    for place in [Path(folder) for folder in adapters.values() if folder]:
        if not (place / "adapter_config.json").is_file():
            raise UserError("no adapter here", "train it first: gonggam run", file=place)
        check_identity(model, place)
    for name, folder in adapters.items():
        if folder is None:
            continue
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    return model


def load_local(
    base: str,
    *,
    adapters: Mapping[str, str | Path | None] | None = None,
    settings: ModelOptions | None = None,
) -> TransformersBackend:
    """Load a model folder or hub id onto the best device there is, with adapters by name.

    Raises:
        UserError: no such folder, the hub cannot be reached, or the folder holds no model.
    """
    from pipeline.model import load_model, load_tokenizer

    tokenizer = load_tokenizer(base, settings=settings)
    model = load_model(base, settings=settings)
    return TransformersBackend(model, tokenizer, adapters=adapters, name=Path(base).name)
