"""Written files load in LLaMA-Factory; skipped where it is not installed.

It pins other versions of the same packages, so it lives in an environment of its own, whose interpreter is named:
``LLAMA_FACTORY_PYTHON=/path/to/bin/python python -m pytest tests/test_data_peers.py``. What that environment needs
stands in docs/data.md. TRL is shown in test_train_stages.py, datasets in test_data_prepare.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import prepare
from gonggam.files import read_jsonl

INSTALLED = any(found.name == "llamafactory" for found in importlib.metadata.distributions())
PYTHON = os.environ.get("LLAMA_FACTORY_PYTHON") or (sys.executable if INSTALLED else "")


@pytest.mark.skipif(not PYTHON, reason="llamafactory is not installed; LLAMA_FACTORY_PYTHON names an interpreter")
@pytest.mark.parametrize("form", ["alpaca", "alpaca_replies", "sharegpt", "messages"])
def test_llama_factory_loads_what_was_written(tmp_path, few, form):
    prepare([{**few, "rows": 30}], tmp_path / "out", formats=["messages", "alpaca", "alpaca_replies", "sharegpt"])
    script = Path(__file__).parent / "llama_factory_loads.py"
    command = [PYTHON, str(script), str(tmp_path / "out" / form), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    wanted = [[m["content"] for m in row["messages"]] for row in read_jsonl(tmp_path / "out/messages/train.jsonl")]
    if form == "alpaca_replies":
        wanted = [turns[:end] for turns in wanted for end in range(2, len(turns) + 1, 2)]
    assert loaded == wanted
