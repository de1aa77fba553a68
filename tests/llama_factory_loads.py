"""Prints, as JSON, the turns of every row that LLaMA-Factory reads from a folder; run by its own interpreter.

Usage: python tests/llama_factory_loads.py FOLDER SCRATCH
"""

import json
import os
import sys
from pathlib import Path


def main(folder: str, scratch: str) -> None:
    """Load the train split of ``folder`` (which holds dataset_info.json) with LLaMA-Factory's own loader."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    model = ModelArguments(model_name_or_path="none", cache_dir=str(Path(scratch) / "cache"))
    arguments = DataArguments(dataset="gonggam_train", dataset_dir=folder, template="default")
    training = Seq2SeqTrainingArguments(output_dir=str(Path(scratch) / "run"), use_cpu=True, bf16=False)
    (description,) = get_dataset_list(["gonggam_train"], arguments.dataset_dir)
    rows = _load_single_dataset(description, model, arguments, training)
    turns = [[m["content"] for m in (*row["_prompt"], *row["_response"]) if m["content"]] for row in rows]
    print(json.dumps(turns))


if __name__ == "__main__":
    main(*sys.argv[1:])
