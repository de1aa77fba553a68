"""The reference page of recipes (docs/recipes.md), made from the schema and the list of known keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.recipe.keys import known_keys
from pipeline.recipe.schema import recipe_schema
from pipeline.recipe.sections import SECTIONS
from pipeline.recipe.training import KEYED, OWN_OF_DPO

# Sections that hold a library's keys: those of our own.
_MOSTLY_FOREIGN = {
    "sft": ("lora",),
    "dpo": (*OWN_OF_DPO, "lora"),
    **{name: (*keys.model_fields, "lora") for name, keys in KEYED.items()},
}


def recipe_markdown() -> str:
    """The page as Markdown. TRL's and peft's own keys are left to their documentation."""
    schema = recipe_schema()
    parts = [Path(__file__).with_name("preamble.md").read_text("utf-8").strip(), "## Top level"]
    own = {k: v for k, v in schema["properties"].items() if k not in SECTIONS}
    parts.append(_table(("key", "type", "default", "meaning"), _rows(schema, own, "")))
    for name in SECTIONS:
        section = _object(schema, schema["properties"][name])
        keys = section["properties"]
        if name in _MOSTLY_FOREIGN:
            keys = {key: keys[key] for key in _MOSTLY_FOREIGN[name] if key in keys}
        parts += [f"## {name}", section["description"].split("\n")[0]]
        nested = [] if name in _MOSTLY_FOREIGN else list(_rows(schema, keys, ""))
        flat = [(key, *_row(schema, keys[key])) for key in keys]
        parts.append(_table(("key", "type", "default", "meaning"), nested or flat))
    parts += ["## Keys that the pipeline sets itself", "A value for these would have no effect, so it is an error."]
    parts.append(_table(("section", "key", "instead"), _known("owned")))
    parts += [
        "## Keys with another name",
        "Old names of the libraries and names from other tools; the error says this.",
    ]
    parts.append(_table(("section", "key", "instead"), _known("renamed")))
    return "\n\n".join(parts) + "\n"


def _known(kind: str) -> Iterator[tuple[str, ...]]:
    for section, keys in known_keys()[kind].items():
        for key, says in keys.items():
            if isinstance(says, dict):
                now = f"`{says['now']}`" if "now" in says else ""
                says = "; ".join(filter(None, [now, says.get("note", "")])) or "removed"
            yield {"training": "classify, style, sft, dpo"}.get(section, section), f"`{key}`", says


def _rows(schema: dict[str, Any], properties: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    """A row for every key; keys of inner mappings follow with dotted names."""
    for key, value in properties.items():
        yield (prefix + key, *_row(schema, value))
        inner = _object(schema, value) or _object(schema, value.get("items", {}))
        if inner.get("properties") and key not in SECTIONS:
            yield from _rows(schema, inner["properties"], f"{prefix}{key}{'.N' if 'items' in value else ''}.")


def _row(schema: dict[str, Any], value: dict[str, Any]) -> tuple[str, str, str]:
    default = value.get("default")
    shown = (
        "" if isinstance(default, dict) or "default" not in value else f"`{json.dumps(default, ensure_ascii=False)}`"
    )
    return _type(schema, value), shown, value.get("description", "")


def _object(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """The definition that a property refers to, or {} if it is no mapping with known keys."""
    for option in [value, *value.get("anyOf", ())]:
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rpartition("/")[2]]
    return {}


def _type(schema: dict[str, Any], value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(schema, option) for option in value["anyOf"]))
    if "enum" in value:
        return " or ".join(f"`{json.dumps(option)}`".replace('"', "") for option in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        return f"list of {_type(schema, value.get('items', {}))}"
    names = {
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
        "number": "number",
    }
    return names.get(value.get("type", ""), "keys")


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
