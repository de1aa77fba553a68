"""SFT and DPO as whole commands: gonggam against LLaMA-Factory on the same tiny Llama and the same rows.

    python bench/llamafactory.py --python ENV/bin/python [--rows 360]

``--python`` names an environment of its own, since LLaMA-Factory pins older libraries. To make one:
``python -m venv ENV && ENV/bin/pip install llamafactory torch==VERSION_HERE``; where no torchvision and torchaudio
match that torch, ``ENV/bin/pip uninstall torchvision torchaudio``: an empty torchaudio stands in, text needs no more.

Not timed: preparing the data, and making the base. Timed: `llamafactory-cli train` on rows as public sets store them
(every exchange again with all that came before, loss on its last reply), and `python -m pipeline --only STAGE` on the
prepared conversations, which also measures held-out data. Results go to ``bench/results/llamafactory.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from record import record
from train import LENGTH, LORA, PACKAGES, ROOT, base

SHARED = {"learning_rate": 1e-3, "num_train_epochs": 1, "save_strategy": "no", "seed": 1, "logging_steps": 10}
THEIRS, OURS = "LLaMA-Factory", "gonggam, activations kept"  # the defaults, whose times are compared
Messages = list[dict[str, str]]


def prepare(place: Path, rows: int) -> Path:
    """Base model, recipe and prepared data under ``place``; returns the folder of the prepared data."""
    model, tokenizer = base()
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    ours = {**SHARED, "max_length": LENGTH, "lora": LORA}
    recipe = {
        "name": "bench",
        "model": {"base": str(place / "base")},
        "prepare": {"sources": [{"reader": "counsel_ko", "rows": rows}], "split": {"validation": 0.05, "test": 0.05}},
        "sft": {**ours, "packing": True, "per_device_train_batch_size": 1},
        "dpo": {**ours, "per_device_train_batch_size": 8, "reference": "base", "length_prompts": 0},
        "chat": {"system": "none"},
    }
    (place / "bench.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    gonggam(place, "prepare")
    return place / "runs/bench/prepare"


def gonggam(place: Path, stage: str, *overrides: str) -> dict[str, float]:
    """One stage by the command a user gives; returns its clock. Other settings than last time do it anew."""
    shutil.rmtree(place / "runs/bench/cache", ignore_errors=True)  # reference log-probabilities of the run before
    command = [sys.executable, "-m", "pipeline", "bench.yaml", *overrides, "--only", stage]
    return clocked(command, place, {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})


def explode(prepared: Path) -> tuple[list[Messages], list[dict[str, Any]]]:
    """The training split as rows that end in a reply, each taught once, and its preference pairs."""
    rows = []
    for talk in read(prepared / "messages/train.jsonl"):
        said = talk["messages"]
        ends = (i for i, m in enumerate(said, 1) if m["role"] == "assistant" and i > talk.get("given", 0))
        rows += [said[:end] for end in ends]
    return rows, list(read(prepared / "preference/train.jsonl"))


def read(path: Path) -> list[Any]:
    """The lines of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_their_data(folder: Path, rows: list[Messages], pairs: list[dict[str, Any]]) -> None:
    """Both data sets in the form LLaMA-Factory calls sharegpt."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {
        "rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags},
        "pairs": {
            "file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "tags": tags,
            "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
        },
    }  # fmt: skip
    data = {
        "rows": [{"messages": row} for row in rows],
        "pairs": [
            {"messages": p["prompt"], "chosen": p["chosen"][0], "rejected": p["rejected"][0]} for p in pairs
        ],
    }  # fmt: skip
    folder.mkdir()
    for name, value in {"dataset_info": info, **data}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def theirs(python: Path, place: Path, stage: str, **more: Any) -> dict[str, float]:
    """One `llamafactory-cli train`; returns its clock."""
    settings = {
        **SHARED,
        "stage": stage,
        "do_train": True,
        "model_name_or_path": str(place / "base"),
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_target": "all",
        "cutoff_len": LENGTH,
        "dataset_dir": str(place / "data"),
        "dataset": "rows" if stage == "sft" else "pairs",
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "output_dir": str(place / f"theirs-{stage}"),
        "overwrite_output_dir": True,
        **({"mask_history": True} if stage == "sft" else {"pref_beta": 0.1}),
        **more,
    }
    (place / "theirs.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    command = [str(python.parent / "llamafactory-cli"), "train", str(place / "theirs.yaml")]
    return clocked(command, place, {"PYTHONPATH": stand_in(python, place), "HF_DATASETS_CACHE": str(place / "cache")})


def stand_in(python: Path, place: Path) -> str:
    """A folder for the module path: holds an empty torchaudio where theirs cannot be imported."""
    folder = place / "stand-in"
    if not folder.exists():
        tried = subprocess.run([str(python), "-c", "import torchaudio"], capture_output=True, check=False)
        (folder / "torchaudio" if tried.returncode else folder).mkdir(parents=True)
        if tried.returncode:
            (folder / "torchaudio/__init__.py").touch()
    return str(folder)


def clocked(command: list[str], place: Path, environment: dict[str, str]) -> dict[str, float]:
    """Wall and processor seconds of a command on one thread; what it said is shown if it fails."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    everything = {**kept, "OMP_NUM_THREADS": "1", **environment}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=place, env=everything, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def their_supervised(python: Path, place: Path) -> int:
    """Tokens that LLaMA-Factory takes a loss on, from the data set it tokenises."""
    theirs(python, place, "sft", tokenized_path=str(place / "tokenized"))
    from datasets import load_from_disk

    found = load_from_disk(str(place / "tokenized"))["train"]["labels"]
    return sum(label != -100 for labels in found for label in labels)


