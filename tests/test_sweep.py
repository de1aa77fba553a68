"""A sweep trains every candidate as an ordinary run, survives those that crash, and names the winner."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import environment
from typer.testing import CliRunner

from gonggam.errors import UserError, UserErrors
from pipeline.recipe import load_recipe

SWEPT = """\
name: swept
prepare: {sources: [{reader: counsel_ko, rows: 24}], split: {validation: 0.2, test: 0.2}}
tiny:
  {vocab_size: 400, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
   intermediate_size: 32, max_position_embeddings: 256, max_steps: 2, per_device_train_batch_size: 2}
sft: {lora: {r: 2, target_modules: all-linear}, max_steps: 2, max_length: null, logging_steps: 1}
memory: {}
chat: {system: none}
sweep:
  grid: {sft.max_length: [8, null]}
  criterion: sft.validation_perplexity.after
  mode: min
  prompts: [힘들어]
  max_new_tokens: 4
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "swept.yaml"
    path.write_text(SWEPT, "utf-8")
    return path


def asked(recipe, *changes):
    """What the search asks for first."""
    from pipeline.train.sweep_search import search_of

    loaded = load_recipe(recipe, [f"sweep.{change}" for change in changes])
    return search_of(loaded.sweep, loaded.seed).ask()


def test_candidates_are_every_combination_each_with_a_folder_of_its_own(recipe):
    from pipeline.train.sweep import candidates

    found = candidates(recipe, [], asked(recipe, "grid={sft.lora.r: [2, 4], sft.learning_rate: [1e-3, 1e-4, 1e-5]}"))
    assert len({candidate.name for candidate in found}) == 6
    assert {c.recipe.sft.lora["r"] for c in found} == {2, 4}
    assert all(c.recipe.name == c.name for c in found)
    some = asked(recipe, "grid={sft.lora.r: [2, 4, 8, 16]}", "trials=2")
    assert len(some) == 2


def test_errors_in_any_candidate_are_found_before_one_is_trained(recipe, tmp_path):
    from pipeline.train.sweep import sweep

    with pytest.raises(UserErrors) as caught:
        sweep(recipe, ["sweep.grid={sft.lora.rank: [2], sft.learning_rate: [fast, 1e-3]}"], tmp_path)
    assert "sft.lora.rank" in str(caught.value)
    assert "sft.learning_rate must be a number" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sweep.grid={}", "sweep.grid"),
        ("sweep.grid={sft.lora.r: []}", "no values"),
        ("sweep.criterion=perplexity", "must name a stage"),
        ("sweep.mode=best", "max or min"),
        ("sweep.grid={sft.learning_rate: {low: 1e-5, high: 1e-3}}", "only search: optuna"),
        (
            "sweep={search: optuna, criterion: sft.x, grid: {sft.learning_rate: {low: 0, high: 1, log: true}}}",
            "above 0",
        ),
    ],
)
def test_a_wrong_sweep_section_is_told_by_place(recipe, override, expected):
    with pytest.raises(UserErrors) as caught:
        load_recipe(recipe, [override])
    assert expected.replace(" or ", "") in str(caught.value).replace("'", "").replace(" or ", "")


def test_what_no_candidate_changes_is_shared(recipe):
    from pipeline.train.sweep import needed_stages, shared_stages

    demo = load_recipe("demo", ["sweep={grid: {dpo.beta: [0.1, 0.2]}, criterion: dpo.held_out.accuracy}"])
    assert needed_stages(demo) == ["prepare", "tiny", "sft", "dpo"]
    assert shared_stages(demo, ["dpo.beta"]) == ["prepare", "tiny", "sft"]
    assert shared_stages(demo, ["sft.lora.r"]) == ["prepare", "tiny"]
    assert shared_stages(demo, ["sft"]) == ["prepare", "tiny"]
    assert shared_stages(demo, ["tiny.hidden_size"]) == ["prepare"]
    assert shared_stages(demo, ["seed"]) == []
    with pytest.raises(UserError, match="no stage"):
        needed_stages(load_recipe(recipe, ["sweep.criterion=dpo.held_out.accuracy"]))


def launch_here(file, runs, log, environment):
    """An ordinary run in this process, which has paid for its imports."""
    from pipeline.execute import execute
    from pipeline.run import Run

    recipe = load_recipe(file)
    try:
        execute(recipe, Run(runs / recipe.name), ["test"], only=None, start=None, force=False)
    except UserError as error:
        return 2, str(error)
    return 0, ""


def test_a_sweep_goes_on_after_a_crash_and_names_the_winner(recipe, tmp_path):
    from pipeline.train.sweep import sweep

    calls = []
    found = sweep(recipe, [], tmp_path, report=calls.append, launch=launch_here)
    best, crashed = found
    assert best.values == {"sft.max_length": None}
    assert best.score > 1
    assert len(best.answers) == 1
    assert crashed.score is None
    assert "exit code 2" in crashed.fault
    place = tmp_path / "swept" / "sweep"
    assert json.loads((place / "sweep.json").read_text("utf-8"))["candidates"][0]["score"] == best.score
    assert not (place.parent / "recipe.lock.yaml").exists(), "the run itself is left alone"
    weights = [place / name / "tiny/model/model.safetensors" for name in ("shared", best.name)]
    assert weights[0].samefile(weights[1])
    page = (place / "sweep.html").read_text("utf-8")
    assert "힘들어" in page
    assert "max_length None" in page
    manifest = (place / best.name / "sft" / "manifest.json").read_bytes()
    again = sweep(recipe, [], tmp_path, launch=launch_here)
    assert again[0].score == best.score
    assert (place / best.name / "sft" / "manifest.json").read_bytes() == manifest, "what is done is not done again"


