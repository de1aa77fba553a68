"""What the documents say holds: every command is run or checked, every snippet runs, every link leads somewhere.

Commands of shell blocks run in a folder with the shrunken run under the names they use. `NOT_RUN` lists those that
cannot, and why; these, and commands in running text, go through the parser of the program they call, the files that
they name must be there, and recipes and overrides must pass the check of `gonggam recipe check`.
"""

import ast
import asyncio
import inspect
import io
import json
import re
import shutil
import tomllib

import openpyxl
import pytest
import typer
import yaml
from conftest import MINI, ROOT
from docs_commands import PAGES, commands, fences, links

from eval.__main__ import _parser as eval_parser
from gonggam.files import read_jsonl
from pipeline import Counselor
from pipeline.cli import app, main
from pipeline.recipe import load_recipe

NOT_RUN = {  # how a command of a shell block begins → why it is only checked
    "accelerate launch": "trains a model of the hub on a GPU; conftest.py launches the shrunken recipe the same way",
    "gonggam data prefer data --teacher": "asks a teacher over the network; test_data_teacher.py has one",
    "gonggam eval compare": "asks models and a paid judge; test_eval_room.py compares",
    "gonggam eval runs/": "evaluates anew, with a paid judge; test_eval_room.py does, and the shrunken run did",
    "gonggam eval simulate": "minutes of talks; test_eval_room.py simulates",
    "gonggam plan eeve-10.8b --gpu": "reads data of the hub; test_plan.py plans",
    "gonggam serve": "runs until it is stopped; test_serve_api.py starts it",
    "gonggam sweep": "trains several models; test_sweep.py does",
    "make": "sets up an environment of its own, or is this suite; test_run_whole.py runs what `make demo` launches",
    "pip": "installs packages",
    "python -m eval run": "asks a paid judge; test_eval_data.py runs it with a stand-in",
    "python -m pytest": "is this suite",
    "python bench/": "measures for minutes; test_bench_card.py holds what it hands over",
}
OTHERS = {"git", "sqlite3", "tar", "tensorboard"}  # programs of other people, with no option of ours
ALL = list({(*c.words, c.fenced): c for page in PAGES for c in commands(page)}.values())
RUN = [c for c in ALL if c.fenced and not any(" ".join(c.words).startswith(start) for start in NOT_RUN)]
CHECKED = [c for c in ALL if c not in RUN]
SNIPPETS = [f for page in PAGES for f in fences(page) if f.language == "python"]
FRAGMENTS = [f for page in PAGES for f in fences(page) if f.language == "yaml"]
NOT_SNIPPED = {  # of these the imports alone
    "evaluation.md": "judges with a model under eight criteria; test_eval_run.py and the shrunken run do",
    "service.md": "talks to a server; test_serve_api.py does with the same package",
}


@pytest.fixture(scope="module")
def house(mini_run, tmp_path_factory):
    """A folder in which the documents' commands and snippets find what they name."""
    folder, run = tmp_path_factory.mktemp("house"), mini_run[0]
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for name in set(re.findall(r"runs/([a-z][\w.-]*\w|[a-z]\b)", text)):
        shutil.copytree(run, folder / "runs" / name)
    (folder / "talks").mkdir()
    shutil.copy(run / "prepare/messages/train.jsonl", folder / "talks/one.jsonl")
    shutil.copy(run / "prepare/messages/test.jsonl", folder / "questions.jsonl")
    shutil.copy(run / "prepare/preference/train.jsonl", folder / "pairs.jsonl")
    _write_tables(folder, [talk["messages"][:2] for talk in read_jsonl(folder / "talks/one.jsonl")])
    shapes = yaml.safe_load((ROOT / "pipeline/train/shapes.yaml").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(next(iter(shapes.values()))), "utf-8")
    (folder / "my.yaml").write_text(
        MINI + "sweep: {grid: {sft.learning_rate: [1e-3, 1e-4]}, criterion: sft.validation_perplexity.after}\n", "utf-8"
    )
    return folder


def _write_tables(folder, exchanges):
    said = [(user["content"], reply["content"]) for user, reply in exchanges]
    rows = [f'"{user}","{reply}",corpus,single' for user, reply in said]
    (folder / "a.csv").write_text("\n".join(["instruction,output,source,type", *rows]), "utf-8")
    scored = [{"context": user, "reply": reply, "human_empathy": len(reply) % 5} for user, reply in said]
    (folder / "replies.json").write_text(json.dumps(scored), "utf-8")
    book = openpyxl.Workbook()
    for row in ("question", said[0][0]):
        book.active.append([row])
    book.save(folder / "questions.xlsx")


