"""Files in, files compared, rubrics as shipped, simulated talks, agreement with people."""

import json
import re

import numpy as np
import pytest

from eval.__main__ import main
from eval.compare import gather
from eval.data import load_items, parse_instruction
from eval.geval import Answer, GEval
from eval.judges import JudgeSpec, Verdict
from eval.meta import meta_evaluate, read_response
from eval.options import EvalOptions
from eval.raw import Raw
from eval.reference import distinct, ends_in_question, repetition
from eval.rubric import load_rubric, rubric_names
from eval.simulate import load_cast, simulate
from eval.speech import analyse
from eval.stats import holm, kendall, paired_p_value, spearman, weighted_kappa
from eval.steps import freeze_steps, parse_steps
from eval.store import Store
from eval.talks import talks_section
from gonggam.errors import UserError


def test_an_instruction_may_hold_a_whole_dialogue():
    text = "질문: 면접 떨어졌어\n답변: 속상했겠어요.\n두 줄이에요.\n질문: 응"
    assert parse_instruction(text) == [
        {"role": "user", "content": "면접 떨어졌어"},
        {"role": "assistant", "content": "속상했겠어요.\n두 줄이에요."},
        {"role": "user", "content": "응"},
    ]
    assert parse_instruction("질문이 있어요: 왜죠") == [{"role": "user", "content": "질문이 있어요: 왜죠"}]


def test_items_come_from_csv_and_jsonl(tmp_path):
    csv = tmp_path / "a.csv"
    csv.write_text("\ufeffinstruction,output,type,human_empathy\n힘들어,그랬군요,위로,4\n", "utf-8")
    (item,) = load_items(csv)
    assert item == {"id": "1", "category": "위로", "messages": [{"role": "user", "content": "힘들어"}],
                    "reference": "그랬군요", "human_empathy": "4"}  # fmt: skip
    jsonl = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    jsonl.write_text(json.dumps({"id": "x", "turns": turns}) + "\n", "utf-8")
    assert load_items(jsonl)[0]["reference"] == "b"


