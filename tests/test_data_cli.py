"""`gonggam data` as a user types it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from gonggam.errors import UserError
from gonggam.files import read_jsonl, write_jsonl
from pipeline.cli_data import _sources, app


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return re.sub(r"\s+", " ", done.output)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Thirty rows of questions and answers."""
    path = tmp_path_factory.mktemp("chats") / "chats.csv"
    rows = (f"{i}번째 사람의 서로 다른 이야기,{'그랬군요 ' * (i % 5)}{i},{i % 3}\n" for i in range(30))
    path.write_text("Q,A,label\n" + "".join(rows), "utf-8")
    return path


def test_prepare_audit_prefer(tmp_path, few):
    data = tmp_path / "data"
    assert "60 conversations, 147 supervised replies" in run("prepare", few["path"], "--out", data, "--off", "repeats")
    assert "no leaks" in run("audit", data, "--near", 0)
    leaked = tmp_path / "eval.jsonl"
    write_jsonl(leaked, list(read_jsonl(data / "messages" / "train.jsonl"))[:3])
    assert "3 conversations or pairs share" in run("audit", data, leaked, "--near", 0, code=1)
    pairs = tmp_path / "pairs"
    assert "length alone tells" in run("prefer", data, "--out", pairs, "--max-length", 400)
    assert next(read_jsonl(pairs / "train.jsonl"))["rejected"]


def test_files_are_mixed_by_rows_and_weight(tmp_path, chats, few):
    words = ("prepare", chats, few["path"], "--out", tmp_path / "data", "--near", 0)
    shown = run(*words, "--weight", "chats=3", "--weight", f"{few['path']}=1")
    assert "chats │ 30 │ 30 │" in shown
    assert "dialogues │ 60 │ 10 │" in shown
    assert "total │ 90 │ 26 │" in run(*words, "--rows", 13)


def test_the_packaged_sample_is_mixed_by_its_name(chats):
    sources = _sources([str(chats), "counsel_ko"], None, ["counsel_ko=5"], [])
    assert sources == [{"reader": None, "path": str(chats)}, {"reader": "counsel_ko", "rows": 5, "name": "counsel_ko"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "other.csv=3"], "names none of the files"),
        (["--rows", "chats=many"], "gives no number"),
        (["--weight", "2"], "names none of the files"),
        (["--rows", "3", "--weight", "chats=3"], "not both"),
    ],
)
def test_mistakes_in_mixing_are_named(tmp_path, chats, words, message):
    with pytest.raises(UserError, match=message):
        run("prepare", chats, "--out", tmp_path / "out", *words)


def test_every_step_can_be_switched_off(tmp_path):
    row = {"messages": [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "hello"}]}
    longer = {"messages": [*row["messages"], {"role": "user", "content": "응"}, {"role": "assistant", "content": "네"}]}
    write_jsonl(tmp_path / "a.jsonl", [row, row, longer])
    words = ("prepare", tmp_path / "a.jsonl", "--near", 0, "--out", tmp_path / "out")
    assert "1 conversations, 2 supervised replies" in run(*words)
    assert "hangul" in run(*words)
    shown = run(*words, "--off", "hangul", "--off", "reassemble", "--off", "duplicates")
    assert "3 conversations, 4 supervised replies" in shown
    assert "hangul" not in shown


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


def test_pairs_that_users_of_the_service_chose(tmp_path):
    from pipeline.serve.store import Store, default_url
    from pipeline.serve.store.records import Draft

    store = Store.open(default_url(tmp_path))
    for name, agrees in (("minji", True), ("jiho", False)):
        person = store.people.add(name, "!", consents=[("training", "1")] if agrees else [])
        room = store.rooms.start(person.id, "기본").id
        two = [
            Draft(
                message=f"제 번호는 010-1234-5678이에요 {name}",
                reply=reply,
                source="model",
                risk="none",
                character="기본",
            )
            for reply in ("그러셨군요.", "힘드셨군요.")
        ]
        pair = store.preferences.offer(room, store.claims.enter(person.id, room).claim, *two)
        store.preferences.choose(room, store.claims.enter(person.id, room).claim, pair.id, "b", two[1])
    store.close()
    run("prefer", "--from-service", default_url(tmp_path), "--out", tmp_path / "pairs")
    (row,) = read_jsonl(tmp_path / "pairs" / "pairs.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "제 번호는 [전화번호]이에요 minji"}]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("힘드셨군요.", "그러셨군요.")
    with pytest.raises(UserError, match="no data"):
        run("prefer")
