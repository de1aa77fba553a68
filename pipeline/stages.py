"""The only file that knows every stage: what it does, what it builds on, and which code its result depends on.

A stage is a function ``(context) -> metrics`` that leaves its artefacts in ``context.folder``. Training stages run on
every process of ``accelerate launch``; the others on the main process alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gonggam.progress import Progress
from pipeline.recipe import Recipe, required
from pipeline.run import Run


@dataclass(frozen=True)
class Context:
    """What a stage is given: the recipe, the run folder, its own folder in it, and where to report progress."""

    recipe: Recipe
    run: Run
    folder: Path
    progress: Progress | None = None

    @property
    def prepared(self) -> Path:
        """The folder of the prepare stage."""
        return self.run.stage("prepare")

    @property
    def system(self) -> str | None:
        """The system prompt of training and serving."""
        from pipeline.chat.options import ChatOptions
        from pipeline.prompt import system_prompt

        return system_prompt((self.recipe.chat or ChatOptions()).system)


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        work: the function.
        needs: stages it builds on, as far as the recipe has them.
        sections: recipe sections its result depends on.
        code: files and folders of the project its result depends on.
        everywhere: runs on all processes, not on the main one alone.
    """

    work: Callable[[Context], dict[str, Any]]
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    code: tuple[str, ...]
    everywhere: bool = False


def prepare(context: Context) -> dict[str, Any]:
    """Raw dialogues to clean, leak-free conversations and preference pairs."""
    import data_prep

    options = context.recipe.section("prepare")
    sources = options.pop("sources")
    return data_prep.prepare(sources, context.folder, progress=context.progress, **options)


def tiny(context: Context) -> dict[str, Any]:
    """A base model from the training split, where no pretrained one is named."""
    from pipeline.train.tiny import run_tiny

    recipe = context.recipe
    return run_tiny(
        required(recipe.tiny), context.prepared, context.folder, seed=recipe.seed, progress=context.progress
    )


def _base(context: Context, named: str | None) -> tuple[str, Any]:
    """The base that a section names, else the recipe's; `model:` describes the recipe's alone."""
    from pipeline.model import base_of

    return (named, None) if named else (base_of(context.recipe, context.run), context.recipe.model)


def classify(context: Context) -> dict[str, Any]:
    """A text classifier: categories that are answered from a reviewed list, or emotions."""
    from pipeline.model import load_tokenizer
    from pipeline.train.classify import run_classify

    section = required(context.recipe.classify)
    base, settings = _base(context, section.keys.base)
    return run_classify(
        section,
        base,
        load_tokenizer(base, settings=settings),
        settings,
        context.prepared,
        context.folder,
        seed=context.recipe.seed,
        progress=context.progress,
    )


def style(context: Context) -> dict[str, Any]:
    """A seq2seq model that rewrites a reply in another manner of speech."""
    from pipeline.model import load_tokenizer
    from pipeline.train.style import run_style

    section = required(context.recipe.style)
    base, settings = _base(context, section.keys.base)
    return run_style(
        section,
        base,
        load_tokenizer(base, settings=settings),
        settings,
        context.folder,
        seed=context.recipe.seed,
        progress=context.progress,
    )


def sft(context: Context) -> dict[str, Any]:
    """An adapter, or all weights, on the replies of whole conversations."""
    from pipeline.model import base_of, load_model, load_tokenizer
    from pipeline.train.sft import run_sft, weights_to_train
    from pipeline.train.shortage import with_plan

    recipe, base = context.recipe, base_of(context.recipe, context.run)
    section = required(recipe.sft)
    tokenizer = load_tokenizer(base, settings=recipe.model)
    with with_plan(recipe, "sft", context.prepared, tokenizer=tokenizer, system=context.system):
        return run_sft(
            section,
            load_model(base, settings=weights_to_train(section, recipe.model)),
            tokenizer,
            context.prepared,
            context.folder,
            system=context.system,
            seed=recipe.seed,
            progress=context.progress,
        )


def dpo(context: Context) -> dict[str, Any]:
    """Preference pairs, from the model after SFT and against it."""
    from pipeline.model import load_model, load_tokenizer, policy
    from pipeline.train.dpo import run_dpo
    from pipeline.train.shortage import with_plan

    recipe, section = context.recipe, required(context.recipe.dpo)
    start = policy(recipe, context.run, section.reference)
    tokenizer = load_tokenizer(start.model, settings=recipe.model)
    with with_plan(recipe, "dpo", context.prepared, tokenizer=tokenizer, system=context.system):
        return run_dpo(
            section,
            load_model(start.model, settings=recipe.model),
            tokenizer,
            start.adapter,
            context.prepared,
            context.folder,
            system=context.system,
            seed=recipe.seed,
            progress=context.progress,
        )


def memory(context: Context) -> dict[str, Any]:
    """The embedder and the index of human-written answers."""
    from pipeline.remember import run_memory

    return run_memory(required(context.recipe.memory), context.prepared, context.folder, progress=context.progress)


def evaluate(context: Context) -> dict[str, Any]:
    """Held-out scores of base, SFT and DPO, and the report."""
    from pipeline.score import run_eval

    return run_eval(context)


_TRAINING = (
    "gonggam",
    "pipeline/train",
    "pipeline/prompt.py",
    "pipeline/model.py",
    "pipeline/identity.py",
    "pipeline/templates",
)
STAGES: dict[str, Stage] = {
    "prepare": Stage(prepare, (), ("prepare",), ("gonggam", "data_prep")),
    "tiny": Stage(tiny, ("prepare",), ("tiny",), _TRAINING, everywhere=True),
    "classify": Stage(
        classify,
        ("prepare", "tiny"),
        ("model", "classify"),
        (*_TRAINING, "pipeline/chat/categories.py", "data_prep/reviewed.py"),
        everywhere=True,
    ),
    "style": Stage(
        style,
        ("tiny",),
        ("model", "style"),
        (*_TRAINING, "pipeline/chat/personas.py", "data_prep/samples"),
        everywhere=True,
    ),
    "sft": Stage(sft, ("prepare", "tiny"), ("model", "sft", "chat.system"), _TRAINING, everywhere=True),
    "dpo": Stage(dpo, ("prepare", "tiny", "sft"), ("model", "dpo", "chat.system"), _TRAINING, everywhere=True),
    "memory": Stage(memory, ("prepare",), ("memory",), ("gonggam", "rag", "pipeline/remember.py")),
    "eval": Stage(
        evaluate,
        ("prepare", "tiny", "classify", "sft", "dpo", "memory"),
        ("model", "chat", "eval"),
        ("gonggam", "eval", "rag", "pipeline"),
    ),
}
