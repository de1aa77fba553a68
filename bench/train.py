"""SFT on exploded multi-turn rows and DPO on multi-turn pairs: gonggam against plain TRL, all sides in one run.

Both start from the same randomly initialised tiny Llama, the same LoRA and the same data, and take about as many
optimiser steps. Every side is a process of its own on one processor thread; its time runs from raw rows to the trained
adapter (tokenising, masks, packing, reference log-probabilities, training), without the imports. TRL runs twice: as it
comes, and without gradient checkpointing, which it switches on by default and which a small model does not need.

Run: ``python bench/train.py [--conversations 96]``. Results go to ``bench/results/train.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, record, told, versions

PACKAGES = ("torch", "transformers", "trl", "peft")
LENGTH = 512
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
SHARED = {"num_train_epochs": 1, "max_length": LENGTH, "learning_rate": 1e-3, "seed": 1}
SIDES = ("trl", "trl-plain", "gonggam")


def dialogues(count: int) -> list[dict[str, Any]]:
    """The first multi-turn conversations of the sample corpus."""
    path = ROOT / "data_prep/samples/counsel_ko/dialogues.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in rows if len(row["turns"]) >= 4 and "rejected" in row][:count]


def explode(conversations: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """Every exchange as a row of its own with all that came before, as the public data sets store them."""
    return [row["turns"][:end] for row in conversations for end in range(2, len(row["turns"]) + 1, 2)]


def reassemble(rows: list[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    """The rows that are no beginning of another row."""
    keys = [tuple(turn["content"] for turn in row) for row in rows]
    begun = {key[:end] for key in keys for end in range(2, len(key), 2)}
    return [row for key, row in zip(keys, rows, strict=True) if key not in begun]


def base() -> tuple[Any, Any]:
    """The tiny Llama and its tokenizer, the same in every process."""
    import torch

    from pipeline.recipe.sections import TinyOptions
    from pipeline.train.tiny import build_model, build_tokenizer

    said = (turn["content"] for row in dialogues(10_000) for turn in row["turns"])
    tokenizer = build_tokenizer(said, 4096, LENGTH)
    torch.manual_seed(1)
    return build_model(tokenizer, TinyOptions()), tokenizer


def trl_settings(side: str, folder: str) -> dict[str, Any]:
    """TRL as it comes, but for the processor, and for checkpointing on the second side."""
    extra = {"gradient_checkpointing": False} if side == "trl-plain" else {}
    return {**QUIET, **SHARED, **extra, "output_dir": folder, "per_device_train_batch_size": 8}


def sft(side: str, count: int, folder: str) -> dict[str, Any]:
    """One side of the SFT comparison."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from pipeline.train.loop import train
    from pipeline.train.mask import supervise
    from pipeline.train.sft import reply_trainer

    (model, tokenizer), exploded = base(), explode(dialogues(count))
    supervised = sum(supervise(tokenizer, row, first=len(row) // 2 - 1).supervised for row in exploded)
    watch = Watch()
    if side == "gonggam":
        rows = [supervise(tokenizer, row) for row in reassemble(exploded)]
        given = {**QUIET, **SHARED, "output_dir": folder, "per_device_train_batch_size": 1, "packing": True}
        given["gradient_checkpointing"] = False
        trainer, _ = reply_trainer(model, tokenizer, rows, given, LoraConfig(task_type="CAUSAL_LM", **LORA))
        steps = train(trainer)["steps"]
        slots = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        assert supervised == sum(row.supervised for row in rows), "both sides teach the same tokens"
    else:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**trl_settings(side, folder)),
            train_dataset=Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in exploded]),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        seen = Slots(trainer)
        steps = trainer.train().global_step
        slots = seen.slots
        counted = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels)
        assert supervised == counted, "both sides teach the same tokens"
    result = watch.read(done=supervised, slots=slots, steps=steps)
    return {**result, "start": objective(base()[0], tokenizer, exploded)}


