"""Checks a recipe's plain data and finds all its errors, each with the place it was written."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gonggam.errors import UserError
from pipeline.prompt import system_prompt, template
from pipeline.recipe.keys import key_hint
from pipeline.recipe.sections import SECTIONS, STAGES, section_model
from pipeline.recipe.source import Key, Source

_NAME = re.compile(r"[\w가-힣][\w가-힣.\-]*")
_OWN = ("name", "extends", "seed", "locked")


def check(source: Source) -> tuple[dict[str, BaseModel], list[UserError]]:
    """The sections of a recipe as checked objects, and all errors in it, sorted by file and line."""
    errors = [*_top_level_errors(source), *_cross_errors(source)]
    sections: dict[str, BaseModel] = {}
    for name in SECTIONS:
        written = source.data.get(name)
        if isinstance(written, dict):
            try:
                sections[name] = section_model(name).model_validate_json(json.dumps(written), strict=True)
            except ValidationError as error:
                errors += _section_errors(source, name, error)
    errors += _missing_files(source)
    errors += _unknown_criteria(source, sections)
    return sections, sort_errors(errors)


def sort_errors(errors: list[UserError]) -> list[UserError]:
    """Errors by file and line; what comes from the command line stands last."""
    return sorted(errors, key=lambda e: (e.line is None, str(e.file), e.line or 0))


def nearest(word: str, words: list[str] | tuple[str, ...]) -> str:
    """A hint that names the word most like ``word``, or the choice there is."""
    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _error(source: Source, key: Key, what: str, hint: str = "") -> UserError:
    origin = source.origin(key)
    return UserError(what, hint, file=origin.file, line=origin.line)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _top_level_errors(source: Source) -> Iterator[UserError]:
    for name, value in source.data.items():
        if name in SECTIONS:
            if not isinstance(value, dict | None):
                what = f"{name} must hold keys and values, not {_shown(value)}"
                yield _error(source, (name,), what, "indent them below it")
        elif name == "extends":  # that of a file has been followed and taken out by now
            yield _error(source, (name,), "extends cannot be overridden", "write it in a recipe file")
        elif name not in _OWN:
            known = nearest(name, (*SECTIONS, *_OWN[:-1])) or _elsewhere("", name)
            hint = known or f"a recipe has: {', '.join((*_OWN[:-1], *SECTIONS))}"
            yield _error(source, (name,), f"unknown section {name!r}", hint)
    run = source.data.get("name")
    if "name" in source.data and not (isinstance(run, str) and _NAME.fullmatch(run)):
        hint = "use letters, digits, '.', '-' and '_', a number in quotes: the run's folder is called so"
        yield _error(source, ("name",), f"{_shown(run)} cannot be the name of a run", hint)
    seed = source.data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        yield _error(source, ("seed",), f"seed must be a whole number from 0 to {2**32 - 1}, not {_shown(seed)}")


def _cross_errors(source: Source) -> Iterator[UserError]:
    """What one section alone cannot know."""
    data = source.data
    base = isinstance(data.get("model"), dict) and data["model"].get("base")
    stages = [stage for stage in STAGES if data.get(stage) is not None]
    if not stages:
        yield _error(source, (), "there is no stage to run", f"write at least one of: {', '.join(SECTIONS[1:])}")
    elif not base and "tiny" not in stages and {"sft", "dpo", "eval"} & set(stages):
        hint = "write `model: {base: ...}` to start from a pretrained model, or `tiny: {}` to build a small one"
        yield _error(source, (), "neither model.base nor tiny is given", hint)
    elif base and "tiny" in stages:
        hint = "remove one of the two (`tiny: null` takes back an inherited section)"
        yield _error(source, ("tiny",), "tiny builds a base model, but model.base names one", hint)
    for name, shape in (("classify", "modernbert"), ("style", "bart")):
        own = isinstance(data.get(name), dict) and data[name].get("base")
        if name in stages and not (base or own or "tiny" in stages):
            hint = f"write `model: {{base: ...}}`, or `tiny: {{architecture: {shape}}}` to build a small one"
            yield _error(source, (name,), f"{name} has neither a base nor a tiny one", hint)
    dpo = data["dpo"] if isinstance(data.get("dpo"), dict) else {}
    if dpo.get("reference") == "sft" and "sft" not in stages:
        hint = "add an sft section or write reference: base"
        yield _error(source, ("dpo", "reference"), "dpo.reference is sft, but there is no sft section", hint)
    goes_on = "sft" in stages and dpo.get("reference") != "base"
    whole = isinstance(data.get("sft"), dict) and data["sft"].get("lora", {}) is None
    if whole and isinstance(data.get("model"), dict) and data["model"].get("quantization", "none") != "none":
        hint = "write quantization: none, or train an adapter (lora: {r: 16})"
        yield _error(source, ("sft", "lora"), "sft.lora is null, but quantised weights cannot be trained", hint)
    if goes_on and not whole and dpo.get("lora") and dpo["lora"] != data["sft"].get("lora"):
        what = "dpo.lora differs from sft.lora, but DPO goes on with the SFT adapter"
        yield _error(source, ("dpo", "lora"), what, "leave dpo.lora out, or write reference: base for a new adapter")
    for name in ("sft", "dpo"):
        section = data.get(name)
        if isinstance(section, dict) and section.get("bf16") is True and section.get("fp16") is True:
            yield _error(source, (name, "fp16"), f"{name}: bf16 and fp16 exclude each other", "keep one of the two")


def _missing_files(source: Source) -> Iterator[UserError]:
    """What is named but neither shipped nor a file; that of eval would be missed only after training."""
    readers: dict[Key, Callable[[str], object]] = {
        ("model", "chat_template"): template,
        ("chat", "system"): system_prompt,
    }
    if "locked" not in source.data:  # a run is served without the files that it was once judged by
        readers |= _evaluation()
    for key, read in readers.items():
        value: Any = source.data
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                try:
                    read(name)
                except UserError as error:
                    yield _error(source, key, error.what, error.hint)


def _evaluation() -> dict[Key, Callable[[str], object]]:
    from eval import load_judge, load_rubric
    from eval.simulate import load_cast

    def judge(name: str) -> object:
        return name == "local" or load_judge(name)

    return {
        ("eval", "rubric"): load_rubric,
        ("eval", "judge"): judge,
        ("eval", "simulate", "cast"): load_cast,
        ("eval", "simulate", "rubric"): load_rubric,
        ("eval", "simulate", "judge"): judge,
        ("eval", "simulate", "player"): judge,
    }


def _unknown_criteria(source: Source, sections: dict[str, BaseModel]) -> Iterator[UserError]:
    """Criteria that the rubric does not have; one that cannot be read is an error of its own."""
    from eval import EvalOptions, load_rubric

    options = sections.get("eval")
    if isinstance(options, EvalOptions) and options.criteria and "locked" not in source.data:
        with suppress(UserError):
            rubric = load_rubric(options.rubric)
            try:
                rubric.only(options.criteria)
            except UserError as error:
                yield _error(source, ("eval", "criteria"), error.what, error.hint)


def _section_errors(source: Source, name: str, error: ValidationError) -> Iterator[UserError]:
    """pydantic's errors as ours; those of the members of a union become one."""
    groups: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        place = (name, *detail["loc"])
        missing = detail["type"] in ("missing", "extra_forbidden")
        groups.setdefault(place if missing else source.known(place), []).append(detail)
    for place, details in groups.items():
        kind = details[0]["type"]
        if kind == "extra_forbidden":
            yield _unknown_key(source, source.known(place))
        elif kind == "missing":
            yield _error(source, place[:-1], f"{_dotted(place)} is missing")
        else:
            yield _error(source, place, *_wrong_value(place, details))