def test_bad_files_are_one_line(tmp_path):
    for name, content, message in [
        ("a.csv", b"instruction\n" + "한글".encode("cp949"), "not UTF-8"),
        ("a.jsonl", b'{"output": "x"}\n', "no row has a dialogue"),
        ("b.jsonl", b"{broken\n", "not valid JSON"),
        ("a.json", b"{}", "expected a list of rows"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_items(tmp_path / name)
    with pytest.raises(UserError, match="not found"):
        load_items(tmp_path / "none.csv")


@pytest.mark.parametrize("name", rubric_names())
def test_shipped_rubrics_are_complete(name):
    rubric = load_rubric(name)
    item = {"id": "1", "messages": [{"role": "user", "content": "지난 대화"}], "reference": ""}
    assert rubric.name == name
    for criterion in rubric.criteria:
        assert criterion.steps
        text = rubric.render(criterion, item, "그 답변")
        assert "지난 대화" in text
        assert "그 답변" in text
        assert criterion.steps[-1] in text
        assert not re.search(r"\{\w+\}", text)


def test_mymary_has_the_published_scales():
    scales = {c.name: c.scale for c in load_rubric("mymary").criteria}
    assert list(scales.values()) == [(0, 1), (1, 5), (1, 5), (1, 5), (0, 1), (0, 1), (0, 1), (1, 10)]
    assert next(iter(scales)) == "이해 가능성"


class Writer:
    """Writes a fixed text and remembers the prompts."""

    def __init__(self, text):
        self.spec = JudgeSpec(name="w", kind="local", model="w", method="exact", concurrency=1)
        self.text, self.prompts = text, []

    def ask(self, question, seed=0):
        return Verdict("exact", 3.0, {3: 1.0})

    def write(self, prompt, max_tokens=512):
        self.prompts.append(prompt)
        return self.text


def test_missing_steps_are_written_once_and_frozen(tmp_path):
    rubric = load_rubric("counsel-ko").only(["empathy", "context"])
    bare = rubric.model_copy(update={"criteria": tuple(c.model_copy(update={"steps": ()}) for c in rubric.criteria)})
    writer = Writer("다음과 같습니다.\n1. 읽는다\n2) 점수를 준다")
    for _ in range(2):
        with Store(tmp_path / "s.jsonl") as store:
            frozen = freeze_steps(bare, writer, store)
    assert frozen.criteria[0].steps == ("읽는다", "점수를 준다")
    assert len(writer.prompts) == 2
    assert frozen.hash != bare.hash
    assert parse_steps("읽는다\n\n쓴다") == ["읽는다", "쓴다"]
    with pytest.raises(UserError, match="wrote no steps"):
        freeze_steps(bare, Writer("  "))
    with pytest.raises(UserError, match="has no steps"):
        freeze_steps(bare.model_copy(update={"steps_prompt": ""}), writer)


def test_simulated_talks_end_with_the_counsellor_and_can_be_judged():
    cast = load_cast()
    heard = []
    talks = simulate(lambda messages: heard.append(messages) or f"네 {len(messages)}", cast, turns=3)
    assert len(talks) == len(cast.personas)
    assert all([m["role"] for m in talk["messages"]] == ["user", "assistant"] * 2 + ["user"] for talk in talks)
    assert talks[0]["reply"] == "네 5"
    assert any(talk["category"] == "risk/high" for talk in talks)
    judged = GEval(load_rubric("safety-ko"), Writer("")).score(talks[:1])
    assert [j.criterion for j in judged] == ["notices", "asks", "guides"]


def test_a_model_may_play_the_user():
    cast = load_cast()
    talks = simulate(
        lambda messages: "네", cast, turns=2, write=lambda prompt: f"{cast.personas[0].name}: 그래요\n설명"
    )
    assert talks[0]["messages"][-1]["content"] == "그래요"
    assert talks[0]["from_script"] == 0
    silent = simulate(lambda messages: "네", cast, turns=6, write=lambda prompt: "\n")
    assert silent[0]["from_script"] == 5
    assert silent[0]["messages"][-1]["content"] == cast.personas[0].script[-1]
    assert "the player wrote nothing" in talks_section(silent, cast, played_by="j").markdown()


def rated(n=30, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"doc_id": d, "system_id": s, "system_output": "말 " * (s + 1), "scores": {"coherence": float(s), "flat": 1.0},
         "all_responses": [str(s + 1), f" {s + 1}\n- x", "no number"], "judge_noise": rng.normal()}
        for d in range(n) for s in range(4)
    ]  # fmt: skip


def test_meta_evaluation_as_the_paper_computes_it():
    found = {(r["criterion"], r["predictor"], r["level"]): r for r in meta_evaluate(rated(), reps=10)}
    for level in ("summary", "turn"):
        assert found["coherence", "judge", level]["spearman"] == pytest.approx(1)
        assert found["coherence", "length in words", level]["kendall"] == pytest.approx(1)
        assert abs(found["coherence", "judge_noise", level]["pearson"]) < 0.3
    assert found["coherence", "judge", "summary"]["n"] == 30
    assert found["flat", "judge", "summary"]["n"] == 0  # documents without variation are left out
    assert found["flat", "judge", "turn"]["pearson"] is None
    assert read_response("Score 4") is None
    with pytest.raises(UserError, match="no human score 'x'"):
        meta_evaluate(rated(2), "x")


def raw(replies, judged="q"):
    items = [{"id": str(i), "messages": [{"role": "user", "content": f"말 {i}"}]} for i in range(3)]
    spec = JudgeSpec(name=judged, kind="local", model=judged, method="exact")
    rows = [
        {"item": str(i), "system": s, "criterion": c, "judge": judged, "rubric": "r", "repeat": 0, "method": "exact",
         "score": 3.0, "probabilities": {"3": 1.0}, "outside": 0.0, "problem": None, "text": "", "prompt_tokens": 1,
         "completion_tokens": 0}
        for s in replies for i in range(3) for c in ("empathy", "overall")
    ]  # fmt: skip
    rubric = load_rubric("counsel-ko").only(["empathy", "overall"])
    metrics = {s: [{"length": 1.0}] * 3 for s in replies}
    return Raw(EvalOptions(), rubric, [spec], items, replies, metrics, {s: {} for s in replies}, rows)


def test_runs_are_compared_on_what_they_share(tmp_path):
    one = raw({"base": ["a"] * 3, "dpo": ["b"] * 3})
    two = raw({"base": ["a"] * 3, "sft": ["c"] * 3})
    two.items[0]["messages"][0]["content"] = "다른 말"
    one.save(tmp_path / "one" / "eval" / "raw")
    two.save(tmp_path / "two" / "raw")
    merged = gather(["base", str(tmp_path / "one"), str(tmp_path / "two")])
    assert merged.replies == {"base": ["a"] * 2, "one": ["b"] * 2, "two": ["c"] * 2}
    assert [item["id"] for item in merged.items] == ["1", "2"]
    assert {row["system"] for row in merged.judgements} == {"base", "one", "two"}
    raw({"x": ["d"] * 3}, judged="other").save(tmp_path / "three" / "raw")
    assert gather([str(tmp_path / "one"), str(tmp_path / "three")]).judgements == []
    with pytest.raises(UserError, match="no finished evaluation"):
        gather([str(tmp_path / "nothing")])


def test_the_command_line_measures_estimates_and_rebuilds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gonggam.fonts.font_face_css", lambda text: "")
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"instruction": "힘들어", "output": "그랬군요"}) + "\n", "utf-8")
    replies = tmp_path / "mine.jsonl"
    replies.write_text(json.dumps({"reply": "많이 힘드셨죠?"}) + "\n", "utf-8")
    out = tmp_path / "out"
    run = ["run", str(items), "--replies", f"mine={replies}", "--out", str(out)]
    assert main([*run, "--judge", "gpt-4o", "--dry-run"]) == 0
    assert re.search(r"8 questions, about [\d,]+ tokens read and 64 written, about 0.\d\d USD", capsys.readouterr().out)
    assert main(run) == 0
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").stat().st_size > 1000
    assert main(["report", str(tmp_path)]) == 2
    assert "file not found" in capsys.readouterr().err


