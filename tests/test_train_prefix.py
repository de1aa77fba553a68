"""DPO with the prompt computed once is TRL's DPO: the same log-probabilities, losses and gradients."""

import copy

import pytest
from test_train_pack import SHAPES, far, gradient, model_of

from pipeline.identity import identity, write_identity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def pairs(count=4, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(2, 64, (length,), generator=draw).tolist()

    return [
        {"id": f"p-{k}", "prompt_ids": ids(3, 20), "chosen_ids": [*ids(2, 9), 1], "rejected_ids": [*ids(2, 9), 1]}
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    from pipeline.train.tiny import build_tokenizer

    return build_tokenizer(iter(["가"]), 300, 64)


@pytest.fixture
def trainer(tokenizer, tmp_path):
    from pipeline.train.dpo import pair_trainer
    from pipeline.train.loop import arguments
    from pipeline.train.sft import lora

    def build(shape="llama", shared=True, rows=None, adapter=None, **given):
        model = model_of(shape)
        if not shared:
            model.set_attn_implementation("eager")
        given = {"per_device_train_batch_size": 4, "max_length": 64, "max_steps": 2, "learning_rate": 1e-2, **given}
        targets = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
        torch.manual_seed(1)
        one, way = pair_trainer(
            model, tokenizer, rows or pairs(), arguments(given, tmp_path, 1), lora(targets), adapter
        )
        assert ("once" in way) == shared
        return one

    return build


def loss_of(trainer, rows):
    trainer.model.train()
    batch = trainer.data_collator([{**row, "names": ["x"]} for row in rows])
    batch.pop("names")
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), gradient(trainer.model)


LOSSES = [
    {"loss_type": "sigmoid"},
    {"loss_type": "ipo", "beta": 0.3},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_type": "sigmoid_norm", "ld_alpha": 0.5},
    {"loss_type": "aot", "label_smoothing": 0.1},
    {"loss_type": "sigmoid", "use_weighting": True, "f_divergence_type": "js_divergence"},
]


@pytest.mark.parametrize("given", LOSSES, ids=lambda given: "-".join(map(str, given.values())))
def test_loss_and_gradient_are_those_of_trl(trainer, given):
    both = [trainer(shared=shared, **given) for shared in (True, False)]
    ours, trl = (loss_of(one, pairs()) for one in both)
    assert ours[0] == pytest.approx(trl[0], rel=1e-5)
    assert far(ours[1], trl[1]) < 1e-4
    logged, expected = ({name: values[0] for name, values in one._metrics["train"].items()} for one in both)
    del logged["num_tokens"], expected["num_tokens"]  # a prompt is read once here, and twice there
    assert logged == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_are_those_of_trl(trainer, shape):
    for reference in (False, True):
        ours = trainer(shape).logprobs(pairs(), reference=reference)
        assert torch.allclose(
            torch.tensor(ours), torch.tensor(trainer(shape, False).logprobs(pairs(), reference=reference)), atol=1e-4
        )


def test_a_model_that_cannot_share_a_prompt_is_trained_as_trl_does(trainer):
    from pipeline.train.loop import train

    assert train(trainer("phi3", shared=False, max_length=128))["steps"] == 2


def test_the_reference_is_computed_once_and_found_by_content(trainer, tmp_path):
    from pipeline.train.reference import reference_logprobs

    class Counting:
        def __init__(self, inner):
            self.inner, self.computed = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def logprobs(self, rows, **kind):
            self.computed += len(rows)
            return self.inner.logprobs(rows, **kind)

    rows = pairs(5)
    first, other_beta = Counting(trainer(rows=rows)), Counting(trainer(rows=rows, beta=0.5, loss_type="ipo"))
    found = reference_logprobs(first, rows, tmp_path)
    again = reference_logprobs(other_beta, rows[::-1], tmp_path)
    assert (first.computed, other_beta.computed) == (5, 0)
    assert again == found[::-1]
    changed = Counting(trainer(rows=rows))
    next(p for n, p in changed.model.named_parameters() if "embed_tokens" in n).data[0, 0] += 1e-3
    reference_logprobs(changed, rows, tmp_path)
    assert changed.computed == 5, "another reference is another key"


def test_training_with_kept_references_is_training_with_fresh_ones(trainer, tmp_path):
    from pipeline.train.loop import train
    from pipeline.train.reference import reference_logprobs

    ends = []
    for kept in (True, False):
        one = trainer(rows=pairs(8), max_steps=3)
        if kept:
            one.attach_reference(reference_logprobs(one, pairs(8), tmp_path / "cache"))
        one.args.output_dir = str(tmp_path / str(kept))
        train(one)
        ends.append(torch.cat([p.detach().flatten() for p in one.model.parameters() if p.requires_grad]))
    assert far(*ends) < 1e-4


def test_the_loss_is_taken_against_the_reference_that_was_attached(trainer):
    one, reference = trainer(rows=pairs(2)), torch.tensor([[-1.0, -2.5], [-4.0, -3.0]])
    policy = torch.tensor(one.logprobs(pairs(2)))
    one.attach_reference(reference.tolist())
    gained = policy - reference
    expected = -torch.nn.functional.logsigmoid(one.beta * (gained[:, 0] - gained[:, 1])).mean()
    assert loss_of(one, one.train_dataset)[0] == pytest.approx(expected.item(), rel=1e-4)


def test_before_training_the_policy_is_its_own_reference(trainer, tmp_path):
    one, as_long = trainer(), {"chosen_ids": list(range(2, 14)), "rejected_ids": list(range(22, 34))}
    rows = [*pairs(), {**pairs()[0], **as_long}]
    one.model.save_pretrained(tmp_path / "adapter")
    write_identity(tmp_path / "adapter", identity(model_of("llama")))
    for given in ({}, {"ld_alpha": 0.5}):
        again = trainer(adapter=tmp_path / "adapter", **given)
        policy, reference = (torch.tensor(again.logprobs(rows, reference=side)) for side in (False, True))
        assert torch.allclose(policy, reference, atol=1e-4), given
        assert policy.unique().numel() == 10


@pytest.mark.parametrize("given", [{}, {"precompute_ref_batch_size": 2}])
def test_log_probabilities_are_taken_without_dropout_over_prompts_of_like_length(trainer, given):
    one = trainer(shared=False, **given)
    rows, modes, batches = pairs(8), set(), []
    one.model.base_model.register_forward_pre_hook(lambda module, _: modes.add(module.training))
    collate = one.data_collator
    one.data_collator = lambda some: batches.append([len(pair["prompt_ids"]) for pair in some]) or collate(some)
    for mode in (True, False):
        one.model.train(mode)
        one.logprobs(rows)
        assert one.model.training == mode, "the model is left as it was"
    assert modes == {False}
    lengths, size = sorted(len(pair["prompt_ids"]) for pair in rows), 2 if given else 4
    assert batches == [lengths[at : at + size] for at in range(0, 8, size)] * 2


def keeps_a_softmax(trainer, rows):
    """Whether log-probabilities over the vocabulary wait for the backward pass; and loss and gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.detach()) or one, lambda one: one):
        found = loss_of(trainer, rows)
    wide = [one for one in kept if one.shape[1:] == (64,) and one.is_floating_point()]
    return any(torch.allclose(one.exp().sum(1), torch.ones(len(one))) for one in wide), found


def test_the_softmax_of_a_large_batch_is_computed_again_in_parts_instead_of_kept(trainer):
    rows = pairs(120)
    assert keeps_a_softmax(trainer(), rows[:40])[0]
    kept, found = keeps_a_softmax(trainer(), rows)
    wanted = loss_of(trainer(shared=False), rows)
    assert not kept
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert far(found[1], wanted[1]) < 1e-3, "120 gradients cancel, and so show the rounding"


def test_an_adapter_of_another_base_is_refused(trainer, tmp_path):
    from peft import get_peft_model

    from gonggam.errors import UserError
    from pipeline.train.dpo import load_adapter
    from pipeline.train.sft import lora

    small = model_of("llama")
    get_peft_model(copy.deepcopy(small), lora({"r": 2, "target_modules": "all-linear"})).save_pretrained(tmp_path)
    write_identity(tmp_path, identity(small))
    assert load_adapter(copy.deepcopy(small), tmp_path)
    assert load_adapter(copy.deepcopy(small).to(torch.bfloat16), tmp_path), "the same base in half precision"
    twin = transformers.LlamaForCausalLM(small.config)  # the same shape, other weights
    wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**small.config.to_diff_dict(), "hidden_size": 64}))
    for other in (twin, wide, model_of("gpt2")):
        with pytest.raises(UserError, match="another base model"):
            load_adapter(other, tmp_path)


def test_a_policy_that_forgets_the_good_replies_is_noticed():
    from pipeline.train.health import chosen_change, warnings

    rows = [{"chosen_ids": [1, 2, 3]}] * 2
    fell = chosen_change([(-3.0, -3.0)] * 2, [(-9.0, -99.0)] * 2, rows)
    assert fell == pytest.approx(-2)
    (told,) = warnings(fell, {})
    assert "7.4 times less likely" in told
    assert not warnings(-0.2, {"before": 20.0, "after": 25.0, "chosen": 22.0})
    (told,) = warnings(-0.2, {"before": 20.0, "after": 45.0, "chosen": 22.0})
    assert "from 20 to 45 tokens" in told


def collapsing(trainer, prompts, **given):
    """Training with a loss that is meant to pull the chosen replies down too, watched."""
    from pipeline.train.health import Watch
    from pipeline.train.loop import train

    one = trainer(max_steps=4, logging_steps=1, save_strategy="no", learning_rate=0.5, loss_type="apo_down", beta=1.0)
    one.model.get_output_embeddings().weight.data.mul_(50)  # a random head is too flat for anything to become unlikely
    watch = Watch(one, pairs(), prompts=prompts, **given)
    return watch, train(one)["history"]


def test_a_collapse_is_told_while_it_happens_and_stops_training_if_the_recipe_says_so(trainer, caplog):
    from gonggam.errors import UserError

    watch, history = collapsing(trainer, 1, stop=False)
    assert caplog.text.count("less likely a token") == 1
    assert [row["step"] for row in history if "reply_tokens" in row] == [1, 2, 3]
    told = watch.figures(-0.2)
    assert told["reply_tokens"]["prompts"] == 1
    assert 1 <= told["reply_tokens"]["before"] <= 128
    with pytest.raises(UserError, match="less likely a token"):
        collapsing(trainer, 0, stop=True)


@pytest.mark.parametrize("given", [{"loss_type": "sigmoid"}, {"loss_type": ["ipo", "sft"], "loss_weights": [1, 1]}])
def test_several_rejected_replies_share_prompt_and_chosen_reply(trainer, given):
    from pipeline.train.prefix import grouped

    one, other, third = pairs(3)
    shared = {key: one[key] for key in ("prompt_ids", "chosen_ids")}
    rows = [one, {**other, **shared}, third, {**third, **shared}]
    ours, trl = trainer(rows=rows, **given), trainer(rows=rows, shared=False, **given)
    batch = ours.data_collator(list(ours.train_dataset))
    assert [example["names"] for example in ours.train_dataset] == [["p-0", "p-1", "p-2"], ["p-2"]]
    assert [example["names"] for example in trl.train_dataset] == [["p-0"], ["p-1"], ["p-2"], ["p-2"]]
    assert batch["input_ids"].shape == (
        8,
        1 + max(len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")),
    )
    assert batch["row"]["attention_mask"].numel() == 1, "no square mask is made"
    assert sum(length for length, shared in batch["row"]["segments"] if not shared) == sum(
        len(pair["prompt_ids"]) + len(pair["chosen_ids"]) for pair in (one, third)
    )
    order = [pair for example in grouped(rows) for pair in example["pairs"]]
    found, wanted = loss_of(ours, order), loss_of(trl, order)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert far(found[1], wanted[1]) < 1e-4
