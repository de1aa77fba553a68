"""Decoding many rows at once: for each the tokens of `generate`, for every family of models, as rows come and go."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chat.backends import Settings
from pipeline.chat.decode import CHUNK, Row, Running

VOCABULARY = 97
SIZE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"intermediate_size": 48, "max_position_embeddings": 1024, "initializer_range": 0.3}
GREEDY = Settings(max_new_tokens=12, temperature=0, repetition_penalty=1.0)


def tiny(name):
    import torch
    import transformers as t

    torch.manual_seed(0)
    made = {
        "llama": lambda: t.LlamaConfig(**SIZE, **WIDE, num_key_value_heads=2),
        "gpt-neox": lambda: t.GPTNeoXConfig(**SIZE, **WIDE, rotary_pct=0.5),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCABULARY, n_positions=1024, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
        ),
        "qwen2": lambda: t.Qwen2Config(**SIZE, **WIDE, num_key_value_heads=2),
        "qwen3": lambda: t.Qwen3Config(**SIZE, **WIDE, num_key_value_heads=2, head_dim=8),
        "phi": lambda: t.PhiConfig(**SIZE, **WIDE),
        "phi3": lambda: t.Phi3Config(**SIZE, **WIDE, num_key_value_heads=2, pad_token_id=0),
        "mistral, sliding window": lambda: t.MistralConfig(**SIZE, **WIDE, num_key_value_heads=2, sliding_window=9),
        "bloom, no positions": lambda: t.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
        ),
    }[name]()
    made.eos_token_id = made.pad_token_id = made.bos_token_id = None
    torch.set_num_threads(1)
    return t.AutoModelForCausalLM.from_config(made).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def prompt(length, seed=0):
    return [5 + (7 * seed + 11 * at + at * at) % (VOCABULARY - 5) for at in range(length)]


def generated(model, row):
    """What transformers' generate makes of a row's prompt alone."""
    import torch

    ids = torch.tensor([row.prompt])
    how = {"repetition_penalty": row.settings.repetition_penalty, "max_new_tokens": row.settings.max_new_tokens}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **how)
    return found[0, ids.shape[1] :].tolist()


def settle(running):
    """Let rows go that are done; what was computed of each."""
    return {row: running.leave(row) for row in [*running.rows] if row.done}


def finish(running):
    kept = {}
    while running.rows or running.reading:
        running.read()
        kept |= settle(running)
        running.step()
        kept |= settle(running)
    return kept


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt-neox", "gpt2", "qwen2", "qwen3", "phi", "phi3", "mistral, sliding window", "bloom, no positions"],
)
def test_each_family_says_in_a_batch_what_generate_says_alone(name):
    model = tiny(name)
    lengths = (3, 17, 5, 18, 11)
    rows = [
        Row(prompt(length, seed), Settings(8 + seed, 0, repetition_penalty=1.1)) for seed, length in enumerate(lengths)
    ]
    running = Running(model, frozenset())
    for row in rows[:3]:
        running.join(row)
    running.read()
    running.step()
    for row in rows[3:]:  # these come while the others are being written
        running.join(row)
    finish(running)
    for row in rows:
        assert row.emitted == generated(model, row)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_way_of_attention_gives_the_same(llama, attention):
    before = llama.config._attn_implementation
    llama.set_attn_implementation(attention)
    try:
        rows = [Row(prompt(length), GREEDY) for length in (4, 9, 6)]
        running = Running(llama, frozenset())
        for row in rows:
            running.join(row)
        finish(running)
        assert [row.emitted for row in rows] == [generated(llama, row) for row in rows]
    finally:
        llama.set_attn_implementation(before)


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(llama):
    short, long = Row(prompt(6), Settings(20, 0, repetition_penalty=1.0)), Row(prompt(CHUNK + 300), GREEDY)
    running = Running(llama, frozenset())
    running.join(short)
    running.read()
    running.join(long)
    assert running.read() == []  # the first chunk
    assert [step.row for step in running.step()] == [short]
    assert [step.row for step in running.read()] == [long]
    finish(running)
    assert (short.emitted, long.emitted) == (generated(llama, short), generated(llama, long))


def test_a_row_given_up_while_it_reads_leaves_what_was_read(llama):
    row, running = Row(prompt(CHUNK + 10), GREEDY), Running(llama, frozenset())
    running.join(row)
    running.read()
    states = running.leave(row)
    assert row.cached == states[0][0].shape[-2] == CHUNK
    assert running.reading == running.rows == []
    again = Row(row.prompt, GREEDY)
    running.join(again, states)
    finish(running)
    assert again.emitted == generated(llama, again)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(0, 6), st.booleans()), min_size=1, max_size=7
    )
)
def test_rows_come_and_go_in_any_order_and_say_what_they_would_alone(llama, plan):
    """Of each row: prompt tokens, new tokens, steps until the next one joins, whether its beginning was computed."""
    running, rows = Running(llama, frozenset()), []
    for seed, (length, new, pause, known) in enumerate(plan):
        row, states = Row(prompt(length, seed), Settings(new, 0, repetition_penalty=1.2)), None
        if known and length > 1:
            first = Row(row.prompt[: length // 2], Settings(1, 0))
            alone = Running(llama, frozenset())
            alone.join(first)
            states = finish(alone)[first]
        running.join(row, states)
        rows.append(row)
        for _ in range(pause):
            running.read()
            settle(running)
            running.step()
            settle(running)
    finish(running)
    for row in rows:
        assert row.emitted == generated(llama, row)


def test_a_seed_draws_the_same_whoever_is_beside_it(llama):
    def said(*beside):
        row = Row(prompt(8), Settings(20, 1.0, top_p=0.95, top_k=40, seed=11))
        running = Running(llama, frozenset())
        for one in (*beside, row):
            running.join(one)
        finish(running)
        return row.emitted

    others = [
        Row(prompt(9, 1), GREEDY),
        Row(prompt(3, 2), Settings(9, 1.5, top_p=1.0, top_k=0, seed=5)),
        Row(prompt(8, 3), Settings(30, 0.7, top_p=0.5, top_k=3, seed=11)),
    ]
    assert said() == said(*others) == said()


def warped(how, logits, ids):
    """The distribution of transformers' own processors."""
    import transformers as t

    steps = [
        t.RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
        t.TemperatureLogitsWarper(how.temperature),
        *([t.TopKLogitsWarper(how.top_k)] if how.top_k else []),
        *([t.TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []),
    ]
    for step in steps:
        logits = step(ids, logits)
    return logits.softmax(-1)


def test_tokens_are_drawn_as_often_as_transformers_would():
    import torch

    from pipeline.chat.choose import Chooser

    torch.manual_seed(1)
    ways = [
        Settings(1, temperature, top_p, top_k, penalty)
        for temperature, top_p, top_k, penalty in itertools.product((0.7, 1.3), (0.6, 1.0), (0, 5), (1.0, 1.3))
    ]
    logits, ids = 3 * torch.randn(len(ways), 23), torch.randint(23, (len(ways), 9))
    choose, draws = Chooser(ways, logits.device), 2000
    seen = torch.zeros_like(logits)
    for draw in range(draws):
        tokens, logprobs = choose(logits, ids, [(draw + 0.5) / draws] * len(ways))  # evenly over all chances
        seen[range(len(ways)), tokens] += 1
    for place, how in enumerate(ways):
        wanted = warped(how, logits[place, None].clone(), ids[place, None])[0]
        assert (seen[place] / draws - wanted).abs().max() < 2 / draws
    plain = logits.log_softmax(-1)
    assert logprobs == pytest.approx([float(plain[place, token]) for place, token in enumerate(tokens)], abs=1e-5)


def test_memory_stays_that_of_the_rows_that_are_there(llama):
    running = Running(llama, frozenset())
    running.join(Row(prompt(900), GREEDY))
    finish(running)
    rows = [Row(prompt(8, seed), Settings(200, 0)) for seed in range(3)]
    for row in rows:
        running.join(row)
    running.read()
    for _ in range(190):
        running.step()
    keys = running._block.cache.layers[0].keys
    assert keys.shape[0] <= 4
    assert keys.shape[2] <= 198 + 2 * 64
    finish(running)
    assert running._block.cache.layers == []


def test_prefixes_are_kept_up_to_their_memory_the_oldest_going_first():
    import torch

    from pipeline.chat.prefixes import Prefixes

    states = [(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4))]  # 320 bytes
    kept, ids = Prefixes(700), list(range(10))
    for name in "abc":
        kept.keep((name, None), ids, states)
    assert kept.take(("a", None), ids) is None
    assert kept.take(("b", "sft"), ids) is None
    assert kept.take(("b", None), [*ids[:4], 99, 98])[0][0].shape[-2] == 4
    assert kept.take(("b", None), ids) is None  # whoever takes it has it
    assert kept.take(("c", None), ids)[0][0].shape[-2] == 9  # the last token must be read to go on
    kept.keep(("c", None), ids, states)
    kept.forget("c")
    assert kept.take(("c", None), ids) is None
    kept.keep(("d", None), ids, [layer * 2 for layer in states] * 3)  # larger than all there is room for
    assert kept.take(("d", None), ids) is None