def objective(model: Any, tokenizer: Any, exploded: list[list[dict[str, str]]]) -> dict[str, float]:
    """The loss before training (nats a token) of the exploded and of the reassembled rows, on the first of them."""
    from pipeline.train.mask import supervise
    from pipeline.train.measure import reply_logprobs

    some = exploded[:24]
    forms = {
        "exploded": [supervise(tokenizer, row, first=len(row) // 2 - 1) for row in some],
        "reassembled": [supervise(tokenizer, row) for row in reassemble(some)],
    }
    sums = {name: reply_logprobs(model, rows) for name, rows in forms.items()}
    return {name: -sum(s for s, _ in found) / sum(n for _, n in found) for name, found in sums.items()}


def dpo(side: str, count: int, folder: str) -> dict[str, Any]:
    """One side of the DPO comparison."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from pipeline.train.data import pair_row
    from pipeline.train.dpo import pair_trainer
    from pipeline.train.loop import train
    from pipeline.train.prefix import PairTrainer
    from pipeline.train.reference import reference_logprobs

    (model, tokenizer), chosen = base(), dialogues(count)
    pairs = [
        {
            "id": row["id"],
            "prompt": row["turns"][:-1],
            "chosen": row["turns"][-1:],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in chosen
    ]
    peft = LoraConfig(task_type="CAUSAL_LM", **LORA)
    watch = Watch()
    if side == "gonggam":
        rows = [pair_row(tokenizer, pair, None, LENGTH) for pair in pairs]
        given = {**QUIET, **SHARED, "output_dir": folder, "per_device_train_batch_size": 8}
        given["gradient_checkpointing"] = False
        trainer, _ = pair_trainer(model, tokenizer, rows, given, peft, None)
        trainer.attach_reference(reference_logprobs(trainer, rows, Path(folder) / "cache"))
        steps = train(trainer)["steps"]
        slots = sum(len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    else:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**trl_settings(side, folder)),
            train_dataset=Dataset.from_list([{k: v for k, v in pair.items() if k != "id"} for pair in pairs]),
            processing_class=tokenizer,
            peft_config=peft,
        )
        seen = Slots(trainer)
        steps, slots = trainer.train().global_step, seen.slots
    result = watch.read(done=len(pairs), slots=slots, steps=steps)
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    some = [{key: row[key] for key in keys} for row in (rows if side == "gonggam" else trainer.train_dataset)][:16]
    fresh = {"model": base()[0], "args": DPOConfig(**trl_settings("trl-plain", folder)), "processing_class": tokenizer}
    if side == "gonggam":
        fresh_trainer = pair_trainer(fresh["model"], tokenizer, some_named(some), given, peft, None)[0]
        result["logprobs"] = fresh_trainer.logprobs(some)
    else:
        fresh_trainer = PairTrainer(shared=False, train_dataset=Dataset.from_list(some), peft_config=peft, **fresh)
        result["logprobs"] = fresh_trainer.logprobs(some)
    return result


def some_named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the id that `pair_trainer` asks for."""
    return [{**row, "id": str(number)} for number, row in enumerate(rows)]


class Slots:
    """Counts the token slots (padding included) of the batches that a trainer reads."""

    def __init__(self, trainer: Any) -> None:
        self.slots, self.collator = 0, trainer.data_collator
        trainer.data_collator = self

    def __call__(self, examples: list[Any]) -> Any:
        """The batch."""
        batch = self.collator(examples)
        self.slots += batch["input_ids"].numel()
        return batch


class Watch:
    """Wall and processor time from its making."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self, **more: Any) -> dict[str, Any]:
        """Seconds until now, peak memory, and what else is to be told."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu, "mib": peak, **more}


def run(task: str, side: str, count: int) -> dict[str, Any]:
    """One side in a process of its own, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--task", task, "--side", side, "--conversations", str(count)]
        out = Path(folder) / "result.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder}
        subprocess.run([*command, "--out", str(out)], check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text("utf-8"))


def table(task: str, unit: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """The comparison as Markdown lines."""
    lines = [
        f"| way | steps | token slots | wall s | CPU s | {unit} a second | times TRL | in CPU time | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = {"trl": f"trl.{task}Trainer, its defaults", "trl-plain": "the same, no gradient checkpointing"}
    for side, one in found.items():
        times = faster(found, side)
        lines.append(
            f"| {names.get(side, side)} | {one['steps']} | {one['slots']:,} | {one['wall']:.1f} | {one['cpu']:.1f} "
            f"| {one['done'] / one['wall']:,.1f} | {times['wall']:.1f} | {times['cpu']:.1f} | {one['mib']} |"
        )
    return lines


def faster(found: dict[str, dict[str, Any]], side: str) -> dict[str, float]:
    """How many times as much a side does in a second as TRL with its defaults, by each clock."""
    one, trl = found[side], found["trl"]
    return {clock: trl[clock] / one[clock] * one["done"] / trl["done"] for clock in ("wall", "cpu")}


def main() -> None:
    """Run every side and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=96)
    parser.add_argument("--task", choices=("sft", "dpo"))
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.side:
        with tempfile.TemporaryDirectory() as folder:
            result = {"sft": sft, "dpo": dpo}[asked.task](asked.side, asked.conversations, folder)
        asked.out.write_text(json.dumps(result), "utf-8")
        return
    count = asked.conversations
    found = {task: {side: run(task, side, count) for side in SIDES} for task in ("sft", "dpo")}
    rows = len(explode(dialogues(count)))
    start = found["sft"]["gonggam"]["start"]
    logprobs = [[v for pair in found["dpo"][side]["logprobs"] for v in pair] for side in ("trl", "gonggam")]
    apart = max(abs(a - b) for a, b in zip(*logprobs, strict=True))
    lines = [
        "# Training",
        "",
        f"{told()} {', '.join(f'{name} {found}' for name, found in versions(PACKAGES).items())}. One thread each; "
        "on a busy machine CPU time is the fairer measure.",
        "Goals in wall time: supervised tokens of SFT 4 times, pairs of DPO 3.5 times those of TRL with its defaults.",
        "",
        f"## SFT: {count} conversations stored as {rows} rows, {found['sft']['trl']['done']:,} supervised tokens",
        "",
        *table("SFT", "supervised tokens", found["sft"]),
        "",
        f"Token slots {found['sft']['trl']['slots']:,} before, {found['sft']['gonggam']['slots']:,} after. "
        f"Loss before training: exploded {start['exploded']:.6f}, reassembled {start['reassembled']:.6f} nats a token.",
        "",
        f"## DPO: {count} pairs on multi-turn prompts, one epoch",
        "",
        *table("DPO", "pairs", found["dpo"]),
        "",
        f"Largest difference of a reply's log-probability between the two ways: {apart:.1e} nats.",
        "",
    ]
    text = "\n".join(lines)
    (RESULTS / "train.md").write_text(text, "utf-8")
    times = {f"{task}_times_trl": faster(sides, "gonggam")["wall"] for task, sides in found.items()}
    record("train", {**times, "logprobs_apart": apart}, PACKAGES)
    print(text)


if __name__ == "__main__":
    main()
