"""bench/serve.py with a model: tokens a second for 16 users, and the wait for the first token in long conversations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from record import Row
from serve_process import Served, running, transformers_serve

MESSAGES = (
    "면접에서 또 떨어졌어. 나는 왜 이럴까",
    "요즘 잠이 안 와서 하루 종일 멍해",
    "친구가 내 말을 안 듣고 자기 얘기만 해서 서운했어",
    "엄마랑 크게 싸우고 나왔는데 마음이 무거워",
)
SAMPLING = {"temperature": 0.7, "top_p": 0.9}


def build_model(folder: Path, hidden: int = 256, layers: int = 4) -> Path:
    """A random Llama of the demo's shape with a byte-level tokenizer; its speed does not depend on what it says."""
    import torch
    import yaml
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from pipeline.prompt import template

    corpus = [path.read_text("utf-8") for path in Path(__file__).parents[1].glob("pipeline/chat/data/*.yaml")]
    corpus += [str(yaml.safe_load(text)) for text in corpus]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    fast.chat_template = template("gonggam")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=hidden * 43 // 16, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None,
        eos_token_id=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # transformers serve samples only where the model's folder says so.
    model.generation_config.update(do_sample=True, top_k=50, **SAMPLING)
    model.save_pretrained(folder)
    return folder


def prompts(users: int, each: int) -> list[list[dict[str, str]]]:
    """Conversations of one message, all different."""
    return [[{"role": "user", "content": f"{MESSAGES[i % len(MESSAGES)]} ({i})"}] for i in range(users * each)]


@dataclass(frozen=True)
class Speed:
    """Tokens a second on the clock, and milliseconds of processor time a token, which hold on a busy machine too."""

    rate: float
    cpu: float


def clocked(work: Callable[[], int], cpu: Callable[[], float]) -> Speed:
    """How fast ``work`` makes the tokens it counts, by a clock of seconds of processor time."""
    began, spent = time.perf_counter(), cpu()
    made = work()
    return Speed(made / (time.perf_counter() - began), 1000 * (cpu() - spent) / made)


def one_at_a_time(folder: Path, talks: list[list[dict[str, str]]], tokens: int) -> Speed:
    """transformers' own generate, one prompt after another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def answer(talk: list[dict[str, str]]) -> int:
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(
            **ids, max_new_tokens=tokens, do_sample=True, top_k=50, repetition_penalty=1.1, **SAMPLING
        )
        return made.shape[1] - ids["input_ids"].shape[1]

    answer(talks[0])
    return clocked(lambda: sum(map(answer, talks)), time.process_time)


def together(served: Served, model: str, talks: list[list[dict[str, str]]], tokens: int, users: int) -> Speed:
    """The API with so many users at once, each asking again as soon as it is answered."""
    with httpx.Client(base_url=served.address, timeout=600, limits=httpx.Limits(max_connections=users)) as client:

        def answer(talk: list[dict[str, str]]) -> int:
            body = {"model": model, "messages": talk, "max_tokens": tokens, **SAMPLING}
            found = client.post("/v1/chat/completions", json=body)
            found.raise_for_status()
            return found.json()["usage"]["completion_tokens"]

        def all_answers() -> int:
            with ThreadPoolExecutor(users) as pool:
                return sum(pool.map(answer, talks))

        answer(talks[0])
        return clocked(all_answers, served.cpu)


def throughput(folder: Path, users: int = 16, each: int = 4, tokens: int = 64, rounds: int = 3) -> list[Row]:
    """Three ways in turns, so that what else the machine does falls on all; the median round counts."""
    talks = prompts(users, each)
    with running("model", folder) as ours, transformers_serve(folder) as theirs:
        ways: dict[str, Callable[[], Speed]] = {
            "model.generate, one at a time": lambda: one_at_a_time(folder, talks[:users], tokens),
            f"gonggam serve, {users} users": lambda: together(ours, "gonggam", talks, tokens, users),
        }
        if theirs:
            name = f"transformers serve --continuous-batching, {users} users"
            ways[name] = lambda: together(theirs, str(folder), talks, tokens, users)
        speeds: dict[str, list[Speed]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, measure in ways.items():
                speeds[way].append(measure())
    rates = {way: statistics.median(one.rate for one in found) for way, found in speeds.items()}
    costs = {way: statistics.median(one.cpu for one in found) for way, found in speeds.items()}
    rows: list[Row] = [
        (way, f"{rates[way]:.0f} tokens/s, {costs[way]:.2f} ms of processor time a token") for way in ways
    ]
    alone, here, *rest = ways
    named = [
        ("one at a time", "times_generate", alone),
        *(("transformers serve", "times_transformers", way) for way in rest),
    ]
    for name, key, other in named:
        times, saved = rates[here] / rates[other], costs[other] / costs[here]
        figures = {key: times, f"{key}_cpu": saved}
        rows.append((f"gonggam serve over {name}", f"{times:.1f} by the clock, {saved:.1f} by processor time", figures))
    return rows


def first_token(folder: Path, turns: int = 20, rounds: int = 5) -> list[Row]:
    """Milliseconds until a reply of one token, turn by turn; the median of the rounds."""
    waits: list[list[float]] = [[] for _ in range(turns)]
    with running("model", folder) as ours, httpx.Client(base_url=ours.address, timeout=600) as client:
        for round_ in range(rounds):
            talk: list[dict[str, str]] = []
            for turn in range(turns):
                talk.append({"role": "user", "content": f"{MESSAGES[turn % len(MESSAGES)]} ({round_}, {turn})"})
                body = {"model": "gonggam", "messages": talk, "max_tokens": 1}
                began = time.perf_counter()
                client.post("/v1/chat/completions", json=body).raise_for_status()
                waits[turn].append(1000 * (time.perf_counter() - began))
                talk.append({"role": "assistant", "content": "많이 힘드셨겠어요. 그때 어떤 마음이 드셨어요?"})
    middle = [statistics.median(found) for found in waits]
    late = middle[turns - 1] / middle[1]
    return [
        ("first token at turn 2", f"{middle[1]:.1f} ms"),
        (f"first token at turn {turns}", f"{middle[-1]:.1f} ms"),
        (f"turn {turns} over turn 2", f"{late:.2f}", {"first_token": late}),
        ("slowest turn after the second, over turn 2", f"{max(middle[2:]) / middle[1]:.2f}"),
    ]
