"""What `gonggam plan` predicts from a configuration is what real models of that shape hold."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

LORA = {"r": 4, "target_modules": "all-linear"}
SMALL = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        **SMALL,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, **SMALL
    ),
    # Attention dropout has no fused kernel on a processor.
    "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=4, n_head=4, attn_pdrop=0.0, **SMALL),
    "phi3": lambda: transformers.Phi3Config(
        hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        **SMALL,
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, **SMALL,
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def config(request):
    return MODELS[request.param]()


def real(config, dtype=torch.float32, attention="sdpa"):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA)).train()


def size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def saved(model, batch, dtype):
    """Bytes that autograd keeps when the body of a real model runs, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    mixed = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), mixed:
        output = model.get_base_model().base_model(**batch, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(s.nbytes() for s in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_adapters_gradients_and_optimizer_are_exact(config, dtype):
    from pipeline.train.plan_memory import Setting, Shape

    model = real(config, dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    shape = Shape(config, LORA)
    found = shape.memory(Setting(rows=1, length=8, positions=8, dtype=dtype))
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert shape.trainable == sum(p.numel() for p in trained)
    assert shape.parameters == sum(p.numel() for p in frozen)
    assert found["weights"] == size(frozen)
    assert found["adapters"] == size(trained)
    assert found["gradients"] == size(p.grad for p in trained)
    assert found["optimizer"] == size(moments)


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_activations_are_within_five_percent_of_what_autograd_keeps(config, dtype, masked):
    from pipeline.train.plan_memory import Setting, Shape

    ids = torch.arange(128).view(2, 64)
    batch = {"input_ids": ids}
    if masked:
        batch["attention_mask"] = (ids % 64 < torch.tensor([[64], [50]])).long()
    measured = saved(real(config, dtype), batch, dtype)
    first, further = Shape(config, LORA).activations(
        Setting(rows=2, length=64, positions=128, dtype=dtype, masked=masked)
    )
    assert first + further * (config.num_hidden_layers - 1) == pytest.approx(measured, rel=0.05)


def test_quantised_weights_are_those_of_bitsandbytes(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    from pipeline.train.plan_memory import Shape

    config = MODELS["llama"]()
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    wanted = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=wanted, dtype="bfloat16")
    measured = size(model.parameters())
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            measured += size([state.absmax, state.state2.absmax])
    assert Shape(config, LORA).weights(torch.bfloat16, "nf4") == measured


def test_arithmetic_is_that_of_torchs_counter(config):
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.train.plan_memory import Shape

    model = real(config, attention="eager")  # the counter does not know a processor's fused attention
    ids = torch.arange(128).view(2, 64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    found = Shape(config, LORA).flops(tokens=128, squares=2 * 64**2, positions=128)
    # Ours counts a gradient for the input of the first layer, which needs none: less and less with more layers.
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_checkpointing_keeps_one_hidden_state_a_layer():
    from pipeline.train.plan_memory import Setting, Shape

    shape = Shape(MODELS["llama"](), LORA)
    with_it, without = (shape.memory(Setting(rows=2, length=64, positions=1, checkpointing=on)) for on in (True, False))
    assert with_it["activations"] < without["activations"] / 2
    assert with_it["activations"] > 2 * 64 * 64 * 2 * 4


def test_whole_weights_are_planned_as_they_are_held():
    from pipeline.train.plan_memory import Setting, Shape

    config = MODELS["llama"]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    batch = {"input_ids": torch.arange(64)[None]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    found = Shape(config, None).memory(Setting(rows=1, length=64, positions=64, dtype=torch.float32))
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert (found["weights"], found["adapters"]) == (size(model.parameters()), 0)
    assert found["gradients"] == size(p.grad for p in model.parameters())
    assert found["optimizer"] == size(moments)


def test_shards_divide_what_is_held_but_not_what_a_step_makes():
    from pipeline.train.plan_memory import Setting, Shape

    shape = Shape(MODELS["llama"](), None)
    one, four = (shape.memory(Setting(rows=2, length=64, positions=8, shards=shards)) for shards in (1, 4))
    held = ("weights", "gradients", "optimizer")
    assert [four[kind] for kind in held] == [one[kind] // 4 for kind in held]
    assert (four["activations"], four["logits"]) == (one["activations"], one["logits"])
    assert 0 < four["gathered"] < one["weights"]
