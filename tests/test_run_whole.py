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


def test_dpo_starts_where_sft_ended(mini_run):
    run, _ = mini_run
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
    for title in ("Stages", "Perplexity", "Training: sft", "Preference", "Retrieval"):
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
    changed = launch(mini_recipe, tmp_path, "dpo.max_steps=2", "eval.samples=1")
    assert changed.returncode == 0, changed.stderr
    assert [s for s in STAGES if f"{s:8} done" in changed.stderr] == ["dpo", "eval"]


def test_two_processes_train_together(mini_recipe, tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(MINI.split("memory:")[0].replace("name: mini", "name: two") + "chat: {system: none}\n", "utf-8")
    process = launch(recipe, tmp_path, config="cpu2")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("run two") == 1, "one process tells, not two"
    assert process.stderr.count("prepare  done") == 1
    assert metrics(tmp_path / "runs" / "two", "dpo")["first_margin"] == 0


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_cut_off_in_training_goes_on_and_ends_with_the_same_weights(mini_run, tmp_path, stage, blow):
    straight = finish(mini_run, tmp_path / "straight", stage)
    cut = begin(mini_run, tmp_path / "cut")
    process = subprocess.Popen(
        command(cut, stage), cwd=cut.parent, env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    )
    wait_for(process, cut / "mini" / stage / "checkpoints")
    os.kill(process.pid, blow)
    process.communicate(timeout=120)
    assert process.returncode == (-blow if blow == signal.SIGKILL else 128 + blow)
    assert not (cut / "mini" / stage / "manifest.json").exists()
    assert "goes on" in run_stage(cut, stage, tmp_path)
    assert weights(cut / "mini" / stage / "adapter") == weights(straight / "mini" / stage / "adapter")
    assert metrics(cut / "mini", stage)["steps"] == STEPS


STEPS = 60


def begin(mini_run, folder):
    """A copy of the run in which the stage under test is to be done anew, with more steps."""
    shutil.copytree(mini_run[0], folder / "mini")
    return folder


def command(runs, stage):
    recipe = runs / "mini.yaml"
    recipe.write_text(MINI, encoding="utf-8")
    changes = [f"{stage}.max_steps={STEPS}", f"{stage}.per_device_train_batch_size=2", f"{stage}.save_steps=4"]
    return [sys.executable, "-m", "pipeline", str(recipe), *changes, "--only", stage, "--runs", str(runs)]


def run_stage(runs, stage, home):
    done = subprocess.run(
        command(runs, stage), cwd=runs, env=environment(home), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def finish(mini_run, folder, stage):
    run_stage(begin(mini_run, folder), stage, folder)
    return folder


def wait_for(process, checkpoints):
    """Return as soon as a complete checkpoint is there."""
    while not list(checkpoints.glob("checkpoint-*/complete")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
        assert process.poll() is None, process.stderr.read()
