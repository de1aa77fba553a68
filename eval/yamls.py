"""Rubrics and judges come from YAML files, shipped or the user's own; every fault in one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gonggam.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def find_yaml(name_or_path: str | Path, folder: Path, what: str) -> Path:
    """The YAML file meant by a shipped name or a path.

    Raises:
        UserError: there is no such file.
    """
    shipped = folder / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() and Path(name_or_path).name == str(name_or_path) else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"no such {what}: {name_or_path}", f"give the path of a YAML file, or one of: {names}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: it is no UTF-8, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", "save the file as UTF-8", file=path) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"not valid YAML ({problem})", file=path, line=mark.line + 1 if mark else None) from error
    if not isinstance(content, dict):
        raise UserError("expected `key: value` lines", file=path)
    return content


def validated(kind: type[Model], content: dict[str, Any], source: str | Path) -> Model:
    """The content as ``kind``.

    Raises:
        UserError: naming every fault by where it stands.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UserError(faults, file=source) from error
