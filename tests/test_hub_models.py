"""The Korean models that recipes name: checkpoints in their file formats, random weights, trained for a step."""

import hub_standin
import pytest

from pipeline.model import load_tokenizer
from pipeline.prompt import encode

WELLNESS = "구분,유저,챗봇\n" + "".join(
    f"{label},{often} {said} {number}번째예요,{label} 이야기군요\n"
    for label, said in (("수면", "잠이 안 와요"), ("직장", "회사에 가기 싫어요"))
    for often in ("요즘", "정말")
    for number in range(10)
)
CHAT = "Q,A,label\n" + "".join(f"{n}번째로 힘들어요,{n}번째도 응원해요,{n % 3}\n" for n in range(30))
PREPARE = """\
name: mini
model: {{base: {base}{template}}}
prepare:
  sources: [{{reader: {reader}, path: {table}}}]
  split: {{validation: 0.2, test: 0.2}}
  deduplicate: {{exact: false, near: null}}
"""
ENCODERS = {
    "koelectra": hub_standin.koelectra,
    "kcelectra": lambda folder: hub_standin.koelectra(folder, "ElectraTokenizer"),
    "klue-roberta": hub_standin.klue_roberta,
    "kobert": hub_standin.kobert,
}


def done(folder, reader, table, stages, base, template=""):
    """A finished run on ``base``."""
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    (folder / "table.csv").write_text(table, encoding="utf-8")
    text = PREPARE.format(base=base, template=template, reader=reader, table=folder / "table.csv") + stages
    (folder / "mini.yaml").write_text(text, encoding="utf-8")
    run = Run(folder / "run")
    execute(load_recipe(folder / "mini.yaml"), run, ["test"], only=None, start=None, force=False)
    return run


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_classify_and_answer(name, tmp_path):
    from pipeline import Counselor
    from pipeline.chat.categories import CategoryClassifier

    base = ENCODERS[name](tmp_path / name)
    said = "오늘은 정말 힘든 하루였어요."
    tokenizer = load_tokenizer(str(base))
    ids = tokenizer(said)["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == said
    assert tokenizer(["힘든", said], padding=True)["input_ids"][0][-1] == tokenizer.pad_token_id
    run = done(tmp_path, "wellness", WELLNESS, "classify: {max_steps: 1, max_length: 32}\n", base)
    saved = run.stage("classify") / "model"
    assert CategoryClassifier.load(saved).tokenizer(said)["input_ids"] == ids
    bot = Counselor.load(run.folder, min_confidence=0.0)
    assert bot.reply(said).category in ("수면", "직장")
    bot.close()


def test_kogpt2_reads_korean_and_learns_its_own_end(tmp_path):
    base = hub_standin.kogpt2(tmp_path / "kogpt2")
    sft = "sft: {lora: null, max_steps: 1, max_length: 64, per_device_train_batch_size: 2}\n"
    chat = 'chat: {system: none, sentiment: {일상: "0", 이별: "1", 사랑: "2"}, recent_turns: 0}\n'
    run = done(tmp_path, "chatbot_ko", CHAT, sft + chat, base, ", chat_template: kogpt2-sentiment")
    tokenizer = load_tokenizer(str(run.stage("sft") / "model"))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")
    assert len(tokenizer) == len(load_tokenizer(str(base)))
    asked = [{"role": "user", "content": "오늘은 힘든 하루였어요.", "sentiment": "1"}]
    ids = encode(tokenizer, asked)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert (pieces[0], pieces[-1]) == ("<usr>", "<sys>")
    assert pieces.count("<unused1>") == 1
    assert tokenizer.decode(ids) == load_tokenizer(str(base)).decode(ids)
    assert "힘든 하루였어요." in tokenizer.decode(ids)


def test_kobart_converts_styles(tmp_path):
    from pipeline.chat.personas import load_converter, persona

    base = hub_standin.kobart(tmp_path / "kobart")
    tokenizer = load_tokenizer(str(base))
    assert tokenizer.decode(tokenizer("오늘은 힘든 하루였어요.")["input_ids"]) == "오늘은 힘든 하루였어요."
    rows = "".join(f"오늘은 힘든 하루였어요 {n}\t선비\t오늘은 힘든 하루였소 {n}\n" for n in range(4))
    (tmp_path / "styles.tsv").write_text("base\tstyle\tstyled\n" + rows, encoding="utf-8")
    style = f"style: {{files: [{tmp_path}/styles.tsv], max_steps: 1, held_out: 0.3}}\n"
    run = done(tmp_path, "wellness", WELLNESS, style, base)
    measured = run.manifest("style")["metrics"]["measures"]
    assert [row["chrf"] for row in measured][-1] == 100
    assert "style accuracy" not in measured[0]  # there is but one style to tell
    assert load_converter(str(run.stage("style") / "model"))("오늘은 힘든 하루였어요.", persona("선비"))
