"""Written files load in the programs they are written for; each test skips where the program is not installed."""

from __future__ import annotations

import importlib.util
import os

import pytest

from data_prep import prepare
from gonggam.files import read_jsonl


@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="llamafactory is not installed")
@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages"])
def test_llama_factory_loads_what_was_written(tmp_path, form, monkeypatch):
    monkeypatch.setitem(os.environ, "DISABLE_VERSION_CHECK", "1")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    prepare([{"reader": "counsel_ko", "rows": 30}], tmp_path / "out")
    model = ModelArguments(model_name_or_path="none", cache_dir=str(tmp_path / "cache"))
    arguments = DataArguments(dataset="gonggam_train", dataset_dir=str(tmp_path / "out" / form), template="default")
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False)
    (description,) = get_dataset_list(["gonggam_train"], arguments.dataset_dir)
    loaded = _load_single_dataset(description, model, arguments, training)
    wanted = list(read_jsonl(tmp_path / "out/messages/train.jsonl"))
    turns = [
        [message["content"] for message in (*row["_prompt"], *row["_response"]) if message["content"]] for row in loaded
    ]
    assert turns == [[message["content"] for message in row["messages"]] for row in wanted]
