"""`gonggam plan`: rows and batches are those of training, and its advice leads to a plan that fits."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
RECIPE = """\
name: planned
model: {base: BASE}
prepare: {sources: [{reader: counsel_ko, rows: 30}]}
sft: {lora: {r: 64, target_modules: all-linear}, per_device_train_batch_size: 8, max_length: 512}
dpo: {per_device_train_batch_size: 4, max_length: 512}
chat: {system: none}
"""
EEVE = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 40960, "tie_word_embeddings": False,
}  # fmt: skip


@given(LENGTHS, st.integers(1, 8), st.integers(0, 3))
def test_padding_holds_every_token(lengths, batch, seed):
    from pipeline.train.plan_data import padded

    found = padded(lengths, batch, seed)
    assert found.tokens == sum(lengths) <= found.slots <= len(lengths) * max(lengths)
    assert padded(lengths, 1, seed).waste == 0


@given(LENGTHS)
def test_packing_needs_no_more_bins_than_rows_and_no_fewer_than_tokens(lengths):
    from pipeline.train.plan_data import packed

    found = packed(lengths, 50)
    assert -(-sum(lengths) // 50) <= found.count <= len(lengths)
    assert found.tokens == sum(lengths) <= found.slots


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with EEVE's configuration alone, and a recipe on it."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.json").write_text(json.dumps(EEVE))
    recipe = folder / "planned.yaml"
    recipe.write_text(RECIPE.replace("BASE", str(folder)))
    return folder, recipe


@pytest.fixture(scope="module")
def planner(place):
    import data_prep
    from pipeline.recipe import load_recipe
    from pipeline.train.plan import Planner

    folder, recipe = place
    data_prep.prepare([{"reader": "counsel_ko", "rows": 30}], folder / "prepared")
    return Planner(load_recipe(recipe), folder / "prepared")


def test_rows_with_a_tokenizer_are_those_of_training(planner):
    from pipeline.train.data import sft_rows
    from pipeline.train.plan_data import sft_lengths
    from pipeline.train.tiny import build_tokenizer

    tokenizer = build_tokenizer(iter(["오늘은 정말 힘든 하루였어요."]), 400, 512)
    found = sft_lengths(tokenizer, planner.prepared, system=None, max_length=None)
    rows = sft_rows(tokenizer, planner.prepared, "train", system=None, max_length=None)
    assert list(found.lengths) == [len(row.input_ids) for row in rows]
    assert list(found.supervised) == [row.supervised for row in rows]
    short = sft_lengths(tokenizer, planner.prepared, system=None, max_length=random.Random(0).choice(found.lengths))
    assert short.over > 0
    assert max(short.lengths) <= max(found.lengths)


def test_eeve_fits_an_a100_and_the_advice_for_a_small_gpu_fits(planner):
    from pipeline.train.plan_machine import gpu_named

    found = planner.stage("sft", gpu_named("a100-80gb"))
    assert found.trainable == 251_658_240, "as the recipe's comment works out"
    assert found.fits
    small = planner.stage("sft", gpu_named("rtx-4090"))
    assert not small.fits
    overrides, better = planner.advice(small)
    assert better.fits
    assert "model.quantization=nf4" in overrides
    assert len(overrides) < 4, "what is not needed is not asked for"


def test_the_advice_is_accepted_as_overrides(place, planner):
    from pipeline.recipe import load_recipe
    from pipeline.train.plan_machine import gpu_named

    overrides, better = planner.advice(planner.stage("dpo", gpu_named("l4")))
    assert load_recipe(place[1], overrides).dpo is not None
    assert better.memory["weights"] < 8 * 2**30


def test_accumulation_and_gpus_divide_the_steps(planner):
    from dataclasses import replace

    from pipeline.train.plan_machine import gpu_named

    gpu = gpu_named("h100")
    one = planner.stage("sft", gpu, replace(planner.options("sft", gpu), batch=1, accumulation=1, epochs=2))
    four = planner.stage("sft", gpu, replace(one.options, accumulation=4))
    assert one.steps == 2 * len(one.rows.lengths)
    assert four.steps == 2 * -(-len(one.rows.lengths) // 4)


def test_rows_that_cannot_stand_side_by_side_are_planned_padded(place, planner, tmp_path):
    from pipeline.recipe import load_recipe
    from pipeline.train.plan import Planner
    from pipeline.train.plan_machine import gpu_named

    gpu, small = gpu_named("h100"), tmp_path / "config.json"
    small.write_text(json.dumps({**EEVE, "num_hidden_layers": 2}))
    planners = [
        Planner(load_recipe(place[1], overrides), planner.prepared, config=str(small))
        for overrides in ([], ["model.attn_implementation=eager"])
    ]
    for stage in ("sft", "dpo"):
        flat, wide = (one.stage(stage, gpu) for one in planners)
        assert flat.apart is None
        assert "eager" in wide.apart
        assert wide.memory["activations"] > flat.memory["activations"]
        assert wide.flops > flat.flops
        assert wide.steps == flat.steps


def test_the_shipped_recipes_can_be_planned_without_the_hub():
    from pipeline.recipe import list_recipes, load_recipe
    from pipeline.train.plan import known_shapes

    recipes = [recipe for recipe in map(load_recipe, list_recipes()) if recipe.sft and recipe.model.base]
    assert {recipe.model.base for recipe in recipes} <= known_shapes().keys()
    assert known_shapes()[load_recipe("eeve-10.8b").model.base].items() >= EEVE.items()


def test_the_command_says_what_it_estimates_and_knows_its_gpus(place, tmp_path):
    from gonggam.errors import UserError
    from pipeline.cli import app

    result = CliRunner().invoke(app, ["plan", str(place[1]), "--only", "sft", "--runs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for expected in ("estimate", "supervised", "251,658,240", "peak", "fits a100-80gb"):
        assert expected in result.output
    wrong = CliRunner().invoke(app, ["plan", str(place[1]), "--gpu", "a1000", "--runs", str(tmp_path)])
    assert isinstance(wrong.exception, UserError)


def test_several_rejected_replies_are_planned_in_the_rows_they_are_trained_in(place, tmp_path):
    from pipeline.recipe import load_recipe
    from pipeline.train.data import dpo_rows
    from pipeline.train.plan import Planner
    from pipeline.train.plan_machine import gpu_named
    from pipeline.train.prefix import SharedPromptCollator, grouped
    from pipeline.train.tiny import build_tokenizer

    def turn(role, text):
        return [{"role": role, "content": text}]

    said = [("오늘 힘들었어요", "고생하셨어요", bad) for bad in ("네", "그래서요?", "다 그래요")]
    said.append(("안녕", "네", "왜"))
    pairs = [
        {"id": str(n), "prompt": turn("user", a), "chosen": turn("assistant", b), "rejected": turn("assistant", c)}
        for n, (a, b, c) in enumerate(said)
    ]
    (tmp_path / "preference").mkdir()
    (tmp_path / "preference/train.jsonl").write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    tokenizer = build_tokenizer(iter(["오늘은 정말 힘든 하루였어요."]), 400, 512)
    rows = grouped(dpo_rows(tokenizer, tmp_path, "train", system=None, max_length=512))
    batches = [SharedPromptCollator(0)(row["pairs"])["row"] for row in rows]
    recipe = load_recipe(place[1], ["dpo.per_device_train_batch_size=1"])
    for known in (tokenizer, None):
        planner = Planner(recipe, tmp_path, tokenizer=known, config=str(place[0] / "config.json"))
        found = planner.stage("dpo", gpu_named("h100"))
        assert (found.rows.pairs, len(found.rows.lengths)) == (4, 2)
        assert found.steps == 2 * found.epochs, "a batch is one prompt, whatever stands beside it"
        if known:
            assert list(found.rows.lengths) == [batch["input_ids"].numel() for batch in batches]
            assert list(found.rows.positions) == [batch["logits_to_keep"].numel() for batch in batches]
    alone = Planner(load_recipe(place[1], ["model.attn_implementation=eager"]), tmp_path, tokenizer=tokenizer)
    assert len(alone.stage("dpo", gpu_named("h100")).rows.lengths) == 4, "as TRL takes them"