def main() -> None:
    """Run both sides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the Python of LLaMA-Factory's environment")
    parser.add_argument("--rows", type=int, default=360, help="rows of the sample corpus to prepare")
    asked = parser.parse_args()
    python = asked.python.absolute()
    plain = {"disable_gradient_checkpointing": True}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepared = prepare(place, asked.rows)
        rows, pairs = explode(prepared)
        write_their_data(place / "data", rows, pairs)
        found = {
            stage: {
                THEIRS: theirs(python, place, stage),
                "the same, activations kept": theirs(python, place, stage, **plain),
                "gonggam, activation checkpointing": gonggam(place, stage, f"{stage}.activation_checkpointing=true"),
                OURS: gonggam(place, stage),
            }
            for stage in ("sft", "dpo")
        }
        told = json.loads((place / "runs/bench/sft/manifest.json").read_text("utf-8"))["metrics"]
        facts = {
            "asked": asked.rows,
            "conversations": told["rows"],
            "rows": len(rows),
            "pairs": len(pairs),
            "our_tokens": told["supervised_tokens"],
            "their_tokens": their_supervised(python, place),
            "their_versions": their_versions(python),
        }
    walls = {stage: {side: one["wall"] for side, one in sides.items()} for stage, sides in found.items()}
    times = {f"{stage}_times": wall[THEIRS] / wall[OURS] for stage, wall in walls.items()}
    text = report(found, facts)
    print(text)
    (ROOT / "bench/results/llamafactory.md").write_text(text, "utf-8")
    record("llamafactory", times, PACKAGES)


def their_versions(python: Path) -> str:
    """What is installed on their side."""
    names = ("llamafactory", "torch", "transformers", "trl", "peft")
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def report(found: dict[str, dict[str, dict[str, float]]], facts: dict[str, Any]) -> str:
    """The results as Markdown."""
    ours = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    lines = [
        "# Beside LLaMA-Factory",
        "",
        f"Command: `python bench/llamafactory.py --python ENV/bin/python --rows {facts['asked']}`. Whole commands with",
        f"imports, one thread of {os.cpu_count()} cores, {platform.machine()}. gonggam: {ours}.",
        f"Theirs: {facts['their_versions']}. Load average at the end {os.getloadavg()[0]:.1f};",
        "on a busy machine CPU time is the fairer measure. Goal: 3 times each, in wall time.",
        "",
        f"SFT: {facts['conversations']:,} rows of gonggam, which LLaMA-Factory reads as {facts['rows']:,} rows with",
        f"the loss on each row's last reply; supervised tokens {facts['our_tokens']:,} (gonggam) and",
        f"{facts['their_tokens']:,} (LLaMA-Factory). DPO: {facts['pairs']:,} pairs against the base.",
        "Same base, LoRA, learning rate, schedule and one epoch; batches of 8 rows or pairs, for gonggam's SFT of one",
        "packed row.",
        "",
        "What differs: gonggam also measures perplexity before and after SFT and preference after DPO on held-out",
        "data, and draws curves; LLaMA-Factory renders by the template it parses from the tokenizer's. Watching how",
        "long answers grow in DPO, which LLaMA-Factory does not do, is switched off (`length_prompts: 0`).",
        "LLaMA-Factory computes activations again by default; gonggam keeps them on a processor. Both ways are in the",
        "table for both sides; times are against LLaMA-Factory's default.",
        "",
        "| stage | command | wall s | CPU s | times LLaMA-Factory | in CPU time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage, sides in found.items():
        first = sides[THEIRS]
        lines += [
            f"| {stage} | {name} | {one['wall']:.1f} | {one['cpu']:.1f} | {first['wall'] / one['wall']:.1f} "
            f"| {first['cpu'] / one['cpu']:.1f} |"
            for name, one in sides.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
