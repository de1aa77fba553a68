"""`gonggam data` as a user types it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from gonggam.errors import UserError
from gonggam.files import read_jsonl, write_jsonl
from pipeline.cli_data import app


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return re.sub(r"\s+", " ", done.output)


def test_prepare_audit_explore_prefer(tmp_path):
    data = tmp_path / "data"
    assert "904 conversations, 2,138 supervised replies" in run("prepare", "--out", data, "--off", "repeats")
    assert "no leaks" in run("audit", data, "--near", 0)
    leaked = tmp_path / "eval.jsonl"
    write_jsonl(leaked, list(read_jsonl(data / "messages" / "train.jsonl"))[:3])
    assert "3 conversations or pairs share" in run("audit", data, leaked, "--near", 0, code=1)
    pairs = tmp_path / "pairs"
    source = data / "preference" / "test.jsonl"
    assert "report.html" in run("explore", source, "--out", tmp_path / "seen")
    assert "length alone tells" in run("prefer", source, "--out", pairs, "--max-length", 400)
    assert next(read_jsonl(pairs / "pairs.jsonl"))["rejected"]


def test_dry_run_needs_no_endpoint(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "고민이 있어요", "output": "네", "type": "single"}])
    words = ("prefer", tmp_path / "a.jsonl", "--out", tmp_path / "p", "--teacher", "http://nowhere/v1", "--model", "m")
    assert "requests │ 2" in run(*words, "--dry-run")


def test_mistakes_reach_the_user(tmp_path):
    with pytest.raises(UserError, match="no data found"):
        run("prepare", tmp_path / "missing.csv", "--reader", "alpaca", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="privacy"):
        run("prepare", "--privacy", "hide", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="repeat"):
        run("prepare", "--off", "repeat", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "broken.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(UserError, match="no row of it can be read: broken xlsx"):
        run("prepare", tmp_path / "broken.xlsx", "--out", tmp_path / "out")
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "고민", "output": "네", "type": "single"}])
    with pytest.raises(UserError, match="no rejected replies"):
        run("prefer", tmp_path / "a.jsonl", "--out", tmp_path / "p")
