"""A recipe: one YAML file that describes a whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from gonggam.errors import UserError, UserErrors
from pipeline.recipe.check import check, nearest, sort_errors
from pipeline.recipe.find import find_recipe
from pipeline.recipe.sections import SECTIONS, STAGES, MergeOptions, ModelOptions, SweepOptions, TinyOptions
from pipeline.recipe.source import COMMAND_LINE, Origin, Source, apply_override, read_source
from pipeline.recipe.training import KEYED, OWN_OF_DPO, DpoSection, KeyedSection, SftSection

if TYPE_CHECKING:
    from data_prep.options import PrepareOptions
    from eval.options import EvalOptions
    from pipeline.chat.options import ChatOptions
    from pipeline.serve.options import ServeOptions
    from rag.options import MemoryOptions

DEFAULT_SEED = 42
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; sections that it does not have are None.

    Attributes:
        name: the run's name; its folder is `runs/NAME`.
        file: the file it was read from.
        seed: where all randomness of the run starts.
        overrides: what the command line changed, as given.
    """

    name: str
    file: Path
    seed: int
    model: ModelOptions
    prepare: PrepareOptions | None = None
    tiny: TinyOptions | None = None
    sft: SftSection | None = None
    dpo: DpoSection | None = None
    memory: MemoryOptions | None = None
    chat: ChatOptions | None = None
    eval: EvalOptions | None = None
    classify: KeyedSection | None = None
    style: KeyedSection | None = None
    sweep: SweepOptions | None = None
    merge: MergeOptions | None = None
    serve: ServeOptions | None = None
    overrides: tuple[str, ...] = field(default=(), compare=False)

    @property
    def stages(self) -> list[str]:
        """The stages of this recipe, in the order they run."""
        return [stage for stage in STAGES if getattr(self, stage, None) is not None]

    def section(self, name: str) -> dict[str, Any]:
        """A section as plain data with our own defaults filled in, for hashing and for the lock; {} if absent."""
        value = getattr(self, name)
        if value is None:
            return {}
        if isinstance(value, KeyedSection):
            return value.plain()
        if isinstance(value, SftSection | DpoSection):
            plain = {"lora": value.lora, **value.arguments}
            own = OWN_OF_DPO if isinstance(value, DpoSection) else ()
            return {**plain, **{key: getattr(value, key) for key in own}}
        return value.model_dump(mode="json")

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data: inherited values, overrides and our own defaults filled in."""
        sections = {name: self.section(name) for name in SECTIONS if getattr(self, name) is not None}
        return {"name": self.name, "seed": self.seed, **sections}

    def write_lock(self, path: str | Path, *, data_hashes: dict[str, str], command: Sequence[str]) -> None:
        """Write the resolved recipe with all that is needed to repeat the run; the lock is itself a recipe."""
        from pipeline.recipe.lock import write_lock

        write_lock(self, Path(path), data_hashes, command)


def required(section: T | None) -> T:
    """A section that must be there: a stage runs only where its own is."""
    assert section is not None
    return section


def load_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        file: a YAML file, or the name of a shipped recipe.
        overrides: `section.key=value`, each value written as YAML.

    Raises:
        UserError: there is no such file.
        UserErrors: all that is wrong with it, sorted by file and line.
    """
    path = find_recipe(file)
    source = _with_bases(path, ())
    errors: list[UserError] = []
    for text in overrides:
        try:
            apply_override(source, text)
        except UserError as error:
            errors.append(error)
    sections, found = check(source)
    errors += found
    if errors:
        raise UserErrors(sort_errors(errors))
    return Recipe(
        name=source.data.get("name", path.stem),
        file=path,
        seed=source.data.get("seed", DEFAULT_SEED),
        overrides=tuple(overrides),
        **_typed(source.data, sections),
    )


def check_stage(name: str, recipe: Recipe | None = None) -> str:
    """``name`` if it is a stage (of ``recipe``, if given).

    Raises:
        UserError: it is not.
    """
    if name not in STAGES:
        hint = nearest(name, STAGES) or f"the stages are: {', '.join(STAGES)}"
        raise UserError(f"unknown stage {name!r}", hint, file=COMMAND_LINE.file)
    if recipe is not None and name not in recipe.stages:
        hint = f"it has: {', '.join(recipe.stages)}"
        raise UserError(f"the recipe has no stage {name!r}", hint, file=recipe.file)
    return name


def _with_bases(path: Path, below: tuple[Path, ...]) -> Source:
    """A recipe laid over the one it extends."""
    own = read_source(path)
    extends = own.data.pop("extends", None)
    if extends is None:
        return own
    origin = own.origin(("extends",))
    base_path = _base_path(path, extends, origin)
    chain = (*below, path.resolve())
    if base_path.resolve() in chain:
        raise UserErrors([_error(origin, f"extends goes in a circle: {path} and {base_path} extend each other")])
    base = _with_bases(base_path, chain)
    base.data.pop("name", None)  # two recipes must not share a run folder
    base.overlay(own)
    base.origins[()] = own.origins[()]
    return base


def _base_path(path: Path, extends: Any, origin: Origin) -> Path:
    if not isinstance(extends, str):
        raise UserErrors([_error(origin, "extends must name one recipe", "write extends: FILE.yaml")])
    beside = path.parent / extends
    if beside.is_file():
        return beside
    try:
        return find_recipe(extends)
    except UserError as error:
        what = f"{path} extends {beside}, which does not exist"
        raise UserErrors([_error(origin, what, error.hint)]) from error


def _error(origin: Origin, what: str, hint: str = "") -> UserError:
    return UserError(what, hint, file=origin.file, line=origin.line)


def _typed(data: dict[str, Any], sections: dict[str, BaseModel]) -> dict[str, Any]:
    """The sections as `Recipe` holds them."""
    typed: dict[str, Any] = {"model": ModelOptions(), **sections}
    for name in KEYED.keys() & sections.keys():
        typed[name] = KeyedSection.of(name, json.loads(json.dumps(data[name])))
    for name in ("sft", "dpo"):
        if name in sections:
            written = json.loads(json.dumps(data[name]))
            lora = written.pop("lora", {})
            if name == "sft":
                typed[name] = SftSection(lora, written)
            else:
                own = {key: value for key in OWN_OF_DPO if (value := written.pop(key, None)) is not None}
                own.setdefault("reference", "sft" if data.get("sft") is not None else "base")
                typed[name] = DpoSection(lora, written, **own)
    return typed
