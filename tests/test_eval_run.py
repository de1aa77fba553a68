"""Whole evaluations with synthetic judges whose bias is known: the report must find it."""

import json
import math
import random
import subprocess
import sys

import pytest
from eval_standin import StandIn, completion

from eval import EvalOptions, evaluate, rebuild
from eval.collect import collect
from eval.judges import JudgeSpec, Verdict
from eval.raw import Raw
from eval.report import report_page, trust_note, verdicts
from eval.run import report_from
from eval.sheets import write_sheets
from eval.summary import summarise
from gonggam.errors import UserError
from gonggam.page import Section

SMALL = {"bootstrap": 200, "criteria": ["empathy", "helpfulness"]}


class Planted:
    """A judge that scores by a function of the reply, or, in duels, of the two replies."""

    def __init__(self, score, prefer=None, name="planted"):
        self.spec = JudgeSpec(name=name, kind="local", model=name, method="exact", concurrency=1)
        self.score, self.prefer, self.asked = score, prefer, 0

    def ask(self, question, seed=0):
        self.asked += 1
        text = question.prompt
        if tuple(question.scores) == (1, 2):
            first, second = (text.split(f"답변 {n}\n")[1].split("\n")[0] for n in (1, 2))
            p = self.prefer(first, second)
            return Verdict("exact", 1 * p + 2 * (1 - p), {1: p, 2: 1 - p})
        reply = text.split("평가할 답변\n")[1].split("\n")[0]
        value = min(5.0, max(1.0, self.score(reply)))
        low = min(4, int(value))
        return Verdict("exact", value, {low: low + 1 - value, low + 1: value - low}, prompt_tokens=10)

    def write(self, prompt, max_tokens=512):
        return "1. 읽는다\n2. 점수를 준다"


def quality(reply):
    """Replies carry their true quality: `q3 ...`."""
    return int(reply[1])


def reply(q, length, rng):
    return f"q{q} " + "".join(rng.choice("가나다라마") for _ in range(length))


def item(number):
    return {"id": str(number), "category": "감정/불안", "messages": [{"role": "user", "content": f"말 {number}"}],
            "reference": "그랬군요."}  # fmt: skip


def pairs(n, longer=0, seed=1):
    rng = random.Random(seed)
    return [
        {**item(f"p{i}"), "chosen": reply(4, 40 + longer * rng.randint(-30, 30), rng), "rejected": reply(2, 40, rng)}
        for i in range(n)
    ]


def systems(n, seed=0):
    rng = random.Random(seed)
    return {
        "base": [reply(rng.choice([1, 2, 3]), 40, rng) for _ in range(n)],
        "sft": [reply(rng.choice([3, 4, 5]), 40, rng) for _ in range(n)],
    }


