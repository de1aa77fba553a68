"""Judges: exact probabilities against brute force, and an API that fails in every way it can."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from eval_standin import StandIn, completion

from eval.geval import GEval
from eval.http_judge import HttpJudge
from eval.judges import JudgeSpec, Question, judge_names, load_judge
from eval.rubric import Criterion, Rubric, load_rubric
from eval.store import Store
from gonggam.errors import UserError

HERE = Path(__file__).parent
QUESTION = Question("평가해 주세요", "- 공감:", range(1, 6))
FOUR = completion("4", [("4", {"4": 0.5, "5": 0.25, "3": 0.2})])


def http_judge(url, **fields):
    slept = []
    spec = JudgeSpec(**{"name": "standin", "model": "m", "url": url, "api_key_env": "", "retries": 2, **fields})
    judge = HttpJudge(spec, sleep=slept.append)
    judge.slept = slept
    return judge


def rubric(steps=("본다",), **fields):
    criterion = {"key": "empathy", "name": "공감", "definition": "공감하는가", "scale": (1, 5), "steps": steps}
    return Rubric(
        **{"name": "r", "task": "t", "prompt": "{history}\n{reply}\n{steps}", "criteria": [criterion], **fields}
    )


def items(n):
    return [
        {"id": str(i), "messages": [{"role": "user", "content": f"힘들어 {i}"}], "reply": "그랬군요"} for i in range(n)
    ]


@pytest.fixture(scope="module")
def tiny():
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(["공감 점수 10 10 10 1 2 10점 공감합니다"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.5, **size)
    return LlamaForCausalLM(config).eval(), tokenizer


def test_the_local_judge_computes_what_brute_force_computes(tiny, monkeypatch):
    import torch

    from eval import scoring
    from eval.local_judge import LocalJudge

    monkeypatch.setattr(scoring, "NEGLIGIBLE", 0.0)
    model, tokenizer = tiny
    judge = LocalJudge(model, tokenizer, "tiny")
    judge.ask(Question("다른 질문", "- 공감:", range(1, 11)))  # its cache must not leak into the next question
    verdict = judge.ask(Question("평가해 주세요", "- 공감:", range(1, 11)))

    texts = [tokenizer.decode([i]) if i not in tokenizer.all_special_ids else "" for i in range(len(tokenizer))]
    prompt = tokenizer("평가해 주세요\n\n- 공감:")["input_ids"]

    def probability(path):
        with torch.no_grad():
            return model(torch.tensor([prompt + path])).logits[0, -1].double().softmax(-1)

    def spellings(written, path, mass):
        row = probability(path)
        if written.strip(" ").isdigit():
            yield (
                int(written),
                mass * float(sum(p for t, p in zip(texts, row, strict=True) if t[:1].isdigit() is False)),
            )
        for token, text in enumerate(texts):
            joined = (written + text).lstrip(" ")
            blank = not text.strip(" ") and text and not path
            if blank or (text and joined in {str(s)[:n] for s in range(1, 11) for n in (1, 2)}):
                if written and text.startswith(" "):
                    continue
                yield from spellings(joined, [*path, token], mass * float(row[token]))

    found = dict.fromkeys(range(1, 11), 0.0)
    for score, mass in spellings("", [], 1.0):
        found[score] += mass
    assert verdict.outside == pytest.approx(1 - sum(found.values()), abs=1e-5)
    assert verdict.score == pytest.approx(sum(s * p for s, p in found.items()) / sum(found.values()), rel=1e-4)
    assert verdict.method == "exact"


def test_a_retrained_model_is_another_judge(tiny):
    import torch

    from eval.local_judge import LocalJudge

    model, tokenizer = tiny
    before = LocalJudge(model, tokenizer, "m").spec.identity
    assert LocalJudge(model, tokenizer, "m").spec.identity == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert LocalJudge(model, tokenizer, "m").spec.identity != before


def test_a_prompt_beyond_the_window_is_missing_not_cut(tiny):
    from eval.local_judge import LocalJudge

    verdict = LocalJudge(*tiny).ask(Question("가" * 500, "- 공감:", range(1, 6)))
    assert (verdict.score, verdict.problem) == (None, "prompt too long")


def test_an_http_judge_weighs_the_log_probabilities():
    with StandIn(lambda body, _: FOUR) as server:
        verdict = http_judge(server.url).ask(QUESTION)
    assert verdict.score == pytest.approx((4 * 0.5 + 5 * 0.25 + 3 * 0.2) / 0.95)
    assert verdict.outside == pytest.approx(0.05)
    assert (verdict.method, verdict.prompt_tokens) == ("logprobs", 100)
    assert server.requests[0]["logprobs"] is True
    assert server.requests[0]["messages"][0]["content"].endswith("- 공감:")


def test_samples_are_counted_and_unreadable_ones_reported():
    answer = completion("4")
    answer["choices"] = [completion(t)["choices"][0] for t in ("4", "5", "5", "모르겠어요")]
    with StandIn(lambda body, _: answer) as server:
        verdict = http_judge(server.url, method="samples", samples=4).ask(QUESTION)
    assert verdict.score == pytest.approx(14 / 3)
    assert verdict.outside == pytest.approx(0.25)
    assert (verdict.method, server.requests[0]["n"]) == ("samples", 4)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (completion("공감이 잘 되어 있습니다"), "no score"),
        (completion("5점 만점에 4점"), "several scores"),
        (completion("4"), "no logprobs"),
        (completion("평가할 수 없어요", finish_reason="content_filter"), "refused"),
        (completion("4", [("좋", {"좋": 0.9})]), "no score"),
        (completion(""), "no score"),
        (b"{not json", "malformed"),
        ({"choices": []}, "malformed"),
        ({"error": "x"}, "malformed"),
        (500, "http 500"),
        (429, "http 429"),
        (None, "connection"),
    ],
)
def test_a_judgement_that_fails_is_missing_and_says_why(answer, problem):
    with StandIn(lambda body, _: answer) as server:
        verdict = http_judge(server.url).ask(QUESTION)
    assert (verdict.score, verdict.problem) == (None, problem)


def test_a_server_that_is_not_there_is_told_of_at_once():
    with StandIn(lambda body, _: FOUR) as server:
        pass
    judge = http_judge(server.url, retries=5)
    with pytest.raises(UserError, match="nobody answers for judge"):
        judge.ask(QUESTION)
    assert not judge.slept


def test_a_server_that_never_answers_times_out():
    hang = threading.Event()
    with StandIn(lambda body, _: FOUR, before=lambda: hang.wait(5)) as server:
        verdict = http_judge(server.url, timeout=0.1, retries=0).ask(QUESTION)
        hang.set()
    assert verdict.problem == "timeout"


def test_retries_are_patient_and_end_in_a_score():
    script = {1: 500, 2: 429, 3: None, 4: FOUR}
    with StandIn(lambda body, n: script[n]) as server:
        judge = http_judge(server.url, retries=3, backoff=1.0)
        verdict = judge.ask(QUESTION)
    assert verdict.score is not None
    assert 0.75 <= judge.slept[0] <= 1.25
    assert judge.slept[1] == 7  # as the server asked
    assert 3 <= judge.slept[2] <= 5


def test_requests_are_spaced_as_the_server_wants():
    with StandIn(lambda body, _: FOUR) as server:
        judge = http_judge(server.url, requests_per_minute=1)
        for _ in range(3):
            judge.ask(QUESTION)
    assert judge.slept == pytest.approx([60, 120], abs=5)  # nobody really slept, so the third waits twice as long


def test_what_would_fail_every_time_stops_at_once():
    with StandIn(lambda body, _: 401) as server, pytest.raises(UserError, match="check url, model and key"):
        http_judge(server.url).ask(QUESTION)
    assert len(server.requests) == 1


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="SOME_KEY"):
        HttpJudge(JudgeSpec(name="j", model="m", api_key_env="SOME_KEY"), environment={})


def test_nothing_is_paid_twice_and_failures_are_asked_again(tmp_path):
    with StandIn(lambda body, n: 500 if n == 1 else completion("prose") if n == 2 else FOUR) as server:
        for _ in range(2):
            with Store(tmp_path / "v.jsonl") as store:
                geval = GEval(rubric(), http_judge(server.url, retries=0, concurrency=1), store)
                found = geval.score(items(3))
    problems = [j.verdict.problem for j in found]
    assert len(server.requests) == 4  # three, then the 500 once more; the prose was paid for
    assert problems == [None, "no score", None]


def test_a_killed_run_goes_on_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "v.jsonl"
    with StandIn(lambda body, n: FOUR) as server:
        code = (
            "import os, sys\n"
            "from eval.geval import GEval\n"
            "from eval.store import Store\n"
            "import test_eval_judges as t\n"
            "judge = t.http_judge(sys.argv[1], concurrency=1)\n"
            "stop = lambda done, n: done == 3 and os.kill(os.getpid(), 9)\n"
            "GEval(t.rubric(), judge, Store(sys.argv[2])).score(t.items(6), stop)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}
        killed = subprocess.run([sys.executable, "-c", code, server.url, str(path)], check=False, env=environment)
        with path.open("a", encoding="utf-8") as file:
            file.write('{"key": "torn')
        with Store(path) as store:
            found = GEval(rubric(), http_judge(server.url), store).score(items(6))
    assert killed.returncode == -9
    assert len(server.requests) == 6
    assert all(j.verdict.score for j in found)
    assert len(path.read_text("utf-8").splitlines()) == 6


def test_the_cache_knows_everything_that_shapes_a_verdict():
    def spec(**fields):
        return JudgeSpec(**{"name": "a", "model": "m", **fields}).identity

    assert spec() == spec(name="b", concurrency=3, retries=0, timeout=1)
    assert len({spec(), spec(model="n"), spec(method="samples"), spec(top_logprobs=5), spec(extra_body={"x": 1})}) == 5


def test_judgements_come_in_order_however_fast_the_judge(tmp_path):
    seen = []
    with StandIn(lambda body, n: FOUR) as server:
        geval = GEval(rubric(), http_judge(server.url, concurrency=8))
        found = geval.score(items(20), lambda done, total: seen.append((done, total)))
    assert [j.item for j in found] == [str(i) for i in range(20)]
    assert seen == [(i, 20) for i in range(1, 21)]


def test_an_empty_reply_is_missing_and_not_asked_about():
    with StandIn(lambda body, n: FOUR) as server:
        found = GEval(rubric(), http_judge(server.url)).score([{**items(1)[0], "reply": "  "}])
    assert (found[0].verdict.score, found[0].verdict.problem) == (None, "empty reply")
    assert not server.requests


@pytest.mark.parametrize("name", judge_names())
def test_shipped_judges_load(name):
    assert load_judge(name).name == name


def test_a_rubric_is_checked_whole(tmp_path):
    path = tmp_path / "r.yaml"
    criterion = {"key": "e", "name": "공감", "definition": "d", "scale": [1, 5]}
    good = {"name": "r", "task": "t", "prompt": "{reply}", "criteria": [criterion]}

    def load(**change):
        path.write_text(json.dumps({**good, **change}), "utf-8")
        return load_rubric(path)

    assert load().criteria[0].scores == (1, 2, 3, 4, 5)
    for change, message in [
        ({"criteria": [{**criterion, "anchors": {"1-3": "a", "3-5": "b"}}]}, "overlap at 3"),
        ({"criteria": [{**criterion, "scale": [5, 1]}]}, "must rise"),
        ({"criteria": [criterion, criterion]}, "defined twice"),
        ({"prompt": "{reply} {nothing}"}, "unknown field {nothing}"),
        ({"prompt": "no reply"}, "does not show"),
        ({"overall": "x"}, "no criterion"),
        ({"extra": 1}, "extra"),
    ]:
        with pytest.raises(UserError, match=message):
            load(**change)
    with pytest.raises(UserError, match="or one of: counsel-ko"):
        load_rubric("nothing-like-it")


def test_rubric_hash_changes_with_every_word():
    a = rubric()
    assert a.hash == rubric().hash
    assert a.hash != rubric(steps=("다르게 본다",)).hash
    assert isinstance(a.criteria[0], Criterion)