def _wrong_value(place: Key, details: list[ErrorDetails]) -> tuple[str, str]:
    messages = list(dict.fromkeys(detail["msg"] for detail in details))
    value = details[0]["input"]
    expected = [m.removeprefix("Input should be ") for m in messages if m.startswith("Input should be ")]
    if len(expected) < len(messages):
        rest = " or ".join(m.removeprefix("Value error, ") for m in messages)
        return f"{_dotted(place)}: {rest[:1].lower()}{rest[1:]}", ""
    plain = {
        "a valid integer": "a whole number",
        "a valid number": "a number",
        "a valid string": "text",
        "a valid boolean": "true or false",
        "a valid list": "a list",
        "a valid array": "a list",
        "a valid dictionary": "keys and values",
        "an object": "keys and values",
    }
    wanted = " or ".join(dict.fromkeys(plain.get(e, e) for e in expected)).replace("None", "null")
    quoted = re.findall(r"'([^']+)'", wanted)
    hint = nearest(value, quoted) if quoted and isinstance(value, str) else ""
    if not isinstance(value, list | dict) and "a list" in wanted and "text" not in wanted:
        hint = f"write [{value}]"
    return f"{_dotted(place)} must be {wanted}, not {_shown(value)}", hint


def _unknown_key(source: Source, place: Key) -> UserError:
    *parents, key = place
    group = str(parents[-1] if parents[-1] == "lora" else parents[0])
    known = key_hint(group, str(key)) if len(parents) == 1 or group == "lora" else None
    if known and known.owned:
        return _error(source, place, f"{_dotted(place)} is set by the pipeline", known.text)
    names = _names_at(section_model(str(parents[0])), parents[1:])
    hint = known.text if known else _elsewhere(_dotted(tuple(parents)), str(key)) or nearest(str(key), names)
    if not hint and len(names) <= 25:
        hint = f"it has: {', '.join(names)}"
    return _error(source, place, f"unknown key {_dotted(place)}", hint)


def _names_at(model: type[BaseModel] | None, path: list[Any]) -> list[str]:
    """The keys accepted at a place inside a section."""
    for part in path:
        if isinstance(part, str) and model is not None:
            field = model.model_fields.get(part)
            model = _inner_model(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)


def _elsewhere(here: str, key: str) -> str:
    """A hint for a key that is right, but stands in the wrong section."""
    places = {name: list(section_model(name).model_fields) for name in SECTIONS}
    places |= {f"{name}.lora": _names_at(section_model(name), ["lora"]) for name in ("sft", "dpo")}
    right = [place for place, names in places.items() if key in names and place != here]
    return f"it belongs under {' or '.join(right)}" if right else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