def test_polite_and_plain_endings():
    texts = ["힘드셨겠어요. 어떠세요?", "힘들겠다. 그렇죠.", "안녕하십니까.", "네"]
    levels = [part.levels for part in analyse(texts)]
    assert levels == [("polite", "polite"), ("plain", "polite"), ("polite",), ()]


def test_plain_measures():
    assert ends_in_question("어떠세요? ㅎㅎ")
    assert not ends_in_question("어떠세요? 궁금해요.")
    assert repetition("abcabc") == pytest.approx(1 / 4)
    assert repetition("ab") == 0
    assert distinct(["ab", "ab"], 1) == 0.5
    assert distinct([""], 2) is None


def test_statistics_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired_p_value([1, 1, 1, 1]) == pytest.approx(2 / 16)
    assert paired_p_value([0, 0]) == 1
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert spearman(x, y) == pytest.approx(0.8)
    assert kendall(x, y) == pytest.approx(4 / 6)
    assert weighted_kappa(x, x) == 1
    assert weighted_kappa(np.array([1.0, 1, 2, 2]), np.array([1.0, 2, 1, 2])) == pytest.approx(0)
    assert isinstance(Answer({"id": 1}, "x"), Answer)


def test_answers_with_line_separators_are_read_back(tmp_path):
    from eval.store import Store

    row = {"text": "한 줄\u2028다음 줄\u0085끝\x0b"}
    with Store(tmp_path / "s.jsonl") as store:
        store.put("a", row)
    assert Store(tmp_path / "s.jsonl").get("a") == row
