"""Putting a counsellor together from a run folder, a model folder, a hub id or a model server's address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from gonggam.files import read_json
from pipeline.chat.backends import Backend
from pipeline.chat.categories import LABELS
from pipeline.chat.emotion import load_feel
from pipeline.chat.options import ChatOptions
from pipeline.chat.personas import load_converter
from pipeline.chat.sentiment import load_sentiments
from pipeline.cipher import Cipher, read_keys
from pipeline.prompt import system_prompt

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.local import TransformersBackend
    from pipeline.recipe import Recipe
    from rag.knowledge import KnowledgeBase
    from rag.memory import MemoryStore

LOCK = "recipe.lock.yaml"
LEAST = -3.0
"""Nats a token below which no model's own reply is believed, however badly it does on human ones: whoever writes words
it takes for one in twenty does not know the language yet, as the tiny base of the demo."""
ADAPTERS = ("sft", "dpo")
"""Stages that leave an adapter; the last one there is the counsellor's own choice."""


def load(
    cls: type[Counselor],
    where: str | Path,
    *,
    run: str | Path | None = None,
    backend: TransformersBackend | None = None,
    keys: Sequence[str] | None = None,
    **changes: Any,
) -> Counselor:
    """See `Counselor.load`."""
    where = str(where)
    served = where.startswith("openai:")
    folder = Path(run) if run is not None else Path(where)
    if run is not None and not (folder / LOCK).is_file():
        raise UserError("no run folder", f"it should hold {LOCK}", file=folder)
    recipe = _recipe(folder) if not (served and run is None) and (folder / LOCK).is_file() else None
    options = _options(recipe, changes)
    model: Backend
    floor: float | None = None
    system = options.system
    if served:
        model = _server(where, options)
    elif recipe and run is None:
        model, floor, system = _of_run(recipe, folder, options, backend)
    else:
        model = _plain(where, options, recipe)
    memory, knowledge = load_memory(recipe, folder, keys) if recipe else (None, None)
    if isinstance(options.gate.min_logprob, float | int):
        floor = options.gate.min_logprob
    return cls(
        model,
        options,
        system=system_prompt(system),
        memory=memory,
        knowledge=knowledge,
        floor=floor if options.gate.min_logprob is not None else None,
        emotion=load_feel(options.emotion_model),
        sentiments=load_sentiments(folder, options),
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


def _of_run(
    recipe: Recipe, folder: Path, options: ChatOptions, backend: TransformersBackend | None = None
) -> tuple[Backend, float | None, str]:
    """The backend of a run, its likelihood floor, and the name of the system prompt it was trained with."""
    if recipe.sft or recipe.dpo or not (recipe.classify or recipe.memory):
        return *_trained(recipe, folder, options, backend), options.system
    if recipe.classify is None and (recipe.model.base or recipe.tiny):
        return *_trained(recipe, folder, options, backend), options.system
    fallback, floor, system = _fallback(options)
    stage = "classify" if recipe.classify else "memory"
    if not (folder / stage / "manifest.json").is_file():
        raise UserError(f"this run's stage {stage} is not done", f"finish it first: gonggam run {recipe.file}")
    if recipe.classify:
        return _categories(folder / stage / "model", folder.name, options, fallback), floor, system
    from pipeline.chat.reviewed import NearestAnswer

    _, knowledge = load_memory(recipe, folder)
    assert knowledge is not None
    return (
        NearestAnswer(knowledge, folder.name, min_cosine=options.gate.min_cosine, fallback=fallback),
        floor,
        system,
    )


def _categories(folder: Path, name: str, options: ChatOptions, fallback: Backend | None) -> Backend:
    from pipeline.chat.reviewed import load_categories

    confidence = None if options.min_confidence == "auto" else options.min_confidence
    return load_categories(folder, name, confidence=confidence, fallback=fallback)


def _fallback(options: ChatOptions) -> tuple[Backend | None, float | None, str]:
    """Who answers where a list of answers is unsure; a run brings its own floor and system prompt."""
    where = options.fallback
    if where is None:
        return None, None, options.system
    if where.startswith("openai:"):
        return _server(where, options), None, options.system
    folder = Path(where)
    if not (folder / LOCK).is_file():
        return _plain(where, options, None), None, options.system
    recipe = _recipe(folder)
    alone = (recipe.chat or ChatOptions()).model_copy(update={"fallback": None})  # else two could hand over for ever
    return _of_run(recipe, folder, alone)


def _trained(
    recipe: Recipe, folder: Path, options: ChatOptions, backend: TransformersBackend | None
) -> tuple[Backend, float | None]:
    """The run's weights with the adapters on them, and the likelihood floor that training measured for them."""
    from pipeline.chat.local import load_local
    from pipeline.chat.parity import check_parity
    from pipeline.model import adapters_on, policies
    from pipeline.run import Run

    state = Run(folder)
    found = policies(recipe, state)
    done = [name for name in found if name != "base"]
    if not (recipe.model and recipe.model.base) and not state.manifest("tiny"):
        raise UserError("this run has no model yet", f"finish it first: gonggam run {recipe.file}", file=folder)
    used = options.adapter if options.adapter in done else done[-1] if done and options.adapter == "auto" else None
    model = found[used or "base"].model
    backend = backend or load_local(model, adapters=adapters_on(model, found), settings=recipe.model)
    for stage in done:
        check_parity(folder / stage, backend.tokenizer)
    stages = (used, "sft") if used else ()
    measured = [(state.manifest(stage) or {}).get("metrics", {}).get("reply_logprob_p01") for stage in stages]
    floor = next((value for value in measured if value is not None), None)
    return backend, max(floor, LEAST) if floor is not None and math.isfinite(floor) else None


def _plain(where: str, options: ChatOptions, recipe: Recipe | None) -> Backend:
    """A model folder or hub id, or a folder that holds one peft adapter."""
    from pipeline.chat.local import load_local

    if (Path(where) / LABELS).is_file():
        return _categories(Path(where), Path(where).name, options, _fallback(options)[0])
    settings = recipe.model if recipe else None
    config = Path(where) / "adapter_config.json"
    if not config.is_file():
        return load_local(where, settings=settings)
    base = read_json(config).get("base_model_name_or_path") or ""
    return load_local(base, adapters={Path(where).name: where}, settings=settings)


def load_memory(
    recipe: Recipe, folder: Path, keys: Sequence[str] | None = None
) -> tuple[MemoryStore | None, KnowledgeBase | None]:
    """The run's embedder with its users' memories and human-written answers, where the memory stage was run.

    Args:
        keys: what memories are sealed with; None: the keys of the recipe's service (`pipeline.cipher.read_keys`).
    """
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
    keys = read_keys(recipe.serve.key_file if recipe.serve else None) if keys is None else keys
    seal = Cipher(keys) if keys else None
    return MemoryStore(folder, embedder, settings, reranker, seal), KnowledgeBase.load(stage / "knowledge", embedder)
