"""Speed and memory of training EEVE-10.8B's shape (random weights, no download) on one GPU, beside what `plan` says.

Run from the repository root on a machine with a GPU: ``python bench/gpu.py``; writes bench/results/gpu.md.
LoRA bf16 and NF4, SFT and DPO, at 2048 and 4096 tokens a step. A case that fails is told in the table, which is written
after every case. ``--tiny`` does the same with a tiny model on any
processor, to show that the script works; its figures say nothing about a GPU, and it writes no file.
"""

from __future__ import annotations

import argparse
import gc
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, record, table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, TrainerCallback

from pipeline.train.dpo import pair_trainer
from pipeline.train.loop import arguments
from pipeline.train.mask import IGNORE, Row
from pipeline.train.plan_memory import Setting, Shape
from pipeline.train.sft import lora, reply_trainer
from pipeline.train.tiny import build_tokenizer

RESULT = RESULTS / "gpu.md"
EEVE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 40960, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
WARM_UP = 2
SHARE, OF_PLAN = "share of matmul rate", "peak of plan"
SEED = 12.5  # rows/s of the run to beat: QLoRA, r 64, of EEVE-10.8B on 8,094 single-turn rows, on one A100


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    stage: str
    weights: str
    length: int


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model on this processor: shows that it works")
    parser.add_argument("--steps", type=int, default=10, help="timed steps a case, after two to warm up")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of computing again")
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --tiny shows on a processor that the script works")
    shape, lengths = (TINY, (128, 256)) if chosen.tiny else (EEVE, (2048, 4096))
    rate = matmul_rate(chosen.tiny)
    cases = [Case(s, w, n) for s in ("sft", "dpo") for w in ("bf16", "nf4") for n in lengths]
    rows = []
    for case in cases:
        rows.append(tried(case, shape, rate, steps=chosen.steps, checkpointing=not chosen.no_checkpointing))
        print(rows[-1], file=sys.stderr)
        if not chosen.tiny:
            RESULT.write_text(report(rows, rate, chosen), encoding="utf-8")
    if not chosen.tiny:
        record("gpu", figures(rows), ["torch", "transformers", "trl", "peft", "bitsandbytes"])
    print(report(rows, rate, chosen))


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the card shows, by key: of a kind of cases the worst one, and nothing where one of them failed."""
    cases = {(row["stage"], row["weights"], row["tokens a step"]): row for row in rows}

    def worst(choose: Callable[..., float], weights: tuple[str, ...] = ("bf16", "nf4")) -> float | None:
        kind = {case: row for case, row in cases.items() if case[1] in weights}
        return None if any("peak GiB" not in row for row in kind.values()) else choose(kind)

    def slower(kind: dict[Any, dict[str, Any]]) -> float:
        pairs = [(row, kind[stage, "bf16", n]) for (stage, weights, n), row in kind.items() if weights == "nf4"]
        return min(nf4["tokens/s"] / bf16["tokens/s"] for nf4, bf16 in pairs)

    found = {
        "bf16_share": worst(lambda kind: min(row[SHARE] for row in kind.values()), ("bf16",)),
        "nf4_share": worst(slower),
        "plan_apart": worst(lambda kind: max(abs(row[OF_PLAN] - 1) for row in kind.values())),
        "nf4_rows": worst(lambda kind: max(row["rows/s"] for case, row in kind.items() if case[0] == "sft"), ("nf4",)),
    }
    return {key: value for key, value in found.items() if value is not None}


def tried(case: Case, shape: dict[str, Any], rate: float, **how: Any) -> dict[str, Any]:
    """`measure`, or the line that says what went wrong; what a failed case held is given back before the next."""
    line: dict[str, Any] = {"stage": case.stage, "weights": case.weights, "tokens a step": case.length}
    try:
        line |= measure(case, shape, rate, **how)
    except torch.OutOfMemoryError:
        line["tokens/s"] = "out of memory"
    except Exception as error:  # the other cases are worth measuring all the same
        line["tokens/s"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else repr(error)
    gc.collect()  # here the traceback, which holds the model, is gone
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return line


def measure(case: Case, shape: dict[str, Any], rate: float, *, steps: int, checkpointing: bool) -> dict[str, Any]:
    """One case: train ``steps`` steps and say how fast and how large it was, and what was planned."""
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    random.seed(0)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    r = 64 if shape is EEVE else 4
    wanted = {"r": r, "lora_alpha": 16, "target_modules": "all-linear"}
    rows = texts(case, steps + WARM_UP, config.vocab_size)
    pairs_a_step = case.length // len(pair_ids(rows[0])) if case.stage == "dpo" else 1
    given = {
        "max_length": case.length, "per_device_train_batch_size": pairs_a_step, "max_steps": steps + WARM_UP,
        "learning_rate": 1e-5, "save_strategy": "no", "logging_steps": 1000, "activation_checkpointing": checkpointing,
        "optim": "adamw_torch_fused" if on_gpu else "adamw_torch",
    }  # fmt: skip
    clock = Clock()
    model = random_model(config, case.weights)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(given, Path(folder), 0)
        tokenizer = build_tokenizer(iter(["가"]), 300, case.length)
        if case.stage == "sft":
            trainer, _ = reply_trainer(model, tokenizer, rows, {**settings, "packing": True}, lora(wanted))
        else:
            trainer, _ = pair_trainer(model, tokenizer, rows, settings, lora(wanted), None)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.add_callback(clock)
        trainer.train()
        read = trainer.train_dataset
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    sizes = [sum(s) for s in read["seq_lengths"]] if case.stage == "sft" else [len(pair_ids(r)) for r in rows]
    texts_a_step = sum(map(len, read["seq_lengths"])) / len(sizes) if case.stage == "sft" else pairs_a_step
    tokens = sum(sizes) / len(sizes) * (1 if case.stage == "sft" else pairs_a_step)
    seconds = sorted(clock.seconds[WARM_UP:])[len(clock.seconds[WARM_UP:]) // 2]
    plan = planned(case, config, wanted, rows, tokens, texts_a_step, checkpointing)
    return {
        "tokens/s": round(tokens / seconds),
        "rows/s": round(texts_a_step / seconds, 2),
        SHARE: plan["flops"] / seconds / rate,
        "peak GiB": round(peak / 2**30, 2) if on_gpu else "–",
        "planned GiB": round(plan["bytes"] / 2**30, 2),
        OF_PLAN: peak / plan["bytes"] if on_gpu else "–",
    }


def planned(
    case: Case, config: LlamaConfig, wanted: dict, rows: list, tokens: float, texts_a_step: float, checkpointing: bool
) -> dict[str, float]:
    """Bytes and operations of a step, as `gonggam plan` reckons them."""
    shape = Shape(config, wanted)
    speak = [r.supervised if case.stage == "sft" else len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows]
    positions = round(sum(speak) / len(speak) * texts_a_step)
    setting = Setting(
        rows=1, length=round(tokens), positions=positions, quantization="none" if case.weights == "bf16" else "nf4",
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32, checkpointing=checkpointing,
    )  # fmt: skip
    squares = round(texts_a_step * (tokens / texts_a_step) ** 2)
    passes = int(case.stage == "dpo")  # the reference: the policy without its adapter
    flops = shape.flops(round(tokens), squares, positions, checkpointing=checkpointing, passes=passes)
    return {"bytes": sum(shape.memory(setting).values()), "flops": flops}


def texts(case: Case, steps: int, vocabulary: int) -> list[Any]:
    """Rows enough for ``steps`` steps: single-turn dialogues of the usual lengths, or pairs of one length."""

    def ids(count: int) -> list[int]:
        return [random.randrange(10, vocabulary) for _ in range(count)]

    if case.stage == "dpo":
        unit = max(8, case.length // 8)
        asked, reply = ids(unit - 2 * (unit // 5)), unit // 5
        return [
            {"id": f"{i}", "prompt_ids": asked, "chosen_ids": ids(reply), "rejected_ids": ids(reply)}
            for i in range(steps * 8)
        ]
    rows: list[Any] = []
    total = 0
    while total < steps * case.length:
        count = min(case.length, max(16, round(random.lognormvariate(4.8, 0.5))))
        row, prompt = ids(count), count // 2
        rows.append(Row(row, [IGNORE] * prompt + row[prompt:], f"row {len(rows)}"))
        total += count
    return rows


def pair_ids(row: dict[str, list[int]]) -> list[int]:
    """A pair as one row."""
    return [*row["prompt_ids"], *row["chosen_ids"], *row["rejected_ids"]]


def random_model(config: LlamaConfig, weights: str) -> PreTrainedModel:
    """The model with random weights, made on its device a matrix at a time, its linear layers in NF4 if so wanted."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if weights == "nf4":
        _quantize(model, device, dtype)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.is_meta:
                norm = "norm" in type(module).__name__.lower()
                data = torch.empty(value.shape, dtype=dtype, device=device)
                filled = data.fill_(1.0) if norm else data.normal_(std=0.02)
                module._parameters[name] = torch.nn.Parameter(filled)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    return model


