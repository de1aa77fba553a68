"""A local model: one base, any number of LoRA adapters chosen per request, concurrent requests worked on as a batch."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from pipeline.chat.backends import BackendError, Message, Piece, Request, Usage
from pipeline.chat.decode import Row, decode
from pipeline.prompt import encode

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.recipe.sections import ModelOptions

_DONE = object()


class LocalStream:
    """Pieces of one reply, filled by the worker."""

    def __init__(self, request: Request, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
        self.request, self.row, self.usage = request, row, Usage(prompt_tokens=len(row.prompt))
        self.cached_tokens = 0
        self._tokenizer, self._queue, self._finished = tokenizer, queue.SimpleQueue(), False

    def __iter__(self) -> Iterator[Piece]:
        ids: list[int] = []
        shown, logprob, tokens = "", 0.0, 0
        try:
            while (item := self._queue.get()) is not _DONE:
                if isinstance(item, BaseException):
                    raise item
                token, value = item
                ids.append(token)
                logprob, tokens = logprob + value, tokens + 1
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                # Half a syllable decodes to U+FFFD: it is held back until its other bytes are there.
                if not text.endswith("�") and text != shown:
                    yield Piece(text[len(shown) :], tokens, logprob)
                    shown, logprob, tokens = text, 0.0, 0
            if tokens:
                rest = self._tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]
                yield Piece(rest, tokens, logprob)
        finally:
            self.close()
            self.usage = Usage(len(self.row.prompt), len(ids), self.cached_tokens)

    def close(self) -> None:
        """Give up: the worker drops this row at its next step."""
        self.request.cancelled.set()

    def put(self, item: object) -> None:
        """Called by the worker: a (token, logprob) or an exception."""
        self._queue.put(item)

    def finish(self) -> None:
        """Called by the worker, once or more: no token will come."""
        if not self._finished:
            self._finished = True
            self._queue.put(_DONE)


class TransformersBackend:
    """A causal model of transformers with named peft adapters.

    Requests that wait while a batch is being worked on make up the next batch. A session's last computed prefix is
    kept (``keep_prefixes`` of them), so that its next turn only reads what is new.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        name: str = "local",
        max_batch: int = 16,
        keep_prefixes: int = 8,
    ) -> None:
        self.name, self.tokenizer, self.max_batch, self.keep_prefixes = name, tokenizer, max_batch, keep_prefixes
        self.context = int(getattr(model.config, "max_position_embeddings", 4096))
        self.adapters = tuple(adapters or ())
        self.model = _with_adapters(model, adapters or {}).eval()
        self._waiting: list[LocalStream] = []
        self._wake = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._prefixes: OrderedDict[tuple[str, str | None], tuple[list[int], Cache]] = OrderedDict()
        eos = model.generation_config.eos_token_id if model.generation_config else None
        self._eos = frozenset([eos] if isinstance(eos, int) else eos or []) | {tokenizer.eos_token_id}
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def stream(self, requests: Sequence[Request]) -> list[LocalStream]:
        """See `pipeline.chat.backends.Backend.stream`.

        Raises:
            BackendError: a prompt leaves no room for a reply, or an adapter is not there.
        """
        streams = [self._open(request) for request in requests]
        with self._wake:
            if self._closed:
                raise BackendError("the model was closed", "load the counsellor again")
            self._waiting.extend(streams)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="gonggam-model", daemon=True)
                self._worker.start()
            self._wake.notify()
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
        names = {"adapter_names": [self._adapter(adapter) or "__base__"]} if self.adapters else {}
        with torch.inference_mode():
            logits = self.model(input_ids=ids, logits_to_keep=len(answer) + 1, **names).logits[0, :-1]
        picked = logits.float().log_softmax(-1).gather(1, ids[0, -len(answer) :, None])
        return float(picked.mean())

    def forget(self, session: str) -> None:
        """Drop what was computed for a session."""
        for key in [key for key in self._prefixes if key[0] == session]:
            self._prefixes.pop(key, None)

    def close(self) -> None:
        """End the worker; requests that still wait get an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()

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
        if name == "none" or not self.adapters:
            return None
        if name is None:
            return self.adapters[-1]
        if name not in self.adapters:
            raise BackendError(f"no adapter {name!r}", f"name one of: none, {', '.join(self.adapters)}")
        return name

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
                closed = self._closed
            if closed:
                for stream in batch + self._waiting:
                    stream.put(BackendError("the model was closed", "load the counsellor again"))
                return
            self._run(batch)

    def _run(self, batch: list[LocalStream]) -> None:
        """Work on one batch; whatever goes wrong is raised where the reply is awaited."""
        import torch

        try:
            self._decode(batch)
        except torch.OutOfMemoryError as error:
            self._prefixes.clear()
            torch.cuda.empty_cache()
            rest = [stream for stream in batch if not stream.row.done]
            if len(batch) == 1:
                failure = BackendError("out of GPU memory", "set chat.quantization: nf4, or a smaller max_new_tokens")
                failure.__cause__ = error
                batch[0].put(failure)
                return
            # Every row goes on where it stood: what it has written is part of what it reads now.
            half = (len(rest) + 1) // 2
            for part in filter(None, (rest[:half], rest[half:])):
                self._run(part)
        except Exception as error:  # the worker must live on; whoever awaits the reply is told
            for stream in batch:
                stream.put(error)
        finally:
            for stream in batch:
                stream.finish()

    def _decode(self, batch: list[LocalStream]) -> None:
        alone = batch[0] if len(batch) == 1 and batch[0].request.settings.session else None
        cache = self._take_prefix(alone) if alone else None
        for step in decode(self.model, [stream.row for stream in batch], self._eos, self._pad, cache):
            batch[step.row].put((step.token, step.logprob))
            for stream in batch:
                stream.row.done = stream.row.done or stream.request.cancelled.is_set()
                if stream.row.done:
                    stream.finish()
        if alone and cache is not None:
            self._prefixes[_key(alone)] = (alone.row.ids[: cache.get_seq_length()], cache)
            while len(self._prefixes) > self.keep_prefixes:
                self._prefixes.popitem(last=False)

    def _take_prefix(self, stream: LocalStream) -> Cache:
        """A cache that holds as much of the prompt as this session's last turn computed."""
        from transformers import DynamicCache

        ids, cache = self._prefixes.pop(_key(stream), ([], None))
        prompt = stream.row.ids
        shared = 0
        while shared < min(len(ids), len(prompt) - 1) and ids[shared] == prompt[shared]:
            shared += 1
        if cache is None or not shared or not cache.is_croppable or any(cache.is_sliding):
            return DynamicCache(config=self.model.config)
        cache.crop(shared - len(ids))
        stream.cached_tokens = shared
        return cache


def _key(stream: LocalStream) -> tuple[str, str | None]:
    return str(stream.request.settings.session), stream.row.adapter


def _with_adapters(model: PreTrainedModel, adapters: Mapping[str, str | Path]) -> PreTrainedModel:
    """The model with every adapter loaded under its name."""
    from peft import PeftModel

    for name, folder in adapters.items():
        if not Path(folder, "adapter_config.json").is_file():
            raise UserError("no adapter here", "train it first: gonggam run", file=folder)
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    return model


def load_local(
    base: str,
    *,
    adapters: Mapping[str, str | Path] | None = None,
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
