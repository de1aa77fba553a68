"""Leak audit, pair audit, privacy figures, and the teacher that is never paid twice."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import httpx
import pytest

from data_prep import Conversation, Turn, prepare
from data_prep.audit import audit
from data_prep.pair_audit import audit_pairs
from data_prep.preferences import (
    by_split,
    from_pairs,
    from_samples,
    from_teacher,
    load_prompts,
    teacher_judge,
    teacher_requests,
)
from data_prep.privacy import Privacy, mask
from data_prep.teacher import Teacher, TeacherOptions
from gonggam.errors import UserError
from gonggam.files import read_jsonl, write_jsonl

ROOT = Path(__file__).parent.parent


def rows(*talks: list[str]) -> list[dict]:
    return [
        {"messages": [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(talk)]}
        for talk in talks
    ]


# --- leaks


def test_shared_beginnings_are_leaks_and_shared_openers_are_not(tmp_path):
    train = rows(["안녕하세요", "반가워요", "면접에 떨어졌어요", "속상하시겠어요"], ["심심해요", "그럴 때가 있죠"])
    test = rows(["안녕 하세요!", "반가워요.", "친구와 싸웠어요", "무슨 일이었나요?"], ["심심해요", "요즘 어떠세요?"])
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", test)
    found = audit([tmp_path / "train.jsonl", tmp_path / "test.jsonl"])
    assert not found.ok
    assert found.leaks == 1
    assert found.examples[0]["turns"] == 2
    assert found.openers == {"심심해요": 1}


def test_near_duplicates_across_splits_are_counted(tmp_path):
    text = "오늘 회사에서 상사에게 크게 혼이 나서 하루 종일 마음이 무겁고 아무것도 손에 잡히지 않았어요"
    write_jsonl(tmp_path / "train.jsonl", rows([text, "많이 힘드셨겠어요. 어떤 말이 가장 아팠나요?"]))
    write_jsonl(tmp_path / "test.jsonl", rows(["아 " + text, "많이 힘드셨겠어요. 어떤 말이 가장 아팠나요?"]))
    found = audit([tmp_path / "train.jsonl", tmp_path / "test.jsonl"])
    assert (found.leaks, found.near) == (0, 1)


def test_prepared_data_has_no_leaks_and_a_planted_one_is_found(tmp_path):
    prepare([{"reader": "counsel_ko", "rows": 150}], tmp_path / "out")
    assert audit([tmp_path / "out"]).ok
    assert not audit([tmp_path / "out"], apart=True, near=None).ok
    test = list(read_jsonl(tmp_path / "out/messages/test.jsonl"))
    write_jsonl(tmp_path / "eval.jsonl", test[:1])
    assert audit([tmp_path / "out", tmp_path / "eval.jsonl"], near=None).ok
    assert (
        audit(
            [f"train={tmp_path}/out/messages/train.jsonl", f"eval={tmp_path}/out/messages/train.jsonl"], near=None
        ).leaks
        > 100
    )


def test_pairs_may_share_beginnings_with_train_only_where_they_are_of_train(tmp_path):
    talk = ["고민이 하나 있어요", "말씀해 주세요"]
    write_jsonl(tmp_path / "train.jsonl", rows(talk))
    write_jsonl(tmp_path / "pairs" / "train.jsonl", [pair(*talk, "싫어요")])
    train, pairs = tmp_path / "train.jsonl", tmp_path / "pairs" / "train.jsonl"
    found = audit([train, tmp_path / "pairs"])
    assert (found.ok, found.preference, found.files[1]["role"]) == (True, 1, "train pairs")
    assert audit([train, pairs], apart=True).leaks == 1
    for name in (f"preference={pairs}", f"test={pairs}", f"validation={pairs}"):
        found = audit([train, name])
        assert (found.leaks, found.examples[0]["turns"]) == (1, 2)
    found = audit([pairs, f"eval={train}"])  # what DPO is trained on must not be measured by
    assert found.leaks == 1


def test_a_file_without_a_role_is_asked_about(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", rows(["가", "나"]))
    with pytest.raises(UserError, match="train="):
        audit([tmp_path / "data.jsonl"])


# --- pairs


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pair_audit_names_what_is_wrong(tmp_path):
    long = "마음이 많이 무거우셨겠어요. 어떤 점이 가장 힘드셨나요? 천천히 말씀해 주세요."
    made = [pair(f"{i}번째 고민이 있어요", long + str(i), f"네 {i}") for i in range(20)]
    made += [pair("같은 답", "그래요", "그래요."), pair("모순", "가", "나"), pair("모순", "나", "가"), made[0]]
    made += [{"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}]
    write_jsonl(tmp_path / "pairs.jsonl", made)
    figures, findings = audit_pairs(tmp_path / "pairs.jsonl", max_length=30)
    assert figures["pairs"] == 24
    assert figures["chosen_longer"] > 0.8
    said = {finding.what.split(" (")[0].split(" in ")[0]: (finding.level, finding.count) for finding in findings}
    assert said["chosen and rejected are the same"] == ("error", 1)
    assert said["the same two replies judged both ways"] == ("error", 2)
    assert said["pairs stored twice"] == ("warning", 1)
    assert (
        said["length alone tells chosen from rejected"][0] == "error" if figures["chosen_longer"] >= 0.85 else "warning"
    )
    assert any("longer than 30 tokens" in finding.what for finding in findings)
    assert findings[0].level == "error"


def test_pair_audit_looks_at_every_rejected_reply_of_a_row(tmp_path):
    worse = ["괜찮아요", "그래요.", "정말 길게 이어지는 대답이라서 분명히 잘리고 말 거예요"]
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "힘들어요", "chosen": "그래요", "rejected": worse}])
    figures, findings = audit_pairs(tmp_path / "pairs.jsonl", max_length=12)
    assert (figures["pairs"], figures["chosen_longer"]) == (3, 0.0)
    said = {finding.what.split(",")[0]: finding.count for finding in findings}
    assert said["chosen and rejected are the same"] == 1, "of which the reply stands second"
    assert said["pairs longer than 12 tokens"] == 1, "of which the reply stands last"


def test_pairs_that_leak_into_evaluation(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [pair("고민이 하나 있어요", "말씀해 주세요", "싫어요")])
    write_jsonl(tmp_path / "eval.jsonl", rows(["고민이 하나 있어요", "말씀해 주세요"]))
    _, findings = audit_pairs(tmp_path / "pairs.jsonl", evaluation=[tmp_path / "eval.jsonl"])
    assert any("evaluation" in finding.what and finding.level == "error" for finding in findings)


# --- privacy


def bench():
    spec = importlib.util.spec_from_file_location("bench_privacy", ROOT / "bench" / "privacy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_personal_data_is_found_on_the_labelled_file():
    measured = bench()
    assert sum(1 for _ in measured.labelled()) >= 300
    right, found, wanted = measured.measure(measured.ours)["total"]
    assert right / found >= 0.95
    assert right / wanted >= 0.95


def test_masks_say_what_stood_there():
    assert mask("제 이름은 김민지, 번호는 010-1234-5678") == "제 이름은 [이름], 번호는 [전화번호]"
    assert mask("힘들면 109나 1577-0199에 전화하세요") == "힘들면 109나 1577-0199에 전화하세요"


def test_a_name_once_said_is_masked_where_it_is_called():
    turns = (Turn("user", "제 이름은 김민지예요"), Turn("assistant", "민지님, 반가워요. 김민지 씨라고 할까요?"))
    masked = Privacy("mask")(Conversation("", turns, "s", rejected=("민지야 그만해",)))
    assert masked.turns[1].content.startswith("[이름]님")
    assert masked.rejected == ("[이름]야 그만해",)
    assert Privacy("drop")(Conversation("", turns, "s")) == "personal data"
    assert Privacy("report")(Conversation("", turns, "s")).turns == turns


# --- the teacher


class Endpoint:
    """An OpenAI-compatible server that fails as told and counts what it answers."""

    def __init__(self, failures: int = 0, status: int = 200, die_after: int | None = None) -> None:
        self.failures, self.status, self.die_after = failures, status, die_after
        self.answered, self.under_way, self.most = 0, 0, 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if self.failures:
            self.failures -= 1
            return httpx.Response(429, headers={"retry-after": "7"})
        if self.status != 200:
            return httpx.Response(self.status)
        if self.die_after is not None and self.answered >= self.die_after:
            raise RuntimeError("the process ends here")
        self.answered += 1
        body = json.loads(request.content)
        warm = "따뜻" in body["messages"][0]["content"]
        text = ("그 마음 알 것 같아요. " if warm else "잊으세요. ") + body["messages"][-1]["content"]
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}], "usage": usage})


def teacher(endpoint: Endpoint, cache: Path, waits: list[float] | None = None, **options) -> Teacher:
    async def sleep(seconds: float) -> None:
        (waits if waits is not None else []).append(seconds)
        await asyncio.sleep(0)

    options = {"base_url": "http://t/v1", "model": "m", "requests_per_minute": 1e9, **options}
    return Teacher(TeacherOptions(**options), cache, sleep=sleep, transport=httpx.MockTransport(endpoint))


@pytest.fixture
def talks() -> list[Conversation]:
    return [Conversation(f"c{i}", (Turn("user", f"{i}번 고민이에요"), Turn("assistant", "네")), "s") for i in range(6)]


def test_teacher_writes_both_replies_and_is_asked_once(tmp_path, talks):
    first = Endpoint(failures=3)
    waits: list[float] = []
    asked = teacher(first, tmp_path / "cache.jsonl", waits, concurrency=2, price_in=1e6, price_out=2e6)
    made = from_teacher(talks, asked, load_prompts())
    assert [row["id"] for row in made] == [f"c{i}" for i in range(6)]
    assert made[0]["chosen"][0]["content"].startswith("그 마음")
    assert made[0]["rejected"][0]["content"].startswith("잊으세요")
    assert (first.answered, asked.usage["requests"], first.most <= 2) == (12, 15, True)
    assert waits.count(7.0) == 3
    assert asked.cost() == 12 * (10 + 2 * 5)
    again = Endpoint()
    assert from_teacher(talks, teacher(again, tmp_path / "cache.jsonl"), load_prompts()) == made
    assert again.answered == 0


def test_a_run_that_dies_goes_on_where_it_was(tmp_path, talks):
    with pytest.raises(ExceptionGroup):
        from_teacher(talks, teacher(Endpoint(die_after=5), tmp_path / "c.jsonl", concurrency=1), load_prompts())
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    rest = Endpoint()
    assert len(from_teacher(talks, teacher(rest, tmp_path / "c.jsonl"), load_prompts())) == 6
    assert rest.answered == 12 - 5
    assert teacher(Endpoint(), tmp_path / "c.jsonl").plan(teacher_requests(talks, load_prompts()))["requests"] == 0


def test_dry_run_asks_nothing(tmp_path, talks):
    endpoint = Endpoint()
    plan = teacher(endpoint, tmp_path / "c.jsonl", price_in=1).plan(teacher_requests(talks, load_prompts()))
    assert plan["requests"] == 12
    assert plan["cost_at_most"] > 0
    assert endpoint.answered == 0


def test_rate_is_kept(tmp_path, talks):
    waits: list[float] = []
    teacher(Endpoint(), tmp_path / "c.jsonl", waits, requests_per_minute=30).ask_all(
        teacher_requests(talks, load_prompts())
    )
    assert max(waits) > 20


def test_a_refusal_stops_at_once_and_failures_leave_pairs_out(tmp_path, talks):
    with pytest.raises(UserError, match="401"):
        from_teacher(talks, teacher(Endpoint(status=401), tmp_path / "c.jsonl"), load_prompts())
    assert from_teacher(talks, teacher(Endpoint(status=503), tmp_path / "c.jsonl", retries=1), load_prompts()) == []


def test_rejected_from_the_policy_and_ranked_samples(tmp_path, talks):
    endpoint = Endpoint()
    made = from_teacher(talks, teacher(endpoint, tmp_path / "c"), load_prompts(), policy=lambda prompt: "모르겠어요")
    assert endpoint.answered == 6
    assert {row["rejected"][0]["content"] for row in made} == {"모르겠어요"}
    ranked = from_samples(
        talks,
        lambda prompt, n: ["짧아", "조금 길어요", "아주 길고 따뜻해요", ""][:n],
        lambda asked, progress: [len(reply) for _, reply in asked],
    )
    assert (ranked[0]["chosen"][0]["content"], ranked[0]["rejected"][0]["content"]) == ("아주 길고 따뜻해요", "짧아")
    assert from_samples(talks, lambda p, n: ["가", "나"], lambda asked, progress: [float("nan")] * len(asked)) == []


def test_samples_of_all_prompts_are_judged_side_by_side(tmp_path, talks):
    endpoint = Endpoint()
    judge = teacher_judge(teacher(endpoint, tmp_path / "c.jsonl", concurrency=5))
    seen = []
    from_samples(talks, lambda prompt, n: ["좋아요", "나빠요"], judge, n=2, progress=lambda *done: seen.append(done))
    assert (endpoint.answered, endpoint.most) == (12, 5)
    assert seen[5::12] == [(6, 6), (12, 12)]


def test_pairs_from_files(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [pair("고민이 있어요", "말씀해 주세요", "싫어요")])
    made = from_pairs(by_split(str(tmp_path / "p.jsonl"))["pairs"])
    assert made[0]["prompt"] == [{"role": "user", "content": "고민이 있어요"}]
    assert from_pairs(by_split(str(tmp_path / "p.jsonl"))["pairs"]) == made
