"""Rows side by side in one: packed well, apart from each other, and the same loss and gradient as row by row."""

import copy
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
SMALL |= {"eos_token_id": 1, "bos_token_id": None, "intermediate_size": 64}
SHAPES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, hidden_dropout=0.0, attention_dropout=0.0),
    "gpt2": lambda: transformers.GPT2Config(
        **SMALL, n_positions=128, n_inner=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "phi3": lambda: transformers.Phi3Config(**SMALL, num_key_value_heads=4, sliding_window=64),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}


def model_of(shape):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(SHAPES[shape](), attn_implementation="sdpa")


def rows(seed=0, lengths=(9, 17, 5, 12, 7, 21)):
    from pipeline.train.mask import IGNORE, Row

    draw = torch.Generator().manual_seed(seed)
    found = []
    for number, length in enumerate(lengths):
        ids = torch.randint(2, 64, (length,), generator=draw).tolist()
        said = torch.rand(length, generator=draw) < 0.5
        labels = [t if i and (said[i] or i == length - 1) else IGNORE for i, t in enumerate(ids)]
        found.append(Row(ids, labels, f"row-{number}"))
    return found


def one_by_one(model, rows):
    """Loss over all supervised tokens, and its gradient, from rows that have never met."""
    total = sum(row.supervised for row in rows)
    loss = 0.0
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
        logits = model(input_ids=ids).logits[0, :-1]
        part = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / total
        part.backward()
        loss += part.item()
    return loss, gradient(model)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def far(a, b):
    return float((a - b).norm() / b.norm())


def batch(rows, bins, segments):
    from pipeline.train.pack import FlatCollator, columns

    table = columns(rows, bins)
    return FlatCollator(segments=segments)([{k: v[i] for k, v in table.items()} for i in range(len(bins))])


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60))
def test_every_row_is_packed_once_and_no_bin_overflows(lengths):
    from pipeline.train.pack import best_fit

    bins = best_fit(lengths, 40)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in bin) <= 40 for bin in bins)
    assert sum(sum(lengths[i] for i in bin) <= 20 for bin in bins) <= 1, "two half-empty bins would fit together"


def test_a_row_that_fits_no_bin_is_an_error():
    from pipeline.train.pack import best_fit

    with pytest.raises(ValueError, match="41 tokens does not fit 40"):
        best_fit([3, 41], 40)
    assert best_fit([40], 40) == [[0]]
    assert best_fit([], 40) == []


@pytest.mark.parametrize("segments", [True, False], ids=["segments", "positions"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_learn_what_they_would_alone(shape, segments):
    from pipeline.train.attend import use_segments
    from pipeline.train.measure import summed_loss

    found, model = rows(), model_of(shape)
    expected = one_by_one(copy.deepcopy(model), found)
    if segments:
        assert use_segments(model, 64) is None
    inputs = batch(found, [[1, 0, 3], [2, 4, 5]], segments)
    target = inputs.pop("labels")[:, 1:]
    keep = (target != -100).any(dim=0).nonzero().squeeze(1)
    logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    loss = summed_loss(logits[0], target[0, keep]) / (target != -100).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected[0], rel=1e-5)
    assert far(gradient(model), expected[1]) < 1e-5


def test_a_model_whose_window_slides_is_not_packed_by_segments():
    from pipeline.train.attend import use_segments

    model = model_of("phi3")
    assert "slides" in use_segments(model, 65)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("deaf", ["ignores", "refuses"])
def test_a_model_that_does_not_heed_segments_is_found_out_and_left_as_it_was(deaf):
    from pipeline.train.attend import use_segments

    model = model_of("llama").train()
    forward = model.forward

    def without(input_ids, use_cache, position_ids=None, segments=None):
        if deaf == "refuses" and segments:
            raise TypeError("unexpected keyword argument 'segments'")
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    model.forward = without
    assert use_segments(model, 64) == "it does not keep the texts of a row apart"
    assert model.config._attn_implementation == "sdpa"
    assert model.training


def test_chunks_of_the_head_change_nothing(monkeypatch):
    from pipeline.train import measure

    logits, target = torch.randn(50, 64, requires_grad=True), torch.randint(0, 64, (50,))
    target[::7] = -100
    whole = measure.summed_loss(logits, target, dft=True)
    (expected,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(measure, "CHUNK", 8)
    pieces = measure.summed_loss(logits, target, dft=True)
    assert pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(pieces, logits)[0], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_square_mask_over_the_whole_row_is_made(shape):
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipeline.train.attend import use_segments

    class Masks(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.bool:
                self.largest = max(self.largest, found.numel())
            return found

    model, some = model_of(shape), rows(lengths=(30,) * 4)
    assert use_segments(model, 60) is None
    inputs = batch(some, [list(range(4))], segments=True)
    with torch.no_grad(), Masks() as masks:
        model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
    assert masks.largest <= 120, "nothing of tokens x tokens"