def run(tmp_path, judge, n=20, **options):
    """The results, without the reports, which take longer than all the rest."""
    known = {key: options.pop(key) for key in ("pairs", "ratings", "pair_judge", "cache") if key in options}
    options = EvalOptions(**{**SMALL, "items": n, **options})
    return summarise(collect([item(i) for i in range(n)], systems(n), options, judge, tmp_path, **known))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No fonts cut: that is tested elsewhere and takes longer than all the rest."""
    monkeypatch.setattr("gonggam.fonts.font_face_css", lambda text: "")


def test_a_good_judge_is_trusted_and_the_better_system_found(tmp_path):
    results = run(tmp_path, Planted(quality), pairs=pairs(20), pairwise=False)
    assert results["judge_trusted"] is True
    (calibration,) = results["calibration"]
    assert calibration["accuracy"]["value"] == 1
    assert calibration["kappa"]["value"] == 1
    total = next(t for t in results["tests"] if t["criterion"] == "total")
    assert (total["a"], total["b"]) == ("base", "sft")
    assert total["low"] > 0
    assert total["p_holm"] < 0.05
    assert verdicts(results)[0].startswith("sft scores higher than base by")


def test_a_judge_no_better_than_chance_is_marked_in_red_above_all_scores(tmp_path):
    rng = random.Random(5)
    results = run(tmp_path, Planted(lambda _: rng.uniform(1, 5)), pairs=pairs(20))
    assert results["judge_trusted"] is False
    assert trust_note(results)[1] == "error"
    html = report_page(results).html()
    assert html.index('class="note error"') < html.index("<table>")
    assert html.index('class="note error"') < html.index('class="facts"')
    for section in report_page(results).sections:
        if section.title in ("Summary", "Scores by criterion"):
            assert section.blocks[0].kind == "error"


def test_an_untested_judge_is_marked_too(tmp_path):
    results = run(tmp_path, Planted(quality))
    assert results["judge_trusted"] is None
    assert trust_note(results) == (
        "The judge was not tested on answers of known quality. Do not rely on its scores.",
        "error",
    )


def test_a_planted_love_of_length_is_found(tmp_path):
    fair = run(tmp_path / "a", Planted(quality), pairs=pairs(40, longer=1))
    biased = run(tmp_path / "b", Planted(lambda r: quality(r) + len(r) / 50 - 1), pairs=pairs(40, longer=1))
    low, high = (fair["calibration"][0]["length_slope"][key] for key in ("low", "high"))
    assert low <= 0 <= high
    assert biased["calibration"][0]["length_slope"]["low"] > 10


def test_a_planted_love_of_the_first_place_is_found_and_wins_nothing(tmp_path):
    judge = Planted(quality, prefer=lambda first, second: 0.9)
    results = run(tmp_path, judge, pairs=pairs(20), pairwise=True)
    (tally,) = results["pair_duels"]
    assert tally["first_preferred"]["low"] > 0.8
    assert (tally["wins"], tally["losses"], tally["ties"]) == (0, 0, 20)
    assert tally["consistency"]["value"] == 0
    assert tally["win_rate"]["value"] == 0.5


def test_a_planted_love_of_length_goes_from_the_length_controlled_win_rate(tmp_path):
    from eval.pairwise import tally

    rng = random.Random(2)
    rows = []
    for i in range(200):
        longer = rng.gauss(30, 40)  # a writes more; the judge looks at nothing else
        p = 1 / (1 + math.exp(-math.tanh(longer / 40) * 2))
        rows.append({"item": i, "a": "long", "b": "short", "a_first": p, "b_first": 1 - p, "score": p,
                     "longer": longer, "problem": None})  # fmt: skip
    found = tally(rows, {"reps": 200, "confidence": 0.95, "seed": 0})
    assert found["win_rate"]["low"] > 0.6
    assert found["length_controlled"]["value"] == pytest.approx(0.5, abs=0.02)


def test_the_length_controlled_win_rate_is_a_logistic_model_at_length_zero():
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from eval.pairwise import length_controlled

    rng = np.random.default_rng(1)
    longer = rng.normal(10, 40, 60)
    scores = 1 / (1 + np.exp(-0.8 - 1.5 * np.tanh(longer / 40)))
    features = np.column_stack([np.ones(60), np.tanh(longer / longer.std())])
    # Preferences as shares: every duel stands once as won and once as lost, weighted. The ridge 0.05 is C = 10.
    model = LogisticRegression(C=10, fit_intercept=False, tol=1e-8)
    twice, outcomes = np.vstack([features, features]), np.repeat([1, 0], 60)
    model.fit(twice, outcomes, np.concatenate([scores, 1 - scores]))
    expected = 1 / (1 + np.exp(-model.coef_[0, 0]))
    assert length_controlled(scores, longer) == pytest.approx(expected, abs=1e-4)


def test_planted_leniency_is_found_against_human_scores(tmp_path):
    rng = random.Random(3)
    ratings = []
    for i in range(60):
        q = rng.choice([1, 2, 3, 4])
        ratings.append({**item(f"r{i}"), "reply": reply(q, 30, rng), "human_empathy": q})
    results = run(tmp_path, Planted(lambda r: quality(r) + 0.8), ratings=ratings)
    (found,) = results["agreement"]
    assert found["leniency"]["value"] == pytest.approx(0.8)
    assert found["spearman"]["value"] == pytest.approx(1)
    assert found["kendall"]["value"] == pytest.approx(1)
    assert found["kappa"]["value"] < 1
    assert results["judge_trusted"] is True


def test_repeated_judgements_part_the_judges_noise_from_the_answers(tmp_path):
    rng = random.Random(4)
    results = run(tmp_path, Planted(lambda r: quality(r) + rng.choice([-0.5, 0.5])), repeats=4)
    noise = results["noise"]["empathy"]
    assert 0.35 < noise["judge"] < 0.65
    assert noise["answers"] > 0.8


def test_reports_are_rebuilt_without_asking_anyone(tmp_path):
    run(tmp_path, Planted(quality, prefer=lambda a, b: 0.7), pairs=pairs(6), pairwise=True)
    results = report_from(Raw.load(tmp_path / "raw"), tmp_path)
    for name in ("report.html", "report.md", "scores.csv", "scores.jsonl", "report.xlsx", "results.json"):
        (tmp_path / name).unlink()
    again = rebuild(tmp_path)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(results))
    assert all((tmp_path / n).stat().st_size for n in ("report.html", "report.md", "scores.csv", "report.xlsx"))


def test_a_second_run_asks_nothing_and_writes_no_reply_again(tmp_path):
    calls = []

    def system(messages):
        calls.append(messages)
        return "q3 네"

    judge = Planted(quality)
    options = EvalOptions(**SMALL, items=5)
    for fingerprint in ("a", "a", "b"):
        collect([item(i) for i in range(5)], {"m": system}, options, judge, tmp_path, fingerprint=fingerprint)
    assert len(calls) == 10
    assert judge.asked == 10


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    options = EvalOptions(**SMALL, items=3, pairwise=True)
    known = [{**p} for p in pairs(2)]
    judge = Planted(quality, prefer=lambda a, b: 0.7)
    two = {"a": lambda m: "q1 a", "b": ["q2 b"] * 3}
    collect([item(i) for i in range(3)], two, options, judge, tmp_path, lambda *s: seen.append(s), pairs=known)
    total = 3 + 2 * (2 * 3 + 2 * 2) + 2 * (2 + 3)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_missing_judgements_are_missing_and_counted(tmp_path):
    class Moody(Planted):
        def ask(self, question, seed=0):
            verdict = super().ask(question, seed)
            return verdict if self.asked % 4 else Verdict("exact", problem="no score")

    results = run(tmp_path, Moody(quality), n=8)
    assert results["counts"]["problems"] == {"no score": 8}
    assert results["counts"]["missing"] == 8
    for scores in results["scores"].values():
        assert scores["empathy"]["n"] + scores["empathy"]["missing"] == 8
        assert scores["empathy"]["value"] is None or scores["empathy"]["value"] >= 1
    assert "never as 0" in report_page(results).markdown()


def test_without_a_judge_there_are_still_measures(tmp_path):
    results = summarise(
        collect([item(0)], {"m": ["많이 힘드셨겠어요. 어떠세요?"]}, EvalOptions(judge=None), None, tmp_path)
    )
    assert results["metrics"]["m"]["polite"]["value"] == 1
    assert results["metrics"]["m"]["asks_back"]["value"] == 1
    assert results["judges"] == []


def test_a_section_of_the_callers_own_stands_in_the_report(tmp_path):
    extra = Section("Training").facts({"perplexity": "40.1 → 12.2"})
    evaluate([item(0)], {"m": ["네"]}, EvalOptions(judge=None), None, tmp_path, extra_sections=[extra])
    assert "40.1 → 12.2" in (tmp_path / "report.md").read_text("utf-8")
    (tmp_path / "report.md").unlink()
    rebuild(tmp_path)
    assert "40.1 → 12.2" in (tmp_path / "report.md").read_text("utf-8")


def test_every_bad_answer_and_item_is_seen_in_the_report(tmp_path):
    four = completion("4", [("4", {"4": 0.9, "좋": 0.1})])
    answers = {
        "prose": completion("공감이 잘 되어 있습니다"),
        "many": completion("5점 만점에 4점"),
        "refused": completion("평가할 수 없어요", finish_reason="content_filter"),
        "bare": completion("4"),
        "off": completion("4", [("좋", {"좋": 0.9})]),
        "broken": b"{not json",
        "dead": 500,
        "hung": None,
        "fine": four,
    }
    told = ["no score", "several scores", "refused", "no logprobs", "malformed", "http 500", "connection"]
    items = [item(name) for name in answers]
    items += [item("empty"), {"id": "none", "messages": []}, {**item("x"), "messages": items[0]["messages"] * 2}]
    items[-1]["messages"][-1] = {"role": "assistant", "content": "네"}
    with StandIn(
        lambda body, n: next(a for k, a in answers.items() if f"말 {k}" in body["messages"][0]["content"])
    ) as s:
        judge = {"name": "j", "model": "j", "url": s.url, "api_key_env": "", "retries": 0}
        options = EvalOptions(judge=judge, criteria=["empathy"], bootstrap=200, items=20, concurrency=1)
        replies = ["네"] * len(answers) + ["", "네", "네"]
        results = evaluate(items, {"m": replies}, options, None, tmp_path)
    assert results["counts"]["problems"] == {"no score": 2, "empty reply": 1, **dict.fromkeys(told[1:], 1)}
    assert results["scores"]["m"]["empathy"] | {"low": 0, "high": 0} == {
        "value": 4.0, "low": 0, "high": 0, "n": 1, "missing": 9
    }  # fmt: skip
    report = (tmp_path / "report.md").read_text("utf-8")
    assert all(problem in report for problem in [*told, "empty reply"])
    assert "m has no score for 9 of 10 conversations: 1 without a reply, 8 without a judgement" in report
    assert "1 items, each has no dialogue" in report
    assert "1 items, each does not end with the user's turn" in report


def test_a_spreadsheet_runs_nothing(tmp_path):
    from openpyxl import load_workbook

    raw = collect([item(0)], {"m": ['=HYPERLINK("http://x","y")\x07']}, EvalOptions(judge=None), None, tmp_path)
    write_sheets(summarise(raw), tmp_path)
    cells = [c for sheet in load_workbook(tmp_path / "report.xlsx") for line in sheet.iter_rows() for c in line]
    assert not [c for c in cells if c.data_type == "f"]
    assert "\n'=HYPERLINK" not in (tmp_path / "scores.csv").read_text("utf-8-sig")
    assert "'=HYPERLINK" in (tmp_path / "scores.csv").read_text("utf-8-sig")


@pytest.mark.parametrize(
    ("items", "replies", "message"),
    [
        ([], {"m": []}, "nothing to evaluate"),
        ([{"id": "1", "messages": []}], {"m": ["a"]}, "no dialogue"),
        ([{"id": "1", "messages": [{"role": "assistant", "content": "x"}]}], {"m": ["a"]}, "does not end"),
        ([item(1), item(1)], {"m": ["a", "b"]}, "two items"),
        ([item(1), item(2)], {"m": ["a"]}, "1 replies for 2 items"),
        ([item(1)], {}, "no system"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path, items, replies, message):
    with pytest.raises(UserError, match=message):
        collect(items, replies, EvalOptions(judge=None), None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_judge_that_made_the_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match="own taste"):
        run(tmp_path, Planted(quality), pair_judge="planted")
    assert run(tmp_path, Planted(quality), n=2, pair_judge="planted", allow_pair_judge=True)


def test_too_dear_is_refused_before_anything_is_asked(tmp_path):
    judge = Planted(quality)
    judge.spec = JudgeSpec(**{**judge.spec.model_dump(), "price": {"input": 1000.0}})
    with pytest.raises(UserError, match="max_cost"):
        run(tmp_path, judge, max_cost=0.01)
    assert judge.asked == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    judge = Planted(quality)
    with pytest.raises(UserError, match="Not a directory"):
        run(tmp_path / "file" / "out", judge, n=1, cache=tmp_path / "cache")
    assert judge.asked == 0


def test_importing_the_room_is_light():
    heavy = "{'torch', 'transformers', 'plotly', 'pandas', 'httpx', 'sklearn', 'scipy', 'kiwipiepy', 'sacrebleu'}"
    code = f"import sys, eval, eval.run, eval.http_judge; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_small_window_is_shown_the_last_messages_only(tmp_path):
    prompts = []

    class Reader(Planted):
        def ask(self, question, seed=0):
            prompts.append(question.prompt)
            return super().ask(question, seed)

    long = [{"role": r, "content": f"말 {i}"} for i, r in enumerate(["user", "assistant", "user"])]
    options = EvalOptions(**{**SMALL, "history_turns": 1})
    raw = collect([{"id": "1", "messages": long}], {"m": ["q3 네"]}, options, Reader(quality), tmp_path)
    assert all("말 2" in prompt and "말 0" not in prompt for prompt in prompts)
    assert raw.items[0]["messages"] == long


def test_the_command_line_reports_and_compares(tmp_path):
    from typer.testing import CliRunner

    from pipeline.cli_eval import app

    for name in ("one", "two"):
        run(tmp_path / name / "eval", Planted(quality), n=4, pairs=pairs(8))
    shell = CliRunner()
    done = shell.invoke(app, ["report", str(tmp_path / "one")])
    assert done.exit_code == 0, done.output
    assert "The judge was tested" in done.output
    targets = ["base", str(tmp_path / "one"), str(tmp_path / "two")]
    done = shell.invoke(app, ["compare", *targets, "--out", str(tmp_path / "both")])
    assert done.exit_code == 0, done.output
    assert "Too few conversations to tell" in done.output
    assert (tmp_path / "both" / "report.html").exists()
    assert isinstance(shell.invoke(app, [str(tmp_path / "none")]).exception, UserError)


def test_a_jury_is_the_mean_of_its_members_and_each_is_judged(tmp_path):
    strict, mild = Planted(lambda r: 2.0, name="strict"), Planted(quality, name="mild")
    results = run(tmp_path, [strict, mild], n=4, pairs=pairs(10))
    for row in results["rows"]:
        assert row["scores"]["empathy"] == pytest.approx((2 + quality(row["reply"])) / 2)
    assert [c["trusted"] for c in results["calibration"]] == [False, True]
    assert results["judge_trusted"] is False
    assert "strict prefers the better answer in 50%" in trust_note(results)[0]
