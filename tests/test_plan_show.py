"""Preview and curves: what is shown is what the model reads and what the trainer logged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30)
HISTORY = [
    {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "step": 10, "epoch": 0.5},
    {"loss": 1.5, "grad_norm": 0.9, "learning_rate": 5e-4, "step": 20, "epoch": 1.0},
    {"train_runtime": 3.0, "step": 20},
]


@pytest.fixture(scope="module")
def tokenizer():
    from pipeline.train.tiny import build_tokenizer

    return build_tokenizer(iter(["오늘은 정말 힘든 하루였어요. 괜찮으세요?"]), 400, 512)


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_the_pieces_of_a_row_spell_it(tokenizer, text):
    from pipeline.train.preview import pieces

    ids = tokenizer(f"<|user|>{text}<|end|>", add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_rows_are_coloured_as_they_are_supervised(tokenizer, tmp_path):
    from gonggam.files import write_jsonl
    from pipeline.train.preview import preview

    talk = [{"role": "user", "content": "힘들어"}, {"role": "assistant", "content": "괜찮으세요?"}]
    rows = [{"id": "a", "messages": talk}, {"id": "b", "messages": talk * 2}]
    write_jsonl(tmp_path / "messages" / "train.jsonl", rows)
    short, long = preview(tokenizer, tmp_path, "train", 2, system=None, max_length=None)
    assert "".join(text for text, role in short.tokens if role == "supervised") == "괜찮으세요?<|end|>"
    assert len(short.tokens) == len(long.tokens)
    assert short.counts["padding"] > 0 == long.counts["padding"]


def test_preview_says_what_to_run_first(tmp_path):
    from gonggam.errors import UserError
    from pipeline.cli import app

    result = CliRunner().invoke(app, ["preview", "demo", "--runs", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "--only tiny" in str(result.exception)


def test_curves_are_drawn_from_a_manifest(tmp_path):
    from pipeline.cli import app
    from pipeline.run import Run

    run = Run(tmp_path / "mine")
    run.begin("sft", "x")
    run.finish("sft", "x", seconds=1.0, metrics={"history": HISTORY})
    result = CliRunner().invoke(app, ["curves", str(run.folder)])
    assert result.exit_code == 0, result.output
    page = (run.stage("sft") / "curves.html").read_text("utf-8")
    assert "gradient norm" in page
    assert (run.stage("sft") / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_logged_is_nothing_drawn(tmp_path):
    from pipeline.train.curves import write_curves

    assert write_curves(tmp_path, [{"train_runtime": 1.0}]) == []


def test_an_unknown_gpu_is_named_before_any_work(tmp_path):
    from gonggam.errors import UserError
    from pipeline.cli import app

    result = CliRunner().invoke(app, ["plan", "demo", "--gpu", "a100-80g", "--runs", str(tmp_path / "runs")])
    assert isinstance(result.exception, UserError)
    assert "unknown GPU 'a100-80g'" in str(result.exception)
    assert not (tmp_path / "runs").exists()
