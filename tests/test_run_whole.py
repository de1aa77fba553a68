"""The whole pipeline, shrunken, through the real launcher: every stage, twice, on two processes, killed and resumed."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import MINI, environment, launch

STAGES = ("prepare", "tiny", "sft", "dpo", "memory", "eval")


def metrics(run, stage):
    return json.loads((run / stage / "manifest.json").read_text("utf-8"))["metrics"]


def weights(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_every_stage_leaves_its_work(mini_run):
    run, process = mini_run
    assert all((run / stage / "manifest.json").is_file() for stage in STAGES)
    assert not list(run.glob("*/checkpoints")), "checkpoints of finished stages are of no use"
    for told in ("perplexity", "preference", "retrieval", "report.html", "gonggam chat runs/mini"):
        assert told in process.stdout
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_tensorboard_finds_the_loss_of_every_step(mini_run, stage):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(mini_run[0] / stage / "tensorboard")).Reload()
    told = {row["step"]: row["loss"] for row in metrics(mini_run[0], stage)["history"] if "loss" in row}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(told, rel=1e-5)


def test_a_forced_stage_starts_over_and_an_interrupted_one_goes_on(tmp_path):
    from pipeline.run import Run

    run = Run(tmp_path)
    assert not run.begin("sft", "x")
    run.spent("sft", 5.0)
    assert run.begin("sft", "x")
    assert not run.begin("sft", "x", anew=True)
    assert run.spent("sft") == 0, "what the attempt that was thrown away took is not counted"
    assert run.begin("sft", "x", anew=True), "the forced command was interrupted and is given again"
    run.finish("sft", "x", seconds=1.0, metrics={})
    assert not run.begin("sft", "x")


def test_dpo_starts_where_sft_ended(mini_run):
    run, _ = mini_run
    told = metrics(run, "dpo")
    assert told["reply_logprob_p01"] < 0
    assert told["held_out"]["reply_tokens"]["after"] > 0
    assert metrics(run, "dpo")["first_margin"] == 0
    assert weights(run / "dpo" / "adapter") != weights(run / "sft" / "adapter")


def test_the_artefacts_load_without_us(mini_run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = mini_run
    tokenizer = AutoTokenizer.from_pretrained(run / "tiny" / "model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    base = AutoModelForCausalLM.from_pretrained(run / "tiny" / "model")
    model = PeftModel.from_pretrained(base, run / "dpo" / "adapter")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "안녕하세요"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model.generate(input_ids=ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_the_report_is_whole_and_says_what_its_judge_is_worth(mini_run):
    run, _ = mini_run
    html = (run / "eval" / "report.html").read_text("utf-8")
    assert "font/woff2" in html, "Hangul is drawn on machines without Korean fonts"
    assert "Content-Security-Policy" in html, "nothing is fetched when it is opened"
    for title in (
        "Stages",
        "Batches of dpo: prompts computed once",
        "Perplexity",
        "Training: sft",
        "Preference",
        "Retrieval",
    ):
        assert title in html
    assert metrics(run, "eval")["judge_trusted"] is False
    assert "could not be told from chance" in (run / "eval" / "report.md").read_text("utf-8")


def test_the_lock_is_a_recipe_that_repeats_the_run(mini_run):
    from pipeline.recipe import load_recipe

    run, _ = mini_run
    assert load_recipe(run / "recipe.lock.yaml").stages == list(STAGES)


def test_the_counsellor_answers_from_the_run_and_remembers(mini_run, tmp_path):
    from pipeline import Counselor

    run = shutil.copytree(mini_run[0], tmp_path / "mini")
    bot = Counselor.load(run)
    first = bot.reply("우리 강아지 보리가 아파서 밤새 한숨도 못 잤어", user="minji", session="2026-11-01")
    assert first.text
    assert first.source in ("model", "knowledge", "notice"), "a model this small may be withdrawn, but it says so"
    later = bot.reply("보리가 또 아픈 것 같아", user="minji", session="2026-11-20")
    assert any("보리" in note.user for note in later.recalled)
    stranger = bot.reply("보리가 또 아픈 것 같아", user="jisu", session="2026-11-20")
    assert not stranger.recalled
    bot.forget("minji")
    bot.close()
    left = [path for path in run.rglob("*") if path.is_file() and "한숨도 못 잤어".encode() in path.read_bytes()]
    assert not left


def test_a_second_run_has_nothing_to_do_and_a_changed_section_only_what_rests_on_it(mini_run, mini_recipe, tmp_path):
    run, _ = mini_run
    shutil.copytree(run, tmp_path / "runs" / "mini")
    again = launch(mini_recipe, tmp_path)
    assert again.returncode == 0
    assert "mini is up to date" in again.stdout
    assert again.stderr.count("up to date") == len(STAGES)
    changed = launch(mini_recipe, tmp_path, "dpo.max_steps=2", "dpo.length_prompts=0", "eval.samples=1")
    assert changed.returncode == 0, changed.stderr
    assert [s for s in STAGES if f"{s:8} done" in changed.stderr] == ["dpo", "eval"]


def test_two_processes_train_together_and_share_a_step_exactly(tmp_path):
    import torch
    from one_step import __file__ as script
    from one_step import step, tokenizer

    recipe = tmp_path / "two.yaml"
    training = MINI.split("memory:")[0].replace("name: mini", "name: two").replace("max_steps: 6", "max_steps: 2")
    recipe.write_text(training.replace("dpo: {", "dpo: {length_prompts: 0, ") + "chat: {system: none}\n", "utf-8")
    process = launch(recipe, tmp_path, "found.pt", config="cpu2", script=[script])
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("run two") == 1, "one process tells, not two"
    assert process.stderr.count("prepare  done") == 1
    assert metrics(tmp_path / "runs" / "two", "dpo")["first_margin"] == 0
    together = torch.load(tmp_path / "found.pt")
    alone = {form: step(form, tokenizer(), tmp_path / form) for form in together}
    far = {form: float((together[form] - alone[form]).norm() / alone[form].norm()) for form in together}
    assert max(far.values()) < 1e-5, far
    assert float((together["exploded"] - together["whole"]).norm() / together["whole"].norm()) < 1e-5


STEPS = 32


@pytest.fixture(scope="module")
def straight(mini_run, tmp_path_factory):
    """A run whose training nobody disturbed."""
    runs = begin(mini_run, tmp_path_factory.mktemp("straight"))
    train_to_the_end(runs)
    return runs / "mini"


@pytest.mark.parametrize(
    "blows",
    [{"sft": signal.SIGKILL, "dpo": signal.SIGTERM}, {"sft": signal.SIGTERM, "dpo": signal.SIGKILL}],
    ids=["kill-then-term", "term-then-kill"],
)
def test_a_run_cut_off_in_training_goes_on_and_ends_with_the_same_weights(mini_run, straight, tmp_path, blows):
    runs = begin(mini_run, tmp_path)
    for stage, blow in blows.items():
        process = subprocess.Popen(
            command(runs), cwd=runs, env=environment(tmp_path), stderr=subprocess.PIPE, text=True
        )
        wait_for(process, runs / "mini" / stage / "checkpoints")
        os.kill(process.pid, blow)
        process.communicate(timeout=120)
        assert process.returncode == (-blow if blow == signal.SIGKILL else 128 + blow)
        assert not (runs / "mini" / stage / "manifest.json").exists()
    assert "goes on" in train_to_the_end(runs)
    for stage in blows:
        assert weights(runs / "mini" / stage / "adapter") == weights(straight / stage / "adapter")
        assert metrics(runs / "mini", stage)["steps"] == STEPS


def begin(mini_run, folder):
    """A copy of the run whose training is to be done anew, with more steps."""
    shutil.copytree(mini_run[0], folder / "mini")
    return folder


def command(runs):
    recipe = runs / "mini.yaml"
    recipe.write_text(MINI.split("memory:")[0] + "chat: {system: none}\n", encoding="utf-8")
    steps = {"max_steps": STEPS, "per_device_train_batch_size": 2, "save_steps": 4}
    changes = [f"{stage}.{key}={value}" for stage in ("sft", "dpo") for key, value in steps.items()]
    return [sys.executable, "-m", "pipeline", str(recipe), *changes, "dpo.length_prompts=0", "--runs", str(runs)]


def train_to_the_end(runs):
    done = subprocess.run(
        command(runs), cwd=runs, env=environment(runs), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_for(process, checkpoints):
    """Return as soon as a complete checkpoint is there."""
    while not list(checkpoints.glob("checkpoint-*/complete")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
        assert process.poll() is None, process.stderr.read()
