"""The trainers optimise what they say: TRL's loss on the same rows, a margin of 0 at the start, honest resuming."""

import copy

import pytest
import torch

from gonggam.errors import UserError

transformers = pytest.importorskip("transformers")

ROWS = [
    ([5, 6, 7, 8, 9, 1], [-100, -100, 7, 8, -100, 1]),
    ([9, 8, 7, 1], [-100, 8, 7, 1]),
    ([4, 4, 1], [-100, -100, 1]),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def trainer(model, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig

    from pipeline.train.loop import arguments
    from pipeline.train.mask import Row
    from pipeline.train.pack import columns
    from pipeline.train.sft import ReplyTrainer, lora
    from pipeline.train.tiny import build_tokenizer

    def build(kind=ReplyTrainer, **given):
        given = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "max_steps": 4, **given}
        return kind(
            model=copy.deepcopy(model),
            args=SFTConfig(**arguments(given, tmp_path, 1)),
            train_dataset=Dataset.from_dict(columns([Row(*row, "row") for row in ROWS], [[0], [1], [2]])),
            processing_class=build_tokenizer(iter(["가"]), 300, 64),
            peft_config=lora({"r": 2, "target_modules": "all-linear"}),
        )

    return build


def batch(trainer):
    inputs = trainer.data_collator([{"input_ids": ids, "labels": labels, "names": ["row"]} for ids, labels in ROWS])
    return {key: value for key, value in inputs.items() if key != "names"}


@pytest.mark.parametrize("accumulated", [None, 20])
def test_the_loss_and_its_gradient_are_those_of_trl(trainer, accumulated):
    from trl import SFTTrainer

    found = []
    for kind in (None, SFTTrainer):
        one = trainer() if kind is None else trainer(kind)
        torch.manual_seed(3)
        for name, weight in one.model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_()
        loss = one.compute_loss(one.model, batch(one), num_items_in_batch=accumulated)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
        found.append((loss.item(), gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_reply_logprobs_do_not_depend_on_the_batch(model):
    from pipeline.train.mask import Row
    from pipeline.train.measure import reply_logprobs

    rows = [Row(*row) for row in ROWS]
    together = reply_logprobs(model, rows, batch_size=8)
    alone = [reply_logprobs(model, [row])[0] for row in rows]
    assert [n for _, n in together] == [row.supervised for row in rows]
    assert [lp for lp, _ in together] == pytest.approx([lp for lp, _ in alone], abs=1e-4)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(trainer):
    from pipeline.train.loop import newest_checkpoint, train

    one = trainer(max_steps=6, save_steps=1, logging_steps=1)
    spoil = one.model.base_model.model.model.layers[0].mlp.up_proj.lora_A.default.weight

    class Spoil(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                spoil.data.fill_(float("nan"))

    one.add_callback(Spoil())
    with pytest.raises(UserError, match="lower learning_rate"):
        train(one)
    kept = newest_checkpoint(one_folder(one))
    assert kept is not None
    assert int(kept.name.split("-")[1]) <= 3


def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_one_before(trainer):
    from safetensors import SafetensorError

    from pipeline.train.loop import newest_checkpoint, train
    from pipeline.train.sft import ReplyTrainer

    class Fills(ReplyTrainer):
        """Finds no room left when a part of the second checkpoint is written, as safetensors tells it."""

        def _save_optimizer_and_scheduler(self, folder):
            if self.state.global_step == 2:
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            super()._save_optimizer_and_scheduler(folder)

    one = trainer(Fills, save_steps=1)
    with pytest.raises(UserError, match=r"disk is full; the last complete checkpoint \(checkpoint-1\) is intact"):
        train(one)
    assert newest_checkpoint(one_folder(one)).name == "checkpoint-1"
    assert train(trainer(save_steps=1))["steps"] == 4, "with room again it goes on"


def test_a_tracker_that_is_not_installed_is_named(trainer):
    with pytest.raises(UserError, match="pip install neptune"):
        trainer(report_to=["tensorboard", "neptune"])


def test_a_tracker_that_refuses_is_told_in_one_line():
    from pipeline.train.trackers import refusals

    refusal = type("MlflowException", (Exception,), {"__module__": "mlflow.exceptions"})
    with pytest.raises(UserError, match="mlflow refused: no such store"), refusals(["tensorboard", "mlflow"]):
        raise refusal("no such store\nat all")
    with pytest.raises(refusal), refusals(["wandb"]):
        raise refusal("a fault of something else")


def test_a_checkpoint_cut_off_in_the_middle_is_not_resumed_from(trainer):
    from pipeline.train.loop import newest_checkpoint, train

    one = trainer(max_steps=4, save_steps=1, save_total_limit=4)
    train(one)
    folder = one_folder(one)
    assert newest_checkpoint(folder).name == "checkpoint-4"
    (folder / "checkpoint-4" / "complete").unlink()
    assert newest_checkpoint(folder).name == "checkpoint-3"


def one_folder(trainer):
    from pathlib import Path

    return Path(trainer.args.output_dir)
