"""Putting a counsellor together from a run folder, a model folder, a hub id or a model server's address."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from gonggam.files import read_json
from pipeline.chat.backends import Backend
from pipeline.chat.emotion import load_feel
from pipeline.chat.options import ChatOptions
from pipeline.chat.personas import load_converter
from pipeline.prompt import system_prompt

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.recipe import Recipe
    from rag.knowledge import KnowledgeBase
    from rag.memory import MemoryStore

LOCK = "recipe.lock.yaml"
LEAST = -3.0
"""Nats a token below which no model's own reply is believed, however badly it does on human ones: whoever writes words
it takes for one in twenty does not know the language yet, as the tiny base of the demo."""
ADAPTERS = ("sft", "dpo")
"""Stages that leave an adapter; the last one there is the counsellor's own choice."""


def load(cls: type[Counselor], where: str | Path, *, run: str | Path | None = None, **changes: Any) -> Counselor:
    """See `Counselor.load`."""
    where = str(where)
    served = where.startswith("openai:")
    folder = Path(run) if run is not None else Path(where)
    if run is not None and not (folder / LOCK).is_file():
        raise UserError("no run folder", f"it should hold {LOCK}", file=folder)
    recipe = _recipe(folder) if not (served and run is None) and (folder / LOCK).is_file() else None
    options = _options(recipe, changes)
    if served:
        backend, floor = _server(where, options), None
    elif recipe and run is None:
        backend, floor = _trained(recipe, folder, options)
    else:
        backend, floor = _plain(where, options, recipe), None
    memory, knowledge = _memory(recipe, folder) if recipe else (None, None)
    if isinstance(options.gate.min_logprob, float | int):
        floor = options.gate.min_logprob
    return cls(
        backend,
        options,
        system=system_prompt(options.system),
        memory=memory,
        knowledge=knowledge,
        floor=floor if options.gate.min_logprob is not None else None,
        emotion=load_feel(options.emotion_model),
        convert=load_converter(options.style_model) if options.style_model else None,
    )


def _recipe(folder: Path) -> Recipe:
    from pipeline.recipe import load_recipe

    return load_recipe(folder / LOCK)


def _options(recipe: Recipe | None, changes: dict[str, Any]) -> ChatOptions:
    from pydantic import ValidationError

    options = recipe.chat if recipe and recipe.chat else ChatOptions()
    try:
        return ChatOptions.model_validate({**options.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"chat.{'.'.join(map(str, first['loc']))}: {first['msg']}", "see ChatOptions") from error


def _server(where: str, options: ChatOptions) -> Backend:
    from pipeline.chat.remote import OpenAIBackend

    url, _, model = where.removeprefix("openai:").partition("#")
    return OpenAIBackend(url, model or None, timeout_s=options.timeout_s)


def _trained(recipe: Recipe, folder: Path, options: ChatOptions) -> tuple[Backend, float | None]:
    """The run's base with its adapters, and the likelihood floor that training measured for the adapter in use."""
    from pipeline.chat.local import load_local
    from pipeline.chat.parity import check_parity
    from pipeline.model import base_of
    from pipeline.run import Run

    state = Run(folder)
    done = [stage for stage in ADAPTERS if state.manifest(stage)]
    base = base_of(recipe, state)
    if not (recipe.model and recipe.model.base) and not state.manifest("tiny"):
        raise UserError("this run has no model yet", f"finish it first: gonggam run {recipe.file}", file=folder)
    adapters = {stage: folder / stage / "adapter" for stage in done}
    backend = load_local(base, adapters=adapters, settings=recipe.model)
    for stage in done:
        check_parity(folder / stage, backend.tokenizer)
    used = options.adapter if options.adapter in done else done[-1] if done and options.adapter == "auto" else None
    measured = [
        (state.manifest(stage) or {}).get("metrics", {}).get("reply_logprob_p01") for stage in (used, "sft") if used
    ]
    floor = next((value for value in measured if value is not None), None)
    return backend, max(floor, LEAST) if floor is not None and math.isfinite(floor) else None


def _plain(where: str, options: ChatOptions, recipe: Recipe | None) -> Backend:
    """A model folder or hub id, or a folder that holds one peft adapter."""
    from pipeline.chat.local import load_local

    settings = recipe.model if recipe else None
    config = Path(where) / "adapter_config.json"
    if not config.is_file():
        return load_local(where, settings=settings)
    base = read_json(config).get("base_model_name_or_path") or ""
    return load_local(base, adapters={Path(where).name: where}, settings=settings)


def _memory(recipe: Recipe, folder: Path) -> tuple[MemoryStore | None, KnowledgeBase | None]:
    """The run's embedder with its users' memories and human-written answers, where the memory stage was run."""
    stage = folder / "memory"
    if recipe.memory is None or not (stage / "manifest.json").is_file():
        return None, None
    from rag.calibrate import settled
    from rag.embedders import load_embedder
    from rag.knowledge import KnowledgeBase
    from rag.memory import MemoryStore
    from rag.rerank import load_reranker

    own = stage / "embedder"
    embedder = load_embedder(own if own.is_dir() else recipe.memory.embedder)
    reranker = load_reranker(recipe.memory.reranker) if recipe.memory.reranker else None
    settings = settled(recipe.memory, stage)
    return MemoryStore(folder, embedder, settings, reranker), KnowledgeBase.load(stage / "knowledge", embedder)