def _quantize(model: PreTrainedModel, device: str, dtype: torch.dtype) -> None:
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not model.lm_head:
                with torch.device("meta"):
                    layer = bnb.nn.Linear4bit(
                        child.in_features, child.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                    )
                data = torch.empty(child.weight.shape, dtype=dtype, device=device).normal_(std=0.02)
                weight: Any = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4", compress_statistics=True)
                layer.weight = weight.to(device)
                setattr(parent, name, layer)
    wanted = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model.hf_quantizer = AutoHfQuantizer.from_config(wanted)
    model.is_loaded_in_4bit = model.is_quantized = True


class Clock(TrainerCallback):
    """Seconds of every optimiser step, the GPU's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.began = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(_now() - self.began)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(tiny: bool) -> float:
    """Operations a second of one large product of matrices, the best of twenty."""
    size = 256 if tiny else 8192
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    def once(work: Callable[[], Any]) -> float:
        began = _now()
        work()
        return _now() - began

    return 2 * size**3 / min(once(lambda: a @ b) for _ in range(20))


def report(rows: list[dict[str, Any]], rate: float, chosen: argparse.Namespace) -> str:
    """The table as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = table(columns, [[shown(key, row.get(key, "–")) for key in columns] for row in rows])
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    note = "**A tiny model on a processor: this shows that the script works, no more.**\n\n" if chosen.tiny else ""
    what = "a tiny Llama, LoRA r 4" if chosen.tiny else "EEVE-10.8B's shape, random weights, LoRA r 64"
    how = "activations kept" if chosen.no_checkpointing else "activation checkpointing"
    return (
        f"# Training on one GPU\n\n{note}`python bench/gpu.py`: {what} on all linear layers, {how}; "
        f"median of {chosen.steps} steps.\n"
        f"SFT rows are single-turn dialogues of about 137 tokens; the run to beat read {SEED} of such rows a second.\n"
        f"{machine}, torch {torch.__version__}, measured matmul rate {rate / 1e12:.1f} teraflop/s.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def shown(key: str, value: Any) -> str:
    """A cell of the table."""
    return f"{value:.0%}" if key in (SHARE, OF_PLAN) and isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
