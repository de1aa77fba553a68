"""Style conversion: trained for real on a few rows, measured on bases it never saw, used by the counsellor."""

import pytest

from gonggam.errors import UserError
from pipeline.chat.personas import persona, style_prompt

RECIPE = """\
name: mini
prepare:
  sources: [{reader: counsel_ko, rows: 20}]
  split: {validation: 0.2, test: 0.2}
tiny:
  {architecture: bart, vocab_size: 400, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
   intermediate_size: 16, max_position_embeddings: 300, max_steps: 1}
style: {max_steps: 2, held_out: 0.04, max_length: 280, swaps: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    folder = tmp_path_factory.mktemp("style")
    (folder / "mini.yaml").write_text(RECIPE, encoding="utf-8")
    state = Run(folder / "runs" / "mini")
    execute(load_recipe(folder / "mini.yaml"), state, ["test"], only=None, start=None, force=False)
    return state


def test_it_is_measured_on_bases_it_never_saw(run):
    from pipeline.train.style_rows import SAMPLE, read_styles, split_by_base

    metrics = run.manifest("style")["metrics"]
    assert (metrics["rows"], metrics["held_out"], len(metrics["styles"])) == (384, 16, 8)
    people = metrics["measures"][-1]
    assert people["text"] == "written by people"
    assert people["chrf"] == 100
    assert people["style accuracy"] > 0.7
    learn, held_out = split_by_base(read_styles([str(SAMPLE)]), 0.1)
    assert not {row.base for row in learn} & {row.base for row in held_out}
    page = (run.stage("style") / "report.md").read_text("utf-8")
    assert "Style accuracy" in page
    assert "| 할아버지 |" in page


def test_the_counsellor_converts_with_it_and_leaves_other_manners_alone(run):
    from pipeline.chat.personas import load_converter

    convert = load_converter(str(run.stage("style") / "model"))
    text = "많이 힘드셨겠어요."
    assert convert(text, persona("할아버지"))
    assert convert(text, persona("전문 상담사")) == text  # not among the styles it learnt
    assert convert(text * 60, persona("할아버지")) == text * 60  # longer than it can read
    assert style_prompt(text, "선비") == "선비 형식으로 변환:많이 힘드셨겠어요."


def test_labels_end_in_one_eos_whatever_the_tokenizer_writes():
    from pipeline.train.style import _ended

    assert _ended([5, 1], 1) == _ended([5], 1) == [5, 1]
    assert _ended([], 1) == [1]


def test_tables_that_are_none_are_told(tmp_path):
    from pipeline.train.style_rows import read_styles, split_by_base

    table = tmp_path / "styles.tsv"
    table.write_text("base\tstyle\n가\t선비\n", encoding="utf-8")
    with pytest.raises(UserError, match="no row with base, style and styled"):
        read_styles([str(table)])
    table.write_text("base\tstyle\tstyled\n가\t선비\t나\n", encoding="utf-8")
    with pytest.raises(UserError, match="nothing to measure on"):
        split_by_base(read_styles([str(table)]), 0.5)


def test_shared_words_are_swapped_on_both_sides_alike():
    from pipeline.train.style_rows import Styled, shared_stems, with_swaps

    row = Styled("과제가 몰려서 막막하시겠어요.", "선비", "과제가 몰리니 막막하시겠소.")
    assert shared_stems(row.base, row.styled) == ["막막하시", "과제가"]
    other = Styled("친구가 떠나서 쓸쓸하시겠어요.", "선비", "벗이 갔구려.")
    learnt = with_swaps([row, other], 20, seed=1)
    assert learnt[:2] == [row, other]
    assert len(learnt) == 42
    copies = [one for one in learnt[2::2] if one != row]
    assert copies
    for copy in copies:
        (what, how, felt), (said, so, sounds) = copy.base.split(), copy.styled.split()
        assert (what, felt.removesuffix("겠어요.")) == (said, sounds.removesuffix("겠소."))
        assert (how, so) == ("몰려서", "몰리니")
    assert all(one == other for one in learnt[3::2])  # nothing is shared, so nothing is swapped
    assert with_swaps([row, other], 20, seed=1) == learnt


def test_denoising_hides_spans_and_asks_the_whole_text_back(run):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from pipeline.model import load_tokenizer
    from pipeline.train.denoise import Denoising

    tokenizer = load_tokenizer(str(run.stage("tiny") / "model"))
    model = AutoModelForSeq2SeqLM.from_pretrained(run.stage("tiny") / "model")
    torch.manual_seed(3)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in ("오늘은 정말 힘든 하루였어요.", "네")]
    batch = Denoising(tokenizer, model)(rows)
    for row, hidden, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert [i for i in labels if i != -100] == row["input_ids"]
        assert (hidden[0], row["input_ids"][0]) == (tokenizer.bos_token_id, tokenizer.bos_token_id)
        left = [i for i in hidden if i not in (tokenizer.mask_token_id, tokenizer.pad_token_id)]
        whole = iter(row["input_ids"])
        assert all(i in whole for i in left)  # what is not hidden keeps its order
    assert tokenizer.mask_token_id in batch["input_ids"]