def launch_pretended(measure, calls):
    """A run that trains nothing and scores what ``measure`` makes of its learning rate."""
    from pipeline.run import Run

    def launch(file, runs, log, environment):
        loaded = load_recipe(file)
        calls.append((loaded.name, dict(environment)))
        run = Run(runs / loaded.name)
        for stage in loaded.stages:
            run.begin(stage, "x")
            rate = loaded.sft.arguments["learning_rate"] if stage == "sft" else 0
            run.finish(stage, "x", seconds=1.0, metrics={"history": [], "score": measure(rate)})
        return 0, ""

    return launch


SEARCH = (
    "{search: optuna, criterion: sft.score, mode: min, grid: {sft.learning_rate: {low: 1e-5, high: 1e-1, log: true}}"
)


def test_optuna_closes_in_on_the_best_and_asks_the_same_again(recipe, tmp_path):
    from math import log10

    from pipeline.train.sweep import sweep

    names = []
    for _ in range(2):
        calls = []
        launch = launch_pretended(lambda rate: abs(log10(rate) + 3) if rate else 0, calls)
        given = [f"sweep={SEARCH}, trials: 16}}"]
        found = sweep(recipe, given, tmp_path, launch=launch, answers=False)
        names.append([name for name, _ in calls])
    assert names[0] == names[1]
    assert len(found) == 16
    assert 3e-4 < found[0].values["sft.learning_rate"] < 3e-3
    assert (tmp_path / "swept" / "sweep" / "sweep.html").is_file()


def test_candidates_train_at_the_same_time_each_with_its_share(recipe, tmp_path):
    from threading import Barrier

    from pipeline.train.sweep import sweep

    met, calls = Barrier(2), []

    def measure(rate):
        if rate:
            met.wait(timeout=60)  # breaks, and the sweep with it, unless two candidates are here at once
        return rate

    given = ["sweep={criterion: sft.score, grid: {sft.learning_rate: [1e-4, 1e-3, 1e-2, 1e-1]}, parallel: 2}"]
    found = sweep(recipe, given, tmp_path, launch=launch_pretended(measure, calls), answers=False)
    assert [c.score for c in found] == [1e-1, 1e-2, 1e-3, 1e-4]
    assert all(share for name, share in calls if name != "shared")


def test_a_candidate_runs_in_a_process_of_its_own(tmp_path):
    from pipeline.train.sweep_process import Processes

    (tmp_path / "bad.yaml").write_text("name: bad\nsft: {lora: {rank: 2}}\n")
    code, line = Processes()(tmp_path / "bad.yaml", tmp_path, tmp_path / "bad.log", {})
    assert code == 2
    assert "error" in line


STANDIN = """\
import json, os, signal, sys
from pathlib import Path
import yaml

recipe = yaml.safe_load(Path(sys.argv[1]).read_text("utf-8"))
folder = Path(sys.argv[3]) / recipe["name"]
folder.mkdir(parents=True, exist_ok=True)
mark = folder / "checkpoint"
if recipe["name"] != "shared" and not mark.exists():
    def stop(number, _):
        mark.write_text(str(number))  # a whole checkpoint, before the process ends
        raise SystemExit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "ready").touch()
    if len(list(folder.parent.glob("*/ready"))) == 2:
        with open(os.environ["TOLD"], "w") as told:  # a named pipe, at which the test waits
            told.write("ready")
    while True:
        signal.pause()
for stage in [s for s in ("prepare", "tiny", "sft") if s in recipe]:
    place = folder / stage
    place.mkdir(exist_ok=True)
    metrics = {"history": [], "score": recipe["sft"]["learning_rate"] if stage == "sft" else 0}
    made = {"fingerprint": "x", "seconds": 1.0, "metrics": metrics}
    if not (place / "manifest.json").exists():  # what is shared is a hard link, and not rewritten
        (place / "manifest.json").write_text(json.dumps(made))
"""
SWEEPING = """\
import sys
from pathlib import Path
from pipeline.train import sweep, sweep_process

processes = sweep_process.Processes([sys.executable, sys.argv[2]])
sweep.sweep(sys.argv[1], sys.argv[4:], Path(sys.argv[3]), launch=processes, answers=False)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_candidate_and_the_same_command_goes_on(recipe, tmp_path, number):
    (tmp_path / "standin.py").write_text(STANDIN, "utf-8")
    given = "sweep={criterion: sft.score, grid: {sft.learning_rate: [1e-4, 1e-3]}, parallel: 2}"
    command = [sys.executable, "-c", SWEEPING, str(recipe), str(tmp_path / "standin.py"), str(tmp_path), given]
    os.mkfifo(tmp_path / "told")
    there = {**environment(tmp_path), "TOLD": str(tmp_path / "told")}
    with subprocess.Popen(command, env=there) as process:
        assert (tmp_path / "told").read_text() == "ready"
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    place = tmp_path / "swept" / "sweep"
    found = [path.read_text() for path in place.glob("*/checkpoint")]
    assert found == [str(int(number))] * 2, "both wrote theirs before the sweep ended"
    assert not (place / "sweep.json").exists()
    done = subprocess.run(command, env=there, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads((place / "sweep.json").read_text("utf-8"))["candidates"][0]["score"] == 1e-3


def test_the_command_says_what_is_missing(tmp_path):
    from pipeline.cli import app

    result = CliRunner().invoke(app, ["sweep", "demo", "--runs", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "no sweep section" in str(result.exception)
