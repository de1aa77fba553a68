"""Every architecture takes a training step under its template; what users get wrong is told in one line."""

import pytest
from test_train_pack import SHAPES, model_of, rows

from gonggam.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TALK = ["힘들어", "많이 지치셨군요.", "응", "무슨 일이 있었나요?"]
TEMPLATES = {"llama": "eeve", "gpt_neox": "kullm-polyglot", "gpt2": "kogpt2", "phi3": "gonggam", "qwen3": "kullm3"}


@pytest.fixture(scope="module")
def tokenizer():
    from pipeline.train.tiny import build_tokenizer

    return build_tokenizer(iter(TALK), 300, 512)


@pytest.fixture
def sft(tokenizer, tmp_path):
    from pipeline.train.loop import arguments
    from pipeline.train.sft import lora, reply_trainer

    def build(model, found, targets="all-linear", **given):
        given = {"max_steps": 2, "max_length": 512, "per_device_train_batch_size": 2, "packing": True, **given}
        section = {"r": 2, "target_modules": targets}
        return reply_trainer(model, tokenizer, found, arguments(given, tmp_path, 1), lora(section))[0]

    return build


@pytest.mark.parametrize("shape", SHAPES)
def test_every_architecture_takes_a_step_under_its_template(shape, tokenizer, sft):
    from copy import deepcopy

    from pipeline.prompt import template
    from pipeline.train.loop import train
    from pipeline.train.mask import supervise

    templated = deepcopy(tokenizer)
    templated.chat_template = template(TEMPLATES[shape])
    talk = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(TALK)]
    row = supervise(templated, talk)
    spoken = templated.decode([label for label in row.labels if label >= 0])
    assert spoken == "".join(reply + templated.eos_token for reply in TALK[1::2])
    model = model_of(shape)
    model.resize_token_embeddings(len(tokenizer))
    short = [type(row)(row.input_ids[:60], row.labels[:60]), type(row)(row.input_ids[-60:], row.labels[-60:])]
    assert train(sft(model, short, max_length=64))["steps"] == 2


def test_four_bit_weights_take_a_step_on_the_processor(tmp_path, sft):
    pytest.importorskip("bitsandbytes")
    from pipeline.model import load_model
    from pipeline.recipe.sections import ModelOptions
    from pipeline.train.loop import train

    model_of("llama").save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), settings=ModelOptions(quantization="nf4"))
    assert model.is_quantized
    before = gradient_at_the_input(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(2, 9)[None])
    torch.testing.assert_close(gradient_at_the_input(model.train()), before, msg="measuring changed the gradient")
    assert train(sft(model, rows()))["steps"] == 2


def gradient_at_the_input(model):
    ids = torch.arange(2, 9)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded, labels=ids).loss.backward()
    return embedded.grad


def test_lora_targets_that_match_nothing_are_answered_with_those_there_are(sft):
    with pytest.raises(UserError) as caught:
        sft(model_of("llama"), rows(), targets=["query_key_value"])
    assert "q_proj" in caught.value.hint


def test_the_rows_behind_a_loss_that_is_no_number_are_named(sft):
    from pipeline.train.loop import train

    model = model_of("llama")
    model.get_input_embeddings().weight.data[5] = float("nan")
    found = [row for row in rows() if 5 not in row.input_ids]
    spoiled = type(found[0])([5, *found[0].input_ids[1:]], found[0].labels, "the-bad-one")
    with pytest.raises(UserError, match="the-bad-one"):
        train(sft(model, [spoiled], logging_steps=1))


def test_out_of_memory_says_what_to_lower_and_what_plan_predicts(sft, tokenizer, tmp_path):
    from gonggam.files import write_jsonl
    from pipeline.recipe import load_recipe
    from pipeline.train.loop import train
    from pipeline.train.shortage import with_plan

    class Full(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    one = sft(model_of("llama"), rows())
    one.add_callback(Full())
    talk = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(TALK)]
    write_jsonl(tmp_path / "messages" / "train.jsonl", [{"id": "a", "messages": talk}])
    about = with_plan(load_recipe("demo"), "sft", tmp_path, tokenizer=tokenizer, system=None)
    with pytest.raises(UserError, match="out of memory") as caught, about:
        train(one)
    for word in ("per_device_train_batch_size", "max_length", "nf4", "Plan predicts 0."):
        assert word in caught.value.hint


def test_exploded_rows_and_whole_conversations_have_the_same_gradient(tokenizer, sft):
    from pipeline.train.mask import supervise

    turns = [
        {"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate([*TALK, "고마워", "언제든지요."])
    ]
    forms = {
        "exploded": [supervise(tokenizer, turns[:end], first=end // 2 - 1) for end in (2, 4, 6)],
        "whole": [supervise(tokenizer, turns)],
    }
    found = {}
    for name, some in forms.items():
        model = model_of("llama")
        model.resize_token_embeddings(len(tokenizer))
        one = sft(model, some, per_device_train_batch_size=1, packing=False)
        for parameter in one.model.parameters():
            if parameter.requires_grad and parameter.shape[1] == 2:
                parameter.data.fill_(0.01)
        total = sum(row.supervised for row in some)
        for example in one.train_dataset:  # one row a time: gradient accumulation over the optimiser step
            inputs = one.data_collator([{key: example[key] for key in ("input_ids", "labels", "seq_lengths")}])
            inputs.pop("names")
            one.compute_loss(one.model, inputs, num_items_in_batch=total).backward()
        found[name] = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
    assert float((found["exploded"] - found["whole"]).norm() / found["whole"].norm()) < 1e-5


def test_trl_sees_prepared_conversations_and_preferences(few, tmp_path):
    from trl.data_utils import is_conversational

    from data_prep import prepare
    from gonggam.files import read_jsonl

    prepare([{**few, "rows": 20}], tmp_path, formats=["messages"])
    assert is_conversational(next(read_jsonl(tmp_path / "messages/train.jsonl")))
    assert is_conversational(next(read_jsonl(tmp_path / "preference/train.jsonl")))


def test_tokens_are_counted_as_the_model_reads_them(tokenizer, tmp_path):
    from pipeline.model import load_tokenizer
    from pipeline.prompt import counter, encode

    tokenizer.save_pretrained(tmp_path)
    loaded, said = load_tokenizer(tmp_path), [{"role": "user", "content": "힘들어"}]
    assert counter(loaded)(said) == len(encode(tokenizer, said, add_generation_prompt=False))
    loaded.chat_template = None
    assert counter(loaded)(said) == len(tokenizer("힘들어")["input_ids"])
