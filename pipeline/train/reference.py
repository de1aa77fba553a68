"""Log-probabilities under the frozen reference, computed once and kept by content.

The key of a value is what it depends on: the weights of the reference and the token ids of the pair. So another order
of rows, another beta or another loss type finds them again, and a changed adapter never does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object

from gonggam.files import write_json
from pipeline.train.prefix import Pair, PairTrainer


def reference_logprobs(trainer: PairTrainer, rows: Sequence[Pair], cache: Path) -> list[tuple[float, float]]:
    """For each pair the log-probabilities (nats, summed) of both replies under the trainer's reference.

    Args:
        trainer: a trainer that has not taken a step.
        rows: its pairs, in any order.
        cache: folder that keeps what was computed; every process of a launch shares the work.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    path = cache / f"reference-{weights_key(model)}-{trainer.args.ld_alpha}.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    keys = [pair_key(row) for row in rows]
    missing = list({key: row for key, row in zip(keys, rows, strict=True) if key not in known}.items())
    trainer.accelerator.wait_for_everyone()
    if missing:
        mine = missing[trainer.accelerator.process_index :: trainer.accelerator.num_processes]
        found = trainer.logprobs([row for _, row in mine], reference=True)
        known |= dict(gather_object(list(zip([key for key, _ in mine], found, strict=True))))
        if trainer.accelerator.is_main_process:
            cache.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return [(known[key][0], known[key][1]) for key in keys]


def pair_key(row: Pair) -> str:
    """SHA-256 of a pair's token ids."""
    ids = [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


def weights_key(model: torch.nn.Module) -> str:
    """A hash over the weights of the reference: the base, and its adapter ``ref`` where there is one."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if ".default." not in name:
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
            digest.update(str(torch.hash_tensor(weight.detach()).view(torch.int64).item()).encode())
    return digest.hexdigest()[:16]
