"""The plan of the house: arrows point down only, and opening a room costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_ENTER = {
    "gonggam": {"gonggam"},
    "data_prep": {"gonggam", "data_prep"},
    "rag": {"gonggam", "rag"},
    "eval": {"gonggam", "eval"},
    "pipeline": {"gonggam", "data_prep", "rag", "eval", "pipeline"},
}
HEAVY = (
    "torch", "transformers", "trl", "peft", "datasets", "faiss", "pandas", "sklearn", "scipy", "plotly", "matplotlib",
    "langchain", "langchain_core", "gradio", "fastapi", "sqlalchemy", "kiwipiepy",
)  # fmt: skip
HELP = f"""
import sys
from contextlib import redirect_stdout
from io import StringIO
import typer
from pipeline.cli import app

def ask(command, words):
    with redirect_stdout(StringIO()) as told:
        command.main([*words, "--help"], "gonggam", standalone_mode=False)
    print(*words, [name for name in {HEAVY!r} if name in sys.modules], bool(told.getvalue().strip()), sep="\\t")

def walk(command, words):
    ask(top, words)
    for name, below in getattr(command, "commands", {{}}).items():
        walk(below, [*words, name])

top = typer.main.get_command(app)
walk(top, [])
"""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", MAY_ENTER)
def test_arrows_point_down_only(room):
    for path in (ROOT / room).rglob("*.py"):
        forbidden = set(imports(path)) & (set(MAY_ENTER) - MAY_ENTER[room])
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


@pytest.mark.parametrize("room", [*MAY_ENTER, "pipeline.cli", "pipeline.stages", "pipeline.execute"])
def test_opening_a_room_loads_nothing_heavy(room):
    code = f"import sys, {room}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_every_command_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    told = [line.split("\t") for line in done.stdout.splitlines()]
    assert {("run",), ("serve",), ("sweep",), ("eval", "compare"), ("data", "prefer")} <= {tuple(t[:-2]) for t in told}
    assert [one for one in told if one[-2:] != ["[]", "True"]] == []
