"""The keys that TRL, transformers and peft accept, read from their installed source without importing them.

Importing `trl` loads torch, which takes seconds; a recipe is checked in a fraction of one. So the dataclasses are read
as syntax trees: names, annotations, defaults and help texts, following base classes and enums through their imports.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

_SIMPLE: dict[str, Any] = {t.__name__: t for t in (int, float, bool, str, list, dict, tuple)} | {"Any": Any}
# transformers' own __init__ is lazy, so an import from it does not name the file.
_LAZY = {("transformers", "TrainingArguments"): "training_args"}
# The way TRL's help texts list the values of a key whose annotation is only text.
_VALUES = re.compile(r"Possible values are:((?: `'?\w+'?`(?: \(default\))?,?)+)")


class Upstream(NamedTuple):
    """One dataclass of an installed library."""

    package: str
    module: str
    name: str


SFT = Upstream("trl", "trainer.sft_config", "SFTConfig")
DPO = Upstream("trl", "trainer.dpo_config", "DPOConfig")
TRAINING = Upstream("transformers", "training_args", "TrainingArguments")
LORA = Upstream("peft", "tuners.lora.config", "LoraConfig")


@cache
def model_of(upstream: Upstream, without: frozenset[str] = frozenset()) -> type[BaseModel]:
    """A pydantic model with the fields of an installed dataclass except ``without``; unknown keys are forbidden.

    Simple annotations are kept, enums become their values, other classes a mapping. Defaults that are no literals
    show as null, so the model is for checking what a user wrote, never for filling in what was not written.
    """
    fields: dict[str, Any] = {}
    for file, name, node in _fields(_Module.find(upstream.package, upstream.module), upstream.name):
        if name in without:
            continue
        meta = _field_call(node)
        kind = _type(file, node.annotation)
        if meta["choices"]:
            choices: Any = Literal[tuple(meta["choices"])]
            kind = choices | None if type(None) in get_args(kind) else choices
        elif kind in (str, list[str]) and (values := _VALUES.search(meta["help"])):
            choices = Literal[tuple(re.findall(r"`'?(\w+)'?`", values[1]))]
            kind = choices if kind is str else list[choices]
        description = " ".join(meta["help"].replace("%%", "%").split())
        fields[name] = (kind, Field(default=meta["default"], description=description))
    config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True, defer_build=True)
    return create_model(upstream.name, __config__=config, **fields)


class _Module(NamedTuple):
    """One parsed source file of an installed package."""

    package: str
    path: Path

    @classmethod
    def find(cls, package: str, module: str) -> _Module:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        stem = Path(spec.origin).parent.joinpath(*module.split("."))
        return cls(package, stem.with_suffix(".py") if stem.with_suffix(".py").exists() else stem / "__init__.py")

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)

    def class_named(self, name: str) -> tuple[_Module, ast.ClassDef] | None:
        """The class of that name, in this file or in the one it is imported from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self, node
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                module = self._imported(node, name)
                return module.class_named(name) if module else None
        return None

    def _imported(self, node: ast.ImportFrom, name: str) -> _Module | None:
        if node.level:
            folder = self.path.parents[node.level - 1]
            stem = folder.joinpath(*(node.module or "").split("."))
            path = stem.with_suffix(".py")
            return _Module(self.package, path) if path.exists() else None
        package, _, module = (node.module or "").partition(".")
        module = _LAZY.get((package, name), module)
        known = package in ("transformers", "trl", "peft") and module
        return _Module.find(package, module) if known else None


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _fields(module: _Module, name: str) -> Iterator[tuple[_Module, str, ast.AnnAssign]]:
    """The fields of a dataclass, those of its bases first."""
    found = module.class_named(name)
    if found is None:
        return
    file, node = found
    for base in node.bases:
        if isinstance(base, ast.Name):
            yield from _fields(file, base.id)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield file, statement.target.id, statement


def _field_call(node: ast.AnnAssign) -> dict[str, Any]:
    """Default, help text and choices of `name: type = field(default=..., metadata={...})`."""
    found: dict[str, Any] = {"default": None, "help": "", "choices": None}
    if not isinstance(node.value, ast.Call):
        return found
    for keyword in node.value.keywords:
        if keyword.arg == "default":
            found["default"] = _literal(keyword.value)
        elif keyword.arg == "default_factory" and isinstance(keyword.value, ast.Lambda):
            found["default"] = _literal(keyword.value.body)
        elif keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ("help", "choices"):
                    found[key.value] = _literal(value) or found[key.value]
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _type(module: _Module, node: ast.expr) -> Any:
    """The Python type that an annotation stands for, as far as it is simple."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type(module, ast.parse(text, mode="eval").body)
        case ast.Name(id=name) if name in _SIMPLE:
            return _SIMPLE[name]
        case ast.Name(id=name):
            return _class_type(module, name)
        case ast.BinOp(op=ast.BitOr()):
            return _union(module, [node.left, node.right])
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _union(module, [inner, ast.Constant(None)])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return _union(module, members)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = _literal(inner)
            values = values if isinstance(values, tuple) else (values,)
            return str if any("[" in str(value) for value in values) else Literal[values]  # a pattern is no value
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _SIMPLE:
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _SIMPLE[name][tuple(_type(module, member) for member in members)]
    return Any


def _union(module: _Module, members: list[ast.expr]) -> Any:
    """A union; beside an enum a plain `str` adds nothing, since the library turns the text into the enum."""
    kinds = [_type(module, member) for member in members]
    if any(isinstance(member, ast.Name) and _enum_values(module, member.id) for member in members):
        kinds = [kind for kind in kinds if kind is not str]
    return Union[tuple(kinds)]  # noqa: UP007  (built from a list)


def _class_type(module: _Module, name: str) -> Any:
    values = _enum_values(module, name)
    if values:
        return Literal[values]
    return dict[str, Any] if module.class_named(name) else Any


@cache
def _enum_values(module: _Module, name: str) -> tuple[str, ...]:
    """The texts of an enum class; empty for any other name."""
    found = None if name in _SIMPLE else module.class_named(name)
    if found is None or not any("Enum" in ast.unparse(base) for base in found[1].bases):
        return ()
    values = [s.value.value for s in found[1].body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]
    return tuple(value for value in values if isinstance(value, str))
