"""YAML files and `a.b=c` overrides as plain data, with the file and line that every value came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gonggam.errors import UserError, UserErrors

Key = tuple[str | int, ...]


class Origin(NamedTuple):
    """Where a value was written: a file and its 1-based line, or the command line."""

    file: str
    line: int | None


COMMAND_LINE = Origin("command line", None)


@dataclass
class Source:
    """Plain data (dicts, lists, scalars) and the `Origin` of every key and list item in it."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)

    def origin(self, key: Key) -> Origin:
        """The place of ``key``, or of its nearest enclosing key that was written somewhere."""
        return self.origins[self.known(key)]

    def known(self, key: Key) -> Key:
        """The longest beginning of ``key`` that was written somewhere."""
        while key not in self.origins:
            key = key[:-1]
        return key

    def overlay(self, over: Source, key: Key = ()) -> None:
        """Lay ``over`` on top: mappings are merged, anything else is replaced."""
        here, there = _at(self.data, key), _at(over.data, key)
        for name, value in there.items():
            inner = (*key, name)
            if isinstance(value, dict) and isinstance(here.get(name), dict):
                self.overlay(over, inner)
            else:
                self.replace(inner, value, {k: o for k, o in over.origins.items() if k[: len(inner)] == inner})

    def replace(self, key: Key, value: Any, origins: dict[Key, Origin]) -> None:
        """Set ``key`` (whose parent exists) to ``value``; ``origins`` are those of ``key`` and what is in it."""
        for old in [k for k in self.origins if k[: len(key)] == key]:
            del self.origins[old]
        _at(self.data, key[:-1])[key[-1]] = value
        self.origins.update(origins)


def _at(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part]
    return data


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2: `1e-4` is a number; `no`, `on` and dates are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute, replaced not changed)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_source(path: Path) -> Source:
    """Read one YAML file.

    Raises:
        UserErrors: it cannot be read, is no UTF-8, no YAML, empty, no mapping, or writes a key twice.
    """
    text = _decode(path)
    try:
        node = yaml.compose(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserErrors([_syntax_error(error, path, text)]) from error
    if node is None:
        hint = "start from a shipped recipe: gonggam recipe list"
        raise UserErrors([UserError("the file is empty", hint, file=path)])
    reader = _Reader(str(path))
    if not isinstance(node, yaml.MappingNode):
        raise UserErrors([reader.error(node, "a recipe is a mapping of sections", "write lines such as `sft:`")])
    data = reader.value(node, ())
    if reader.errors:
        raise UserErrors(reader.errors)
    return Source(data, {(): Origin(str(path), 1), **reader.origins})


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `a.b=c` into the key and the value, which is read as YAML.

    Raises:
        UserError: there is no `=`, no key, or the value is no YAML.
    """
    name, equals, written = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"cannot read {text!r}", "write section.key=value", file=COMMAND_LINE.file)
    try:
        node = yaml.compose(written, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        hint = "put quotes around text with special characters"
        raise UserError(f"the value in {text!r} is not valid YAML", hint, file=COMMAND_LINE.file) from error
    reader = _Reader(COMMAND_LINE.file)
    value = None if node is None else reader.value(node, ())
    if reader.errors:
        raise reader.errors[0]
    return tuple(parts), value


def apply_override(source: Source, text: str) -> None:
    """Set one `a.b=c` in ``source``; a number as a part of the key counts into a list, from 0.

    Raises:
        UserError: the text cannot be read or counts past the end of a list.
    """
    parts, value = parse_override(text)
    key: Key = ()
    for part in parts:
        parent = _at(source.data, key)
        if isinstance(parent, list):
            if not part.isdecimal() or int(part) >= len(parent):
                what = f"there is no entry {part!r} in {'.'.join(map(str, key))}"
                raise UserError(what, f"it has {len(parent)}, counted from 0", file=COMMAND_LINE.file)
            key = (*key, int(part))
        elif isinstance(parent, dict):
            key = (*key, part)
        else:
            source.replace(key, {}, {key: COMMAND_LINE})
            key = (*key, part)
        if len(key) < len(parts) and isinstance(_at(source.data, key[:-1]), dict):
            _at(source.data, key[:-1]).setdefault(part, None)
    source.replace(key, value, {key: COMMAND_LINE})


class _Reader:
    """Turns YAML nodes into plain data, noting lines and errors."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.origins: dict[Key, Origin] = {}
        self.errors: list[UserError] = []
        self._open: set[int] = set()

    def error(self, node: yaml.Node, what: str, hint: str = "") -> UserError:
        """A `UserError` at the node's line."""
        line = None if self.file == COMMAND_LINE.file else node.start_mark.line + 1
        return UserError(what, hint, file=self.file, line=line)

    def value(self, node: yaml.Node, key: Key) -> Any:
        """The plain value of ``node``, which stands at ``key``."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self.errors.append(self.error(node, "an alias (*) stands inside its own anchor (&)"))
            return None
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._foreign_tag(node)
        self._open.add(id(node))
        value = self._mapping(node, key) if isinstance(node, yaml.MappingNode) else self._list(node, key)
        self._open.discard(id(node))
        return value

    def _list(self, node: yaml.Node, key: Key) -> list[Any]:
        items = []
        for number, item in enumerate(node.value):
            self.origins[*key, number] = Origin(self.file, item.start_mark.line + 1)
            items.append(self.value(item, (*key, number)))
        return items

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        pairs = [(name, value) for name, value in node.value if self._is_key(name)]
        mapping: dict[str, Any] = {}
        for _, value in (pair for pair in pairs if pair[0].tag.endswith(":merge")):
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(item, yaml.MappingNode):
                    mapping = {**self.value(item, key), **mapping}
                else:
                    self.errors.append(self.error(item, "`<<` must be followed by an alias of a mapping"))
        written: dict[str, int] = {}
        for name, value in (pair for pair in pairs if not pair[0].tag.endswith(":merge")):
            line = name.start_mark.line + 1
            if name.value in written:
                first = f"it is first on line {written[name.value]}; keep one of the two"
                self.errors.append(self.error(name, f"{name.value!r} is written twice", first))
            written[name.value] = line
            self.origins[*key, name.value] = Origin(self.file, line)
            mapping[name.value] = self.value(value, (*key, name.value))
        return mapping

    def _is_key(self, name: yaml.Node) -> bool:
        if not isinstance(name, yaml.ScalarNode):
            self.errors.append(self.error(name, "a key must be a plain word"))
        return isinstance(name, yaml.ScalarNode)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        match kind:
            case "str" | "merge":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self._foreign_tag(node)
        return None

    def _foreign_tag(self, node: yaml.Node) -> None:
        self.errors.append(self.error(node, f"the YAML tag {node.tag!r} has no meaning here", "remove it"))


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserErrors([UserError(f"cannot be read ({error.strerror})", file=path)]) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        name = _other_encoding(raw)
        what = f"the file is written in {name}, not in UTF-8" if name else "the file is not UTF-8 text"
        hint = f"convert it: iconv -f {name} -t UTF-8" if name else "save it as UTF-8"
        raise UserErrors([UserError(what, hint, file=path, line=line)]) from error


def _other_encoding(raw: bytes) -> str | None:
    name = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "CP949"
    try:
        raw.decode(name)
    except UnicodeDecodeError:
        return None
    return name


def _syntax_error(error: Exception, path: Path, text: str) -> UserError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None)
    line = mark.line + 1 if mark else text.count("\n", 0, position or 0) + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    hint = "indent with spaces and put quotes around text that holds ': ' or starts with a special character"
    return UserError(f"not valid YAML: {problem}", hint, file=path, line=line)
