"""A merged model says what base and adapter say, or there is none."""

import os

import pytest
import torch
import yaml
from typer.testing import CliRunner

from gonggam.errors import UserError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a random base and a random adapter."""
    from peft import LoraConfig, get_peft_model

    from pipeline.run import Run
    from pipeline.train.tiny import build_tokenizer

    home = tmp_path_factory.mktemp("merge")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(iter(["오늘은 정말 힘든 하루였어요."]), 400, 256)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    run = Run(home / "runs" / "mine")
    run.begin("sft", "x")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(run.stage("sft") / "adapter")
    metrics = {"rows": 12, "tokens": 3456, "validation_perplexity": {"before": 90.0, "after": 42.5}}
    run.finish("sft", "x", seconds=1.0, metrics=metrics)
    recipe = {
        "name": "mine",
        "model": {"base": str(home / "base"), "dtype": "float32"},
        "prepare": {"sources": [{"reader": "counsel_ko"}]},
        "sft": {"lora": {"r": 4, "target_modules": "all-linear"}},
    }
    (run.folder / "recipe.lock.yaml").write_text(yaml.safe_dump(recipe))
    return run


def invoke(*arguments):
    from pipeline.cli import app

    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def test_the_merged_folder_answers_like_base_and_adapter(trained, tmp_path):
    from peft import PeftModel

    result = invoke(trained.folder, "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    base = transformers.AutoModelForCausalLM.from_pretrained(trained.folder.parents[1] / "base")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        plain = base(ids).logits
        wanted = PeftModel.from_pretrained(base, trained.stage("sft") / "adapter")(ids).logits
        found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_the_card_tells_data_recipe_metrics_and_danger(trained, tmp_path):
    assert invoke(trained.folder, "--out", tmp_path / "merged").exit_code == 0
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["language"] == "ko"
    for expected in ("counsel_ko", "3,456 tokens", "target_modules: all-linear", "42.50", "109", "no medical device"):
        assert expected in body


def test_a_merge_that_says_something_else_is_refused(trained, tmp_path):
    result = invoke(trained.folder, "--out", tmp_path / "merged", "--tolerance", "0")
    assert isinstance(result.exception, UserError)
    assert "e-0" in str(result.exception), "names the number"
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_done_is_said_before_the_work(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    for arguments, expected in (
        (("--out", tmp_path / "merged", "--gguf"), "LLAMA_CPP"),
        (("--out", tmp_path / "merged", "--stage", "dpo"), "there is: sft"),
        (("--out", tmp_path / "full"), "is taken"),
    ):
        result = invoke(trained.folder, *arguments)
        assert isinstance(result.exception, UserError)
        assert expected in str(result.exception)
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


def test_gguf_is_made_by_the_converter_that_is_found(trained, tmp_path, monkeypatch):
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("import sys\nopen(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'GGUF')\n")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setenv("PATH", os.devnull)
    result = invoke(trained.folder, "--out", tmp_path / "merged", "--gguf")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "merged" / "merged-f16.gguf").read_bytes() == b"GGUF"


def test_an_upload_by_recipe_takes_the_card_along_and_is_refused_before_the_work(trained, tmp_path, monkeypatch):
    import huggingface_hub

    sent = {}

    class Hub:
        def create_repo(self, repository, **given):
            return sent.update(repository=repository, **given) or f"https://hub/{repository}"

        def upload_folder(self, *, repo_id, folder_path):
            sent["files"] = {path.name for path in folder_path.iterdir()}

    lock = trained.folder / "recipe.lock.yaml"
    plain = lock.read_text()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    lock.write_text(plain + "merge: {push_to_hub: minji/warm, private: false}\n")
    try:
        refused = invoke(trained.folder, "--out", tmp_path / "merged")
        assert "hf auth login" in str(refused.exception)
        assert not (tmp_path / "merged").exists()
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
        monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
        result = invoke(trained.folder, "--out", tmp_path / "merged")
    finally:
        lock.write_text(plain)
    assert "https://hub/minji/warm" in result.output
    assert sent["private"] is False
    assert {"README.md", "model.safetensors", "merge.json"} <= sent["files"]