@pytest.fixture
def here(house, monkeypatch):
    """The house as the working folder, without a network, and with somebody who says good-bye."""
    monkeypatch.chdir(house)
    monkeypatch.setenv("HOME", str(house))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO("/help\n/quit\n"))
    return house


@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_command_of_a_shell_block_runs(command, here, capsys):
    assert command.words[0] == "gonggam", "how is this run? If it cannot be, NOT_RUN says why"
    try:
        main(list(command.words[1:]))
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err  # noqa: PT017


@pytest.mark.parametrize("command", CHECKED, ids=str)
def test_a_command_that_is_not_run_is_one_that_would(command, here):
    program, *rest = command.words
    if program not in OTHERS:
        CHECKS[program](rest, command.fenced)


def _gonggam(words, whole=True):
    """The options exist, the recipe and its overrides pass; in running text a command may stand without arguments."""
    group = typer.main.get_command(app)
    try:
        context = group.make_context("gonggam", list(words))
        while hasattr(group, "commands"):
            name, group, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            context = group.make_context(name, list(rest), parent=context)
    except Exception as error:
        if whole or "Missing" not in str(error) or any(word.startswith("-") for word in words):
            raise
        return
    overrides = context.params.get("overrides") or []
    if "recipe" in context.params or overrides:
        load_recipe(context.params.get("recipe", "runs/demo/recipe.lock.yaml"), overrides)


def _accelerate(words, whole):
    if not whole and words == ["launch"]:
        return
    config, place = words[words.index("--config_file") + 1], words.index("-m")
    assert words[0] == "launch"
    assert (ROOT / config).is_file()
    assert words[place + 1] == "pipeline"
    _gonggam(["run", *words[place + 2 :]])


def _make(words, _):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(words) <= set(targets)


def _pip(words, _):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(extras)
    assert all((ROOT / words[at + 1]).is_file() for at, word in enumerate(words) if word == "-c")


def _python(words, whole):
    """The module or script is there, and takes these options."""
    if words[0] != "-m":
        script = (ROOT / words[0]).read_text("utf-8")
        assert [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in script] == []
    elif words[1] == "eval":
        eval_parser().parse_args(words[2:])
    elif words[1] == "pytest":
        files = [word for word in words[2:] if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files)
    else:
        assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file()


CHECKS = {
    "accelerate": _accelerate,
    "gonggam": _gonggam,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "pytest": lambda words, whole: _python(["-m", "pytest", *words], whole),
}


def test_nothing_is_excused_that_no_document_says():
    said = [" ".join(command.words) for command in ALL if command.fenced]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in said)] == []


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_python_snippet_runs(snippet, here):
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(snippet.text, str(snippet), "exec", flags=flags | ast.PyCF_ONLY_AST)
    if snippet.page.name in NOT_SNIPPED:
        tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    code = compile(tree, str(snippet), "exec", flags=flags)
    pairs = [(f"{word} 이야기를 하고 싶어", "네, 들려주세요") for word in ("강아지", "사료", "면접")]
    names = {"Counselor": Counselor, "exchanges": pairs}
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))
    else:
        exec(code, names)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=str)
def test_a_recipe_fragment_passes_the_check(fragment, tmp_path):
    path = tmp_path / "fragment.yaml"
    whole = "" if "prepare:" in fragment.text else "extends: eeve-10.8b\n"
    path.write_text(f"name: fragment\n{whole}{fragment.text}\n", "utf-8")
    load_recipe(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_blocks_say_what_they_are(page):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []
    assert {fence.language for fence in fences(page)} <= {"bash", "python", "text", "yaml"}


def test_both_readmes_tell_the_same():
    def facts(page):
        shown = [fence.text for fence in fences(page) if fence.language in ("bash", "python")]
        text = page.read_text("utf-8").replace("pipeline.ko.svg", "pipeline.svg")
        code = re.sub(r"(^|\s)#.*", "", "\n".join(shown), flags=re.M)
        return code, text.count("\n## "), set(re.findall(r"docs/[\w./-]+", text))

    assert facts(PAGES[0]) == facts(PAGES[1])


def test_the_readme_lists_every_page():
    listed = set(links(PAGES[0]))
    assert {f"docs/{page.name}" for page in PAGES[2:]} <= listed
