"""What many tests share: a whole tiny run, made once by the real command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# The same examples everywhere: what passes here passes for whoever clones. New ones come with
# `pytest --hypothesis-profile=default`, as docs/contributing.md says. Neither looks at the clock: a busy machine is
# no mistake of the code. To kill a mutant any example will do, it need not be the smallest.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", **UNTIMED)
settings.register_profile("same", derandomize=True, **UNTIMED)
settings.register_profile("mutants", derandomize=True, phases=(Phase.explicit, Phase.generate), **UNTIMED)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent

MINI = """\
name: mini
prepare:
  sources: [{reader: counsel_ko, rows: 60}]
  split: {validation: 0.15, test: 0.15}
tiny:
  {vocab_size: 600, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2,
   intermediate_size: 128, max_position_embeddings: 1024, max_steps: 6, per_device_train_batch_size: 1}
sft: {lora: {r: 4, target_modules: all-linear}, learning_rate: 1e-3, max_steps: 6, max_length: null, logging_steps: 1}
dpo: {learning_rate: 1e-3, max_steps: 4, max_length: null, logging_steps: 1}
memory: {epochs: 2}
chat: {system: none, max_new_tokens: 24}
eval:
  {items: 2, samples: 2, calibration_pairs: 2, criteria: [empathy], max_new_tokens: 16, bootstrap: 100,
   simulate: {turns: 1, judge: local}}
"""


def environment(home):
    """A newcomer's environment: an empty home, no model hub, one thread so that sums come out the same."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def listening(heard):
    """What to add to an environment so that a file tells whom processes call, see tests/ear."""
    return {"EAR": str(heard), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "ear")])}


def launch(recipe, cwd, *arguments, config="cpu", script=("-m", "pipeline"), **more):
    """``accelerate launch -m pipeline`` (or a script) in a folder; returns the finished process with its output.

    ``more`` is added to its environment.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / f"recipes/accelerate/{config}.yaml"), *script, str(recipe)]
    given = {"cwd": cwd, "env": environment(cwd) | more, "timeout": 900}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, **given)


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A file of sixty dialogues of the sample corpus, as a source of preparation."""
    path = tmp_path_factory.mktemp("few") / "dialogues.jsonl"
    lines = (ROOT / "data_prep/samples/counsel_ko/dialogues.jsonl").read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:60]), "utf-8")
    return {"reader": "counsel_ko", "path": str(path)}


@pytest.fixture(scope="session")
def mini_recipe(tmp_path_factory):
    """A shrunken demo recipe."""
    path = tmp_path_factory.mktemp("recipe") / "mini.yaml"
    path.write_text(MINI, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def mini_run(mini_recipe, tmp_path_factory):
    """(run folder, finished process): every stage of the shrunken recipe through accelerate launch. Read only."""
    folder = tmp_path_factory.mktemp("mini")
    process = launch(mini_recipe, folder, **listening(folder / "heard.txt"))
    assert process.returncode == 0, process.stdout + process.stderr
    return folder / "runs" / "mini", process


@pytest.fixture(scope="session")
def tiny_model_dir(mini_run):
    """The tiny base of the shrunken run: a Hugging Face folder."""
    return mini_run[0] / "tiny" / "model"
