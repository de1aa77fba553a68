"""What a user gets wrong comes as one line that says what, where and what to do; exit code 2, nothing half done."""

import json
import os
import subprocess
import sys

import pytest
from conftest import MINI, ROOT, environment

from pipeline.cli import main

PRETRAINED = """\
name: x
model: {{base: {}}}
prepare: {{sources: [{{reader: counsel_ko, rows: 40}}]}}
sft: {{max_steps: 1}}
"""


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder; return its error lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        said = capsys.readouterr()
        assert caught.value.code == 2, said.err
        assert "Traceback" not in said.err
        return [line for line in said.err.splitlines() if line.startswith("error")]

    return run


@pytest.fixture
def recipe(tmp_path):
    def write(text=MINI):
        path = tmp_path / "mini.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_recipe_that_is_not_there(fails):
    (line,) = fails("run", "nowhere.yaml")
    assert "nowhere.yaml" in line


def test_a_malformed_recipe_names_every_line(fails, recipe):
    lines = fails("run", recipe("name: x\ntinny: {}\nsft: {learning_rte: 1}\n"))
    assert all("mini.yaml:" in line for line in lines)
    assert any("did you mean tiny" in line for line in lines)
    assert any("did you mean learning_rate" in line for line in lines)


def test_an_unknown_stage(fails, recipe, tmp_path):
    (line,) = fails("run", recipe(), "--only", "sftt")
    assert "did you mean sft?" in line
    assert not (tmp_path / "runs").exists()


def test_a_model_folder_that_is_not_there(fails, recipe):
    text = (
        MINI.replace("tiny:\n", "model: {base: ./nowhere}\n#").replace("  {vocab", "#").replace("   intermediate", "#")
    )
    (line,) = fails("run", recipe(text))
    assert "nowhere: model folder not found" in line


def test_a_folder_that_holds_no_model(fails, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    text = (
        "name: x\nmodel: {base: ./empty}\nprepare: {sources: [{reader: counsel_ko, rows: 40}]}\nsft: {max_steps: 1}\n"
    )
    (line,) = fails("run", recipe(text))
    assert "config.json is missing" in line


def test_a_hub_that_cannot_be_reached(fails, recipe):
    (line,) = fails("run", recipe(PRETRAINED.format("some/model")))
    assert "some/model" in line
    assert "give the path of its folder" in line


def test_a_stage_whose_foundation_is_missing(fails, recipe):
    (line,) = fails("run", recipe(), "--only", "dpo")
    assert "dpo builds on prepare, which is not done yet" in line


def test_data_that_is_not_named(fails, recipe):
    text = "".join(MINI.partition("tiny:")[1:])
    (error,) = fails("run", str(recipe(f"name: mini\n{text}")), "--only", "tiny")
    assert "tiny needs data, and the recipe has no prepare section" in error


def test_dpo_without_pairs_is_told_before_the_other_stages_train(fails, recipe, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"고민 {i}"}, {"role": "assistant", "content": f"답 {i}"}]}
        for i in range(40)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    sources = "[{reader: messages, path: talks.jsonl}]"
    (error,) = fails("run", str(recipe()), f"prepare.sources={sources}")
    assert "dpo needs preference pairs, and the train split has none" in error
    assert not (tmp_path / "runs/mini/tiny").exists()


def test_a_place_that_cannot_be_written(fails, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    (line,) = fails("run", recipe(), "--runs", "file")
    assert "choose another folder" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(fails, recipe, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    (line,) = fails("run", recipe(), "--runs", "closed")
    assert "permissions" in line


def test_a_run_folder_in_use(fails, recipe, tmp_path):
    from pipeline.run import Run

    with Run(tmp_path / "runs" / "mini").locked():
        (line,) = fails("run", recipe())
    assert f"pid {os.getpid()}" in line


def test_no_run_where_a_run_is_wanted(fails):
    (line,) = fails("report", "nowhere")
    assert "recipe.lock.yaml is missing" in line


def test_a_full_disk_leaves_no_manifest(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be made here")
    try:
        (tmp_path / "mini.yaml").write_text(MINI, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", str(tmp_path / "mini.yaml"), "--runs", str(disk)],
            cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "No space left on device. free some space" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.glob("mini/tiny/manifest.json"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
