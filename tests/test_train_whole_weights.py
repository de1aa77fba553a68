"""`sft: {lora: null}` trains all weights; what comes after builds on them."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RECIPE = """\
name: whole
model: {{base: {base}}}
sft: {{lora: null, learning_rate: 1e-2, max_steps: 2, max_length: null}}
dpo: {{lora: {{r: 2, target_modules: all-linear}}, learning_rate: 1e-2, max_steps: 2, max_length: null}}
"""
ASKED = [{"role": "user", "content": "오늘 너무 힘들어"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder whose SFT stage left whole weights, and its DPO stage an adapter on them."""
    from test_train_pack import model_of

    from gonggam.files import write_jsonl
    from pipeline.recipe import load_recipe
    from pipeline.run import Run
    from pipeline.stages import STAGES, Context
    from pipeline.train.tiny import build_tokenizer

    home = tmp_path_factory.mktemp("whole")
    turns = [{**ASKED[0]}, {"role": "assistant", "content": "많이 지치셨군요. 무슨 일이 있었나요?"}]
    tokenizer = build_tokenizer((turn["content"] for turn in turns), 300, 512)
    model = model_of("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    (home / "whole.yaml").write_text(RECIPE.format(base=home / "base"), encoding="utf-8")
    recipe = load_recipe(home / "whole.yaml")
    run = Run(home / "runs" / "whole")
    pair = {"id": "1", "prompt": turns[:1], "chosen": turns[1:], "rejected": [{**turns[1], "content": "그렇군요."}]}
    for split in ("train", "validation", "test"):
        write_jsonl(run.stage("prepare") / "messages" / f"{split}.jsonl", [{"id": "1", "messages": turns}] * 2)
        write_jsonl(run.stage("prepare") / "preference" / f"{split}.jsonl", [pair] * 2)
    for stage in ("sft", "dpo"):
        run.begin(stage, "x")
        metrics = STAGES[stage].work(Context(recipe, run, run.stage(stage)))
        run.finish(stage, "x", seconds=1.0, metrics=metrics)
    (run.folder / "recipe.lock.yaml").write_text((home / "whole.yaml").read_text("utf-8"), encoding="utf-8")
    return recipe, run


def weights(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_every_weight_moves_and_is_written_whole(trained):
    recipe, run = trained
    before, after = weights(recipe.model.base), weights(run.stage("sft") / "model")
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still
    assert json.loads((run.stage("sft") / "model" / "config.json").read_text())["use_cache"]
    told = run.manifest("sft")["metrics"]["validation_perplexity"]
    assert told["after"] < told["before"]


def test_dpo_trains_an_adapter_on_them_against_them(trained):
    _, run = trained
    config = json.loads((run.stage("dpo") / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run.stage("sft") / "model")
    assert abs(run.manifest("dpo")["metrics"]["first_margin"]) < 1e-4


def test_the_counsellor_chooses_among_the_weights_it_loaded(trained):
    from pipeline import Counselor
    from pipeline.chat.backends import BackendError

    _, run = trained
    scores = {}
    for name in ("none", "sft", "dpo"):
        bot = Counselor.load(run.folder, adapter=name)
        scores[name] = bot.backend.score(ASKED, "많이 지치셨군요.", name)
        bot.close()
    assert len(set(scores.values())) == 3
    bot = Counselor.load(run.folder)
    assert bot.backend.score(ASKED, "많이 지치셨군요.") == pytest.approx(scores["dpo"], abs=1e-5)
    assert bot.backend.score(ASKED, "많이 지치셨군요.", "sft") == pytest.approx(scores["sft"], abs=1e-5)
    with pytest.raises(BackendError, match="none"):
        bot.backend.score(ASKED, "많이 지치셨군요.", "none")
    bot.close()


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_merging_gives_one_folder_with_a_card(trained, tmp_path, stage):
    from pipeline.train.merge import merge

    recipe, run = trained
    assert merge(recipe, run, tmp_path / "merged", stage=stage)["difference"] <= 1e-4
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "all weights trained" in card
    assert ("adapter of the stage `dpo`" in card) == (stage == "dpo")
