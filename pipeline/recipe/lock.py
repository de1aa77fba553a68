"""recipe.lock.yaml: the resolved recipe and all that is needed to repeat the run."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gonggam.files import write_text

if TYPE_CHECKING:
    from pipeline.recipe.load import Recipe

_PACKAGE = Path(__file__).resolve().parent


def write_lock(recipe: Recipe, path: Path, data_hashes: dict[str, str], command: Sequence[str]) -> None:
    """Write the lock of ``recipe`` to ``path``; `load_recipe` reads it back as the same recipe."""
    locked = {
        "command": shlex.join(command),
        "recipe": str(recipe.file),
        "overrides": list(recipe.overrides),
        "data": dict(data_hashes),
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
    }
    text = yaml.safe_dump({**recipe.resolved(), "locked": locked}, allow_unicode=True, sort_keys=False, width=120)
    write_text(path, f"# A recipe with all values filled in; to run it again: gonggam run {path.name}\n{text}")


def package_versions() -> dict[str, str]:
    """Name and version of every installed distribution."""
    found = ((dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted(((name, version) for name, version in found if name), key=lambda pair: pair[0].lower()))


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree and whether tracked files differ from it; None where the code is not under git."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _PACKAGE, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
