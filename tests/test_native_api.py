"""The native API: a whole life over HTTP, other people's things, hostile input, crashes and goodbyes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import anyio
import httpx
import pytest
import schemathesis
from chat_standin import ScriptedBackend
from conftest import ROOT, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serve_standin import HeldBackend, serving
from starlette.testclient import TestClient
from store_standin import GOOD, OTHER, PASSWORD, database_url, holding, make_app, tables_holding
from test_reviewed import Telling

from pipeline.chat.backends import BackendError
from pipeline.chat.reviewed import CategoryAnswers
from pipeline.chat.sentiment import Sentiments
from pipeline.serve.accounts import Limits
from pipeline.serve.callers import COOKIE
from pipeline.serve.finish import finish
from pipeline.serve.native.moods import spans
from pipeline.serve.store.models import Counsel
from pipeline.serve.store.records import Felt
from pipeline.serve.texts import texts

SECRET = "초코파이하늘별"
SILENT = settings(
    max_examples=3, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@contextmanager
def client_of(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def sign_up(client, name, password=PASSWORD, **more):
    """Headers of a new account."""
    made = client.post("/api/accounts", json={"name": name, "password": password, "agree": True} | more)
    assert made.status_code == 201, made.text
    return log_in(client, name, password)


def log_in(client, name, password=PASSWORD):
    found = client.post("/api/session", json={"name": name, "password": password})
    assert found.status_code == 200, found.text
    return {"Authorization": f"Bearer {found.json()['token']}"}


def start(client, who, **room):
    return client.post("/api/rooms", json=room, headers=who).json()["id"]


def send(client, who, room, text, **more):
    return client.post(f"/api/rooms/{room}/dialogs", json={"text": text} | more, headers=who)


def events(response):
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in response.text.strip().split("\n\n")]
    return [(event["event"], json.loads(event["data"])) for event in found]


@pytest.fixture
def client(tmp_path):
    with client_of(make_app(tmp_path, *[GOOD, OTHER] * 6)) as opened:
        yield opened


@pytest.fixture
def minji(client):
    return sign_up(client, "minji")


def test_a_room_from_its_first_message_to_goodbye(client, minji, tmp_path):
    room = start(client, minji, title="면접", character="반말친구")
    first = send(client, minji, room, f"{SECRET} 면접에서 떨어졌어").json()
    assert first["introduction"]
    assert first["dialog"]["character"] == "반말친구"
    assert first["dialog"]["exchange"]
    told = events(client.post(f"/api/rooms/{room}/dialogs/stream", json={"text": "또 봐야 할까"}, headers=minji))
    assert [name for name, _ in told[:-1]] == ["piece"] * (len(told) - 1)
    assert "".join(data["text"] for _, data in told[:-1]) == told[-1][1]["dialog"]["reply"] == OTHER
    asked = client.app.state.counselor.backend.asked[-1].messages
    assert [m["content"] for m in asked[-3:]] == [f"{SECRET} 면접에서 떨어졌어", GOOD, "또 봐야 할까"]

    said = client.get(f"/api/rooms/{room}/dialogs", headers=minji).json()
    assert [(d["position"], d["message"]) for d in said] == [(0, f"{SECRET} 면접에서 떨어졌어"), (1, "또 봐야 할까")]
    assert client.get(f"/api/rooms/{room}/dialogs?limit=1", headers=minji).json() == said[1:]
    assert client.get(f"/api/rooms/{room}/dialogs?before=1", headers=minji).json() == said[:1]

    assert len(client.get(f"/api/rooms/{room}/emotions", headers=minji).json()) == 2
    assert client.get("/api/emotions?by=week", headers=minji).json()[0]["messages"] == 2
    assert client.get("/api/emotions?timezone=Mars/Phobos", headers=minji).json()["code"] == "bad_timezone"
    changed = client.patch(f"/api/rooms/{room}", json={"title": "새 이름", "character": "기본"}, headers=minji).json()
    assert (changed["title"], changed["character"], changed["dialogs"]) == ("새 이름", "기본", 2)
    unnamed = client.patch(f"/api/rooms/{room}", json={"title": ""}, headers=minji).json()
    assert (unnamed["title"], unnamed["character"]) == (None, "기본")
    other = client.patch(f"/api/rooms/{room}", json={"character": "반말친구"}, headers=minji).json()
    assert (other["title"], other["character"]) == (None, "반말친구")

    assert send(client, minji, room, "오늘은 여기까지 할게요").json()["ended"]
    assert send(client, minji, room, "저기요").json()["code"] == "room_ended"
    assert client.get(f"/api/rooms/{room}", headers=minji).json()["ended_at"]
    assert client.delete(f"/api/rooms/{room}", headers=minji).status_code == 204
    assert client.get("/api/rooms", headers=minji).json() == client.get("/api/memory", headers=minji).json() == []
    client.app.state.store.upkeep.wipe_log()
    assert holding(tmp_path, SECRET) == []


def test_the_last_message_is_answered_anew_or_changed_and_any_is_deleted(client, minji):
    room = start(client, minji)
    first, last = (send(client, minji, room, text).json()["dialog"] for text in ("첫 이야기예요", f"{SECRET} 말할래요"))
    for opinion in ({"rating": 1, "comment": "좋아요"}, {"rating": None}, {"rating": -1}):
        client.put(f"/api/dialogs/{last['id']}/feedback", json=opinion, headers=minji)
        (rated,) = client.get(f"/api/rooms/{room}/dialogs?limit=1", headers=minji).json()
        assert (rated["rating"], rated["comment"]) == (opinion["rating"], opinion.get("comment"))
    again = client.put(f"/api/dialogs/{last['id']}", json={}, headers=minji).json()["dialog"]
    assert (again["message"], again["reply"], again["position"]) == (last["message"], GOOD, 1)
    assert (again["rating"], again["created_at"]) == (None, last["created_at"])
    told = events(client.put(f"/api/dialogs/{again['id']}/stream", json={"text": "고친 말이에요"}, headers=minji))
    edited = told[-1][1]["dialog"]
    assert (edited["message"], edited["position"]) == ("고친 말이에요", 1)
    assert client.put(f"/api/dialogs/{first['id']}", json={}, headers=minji).json()["code"] == "not_last"
    assert client.put(f"/api/dialogs/{last['id']}", json={}, headers=minji).status_code == 404
    remembered = [row["user"] for row in client.get("/api/memory", headers=minji).json()]
    assert remembered == ["고친 말이에요", "첫 이야기예요"]
    # what is answered anew is neither in the prompt's history nor recalled beside it
    prompts = [request.messages for request in client.app.state.counselor.backend.asked[2:]]
    assert [len(messages) for messages in prompts] == [3, 3]
    assert not any("기억하는 것" in message["content"] for messages in prompts for message in messages)

    assert client.delete(f"/api/dialogs/{first['id']}", headers=minji).status_code == 204
    assert [row["user"] for row in client.get("/api/memory", headers=minji).json()] == ["고친 말이에요"]
    assert client.delete(f"/api/dialogs/{first['id']}", headers=minji).status_code == 404


def test_two_replies_one_choice(client, minji):
    room = start(client, minji)
    offer = client.post(f"/api/rooms/{room}/choices", json={"text": "둘 다 들려줘요"}, headers=minji).json()
    assert (offer["a"], offer["b"], offer["answer"]) == (GOOD, OTHER, None)
    assert "AI" in offer["introduction"]
    assert client.get(f"/api/rooms/{room}/choices", headers=minji).json() == [offer]
    assert client.get(f"/api/rooms/{room}/dialogs", headers=minji).json() == []
    assert client.get("/api/memory", headers=minji).json() == []
    taken = client.post(f"/api/choices/{offer['id']}", json={"choice": "b"}, headers=minji).json()
    assert (taken["reply"], taken["message"]) == (OTHER, "둘 다 들려줘요")
    assert [row["reply"] for row in client.get("/api/memory", headers=minji).json()] == [OTHER]
    assert client.post(f"/api/choices/{offer['id']}", json={"choice": "a"}, headers=minji).status_code == 404
    # where words are fixed there is nothing to choose
    offer = client.post(f"/api/rooms/{room}/choices", json={"text": "죽고 싶어"}, headers=minji).json()
    assert (offer["id"], offer["answer"]["dialog"]["source"]) == (None, "safety")
    assert client.get(f"/api/rooms/{room}/choices", headers=minji).json() == []


def test_two_replies_wait_for_their_choice(client, minji):
    room = start(client, minji)
    said = send(client, minji, room, "먼저 한 말이에요").json()["dialog"]
    offer = client.post(f"/api/rooms/{room}/choices", json={"text": f"{SECRET} 둘 다요"}, headers=minji).json()
    assert (offer["message"], offer["introduction"]) == (f"{SECRET} 둘 다요", None)
    assert client.get(f"/api/rooms/{room}/choices", headers=minji).json() == [offer]
    (exported,) = client.get("/api/me/export", headers=minji).json()["choices"]
    assert (exported["room"], exported["a"]["message"], exported["chosen"]) == (room, offer["message"], None)
    # what was said before them is not the last any more
    assert client.put(f"/api/dialogs/{said['id']}", json={}, headers=minji).json()["code"] == "not_last"
    client.post(f"/api/rooms/{room}/end", headers=minji)
    taken = client.post(f"/api/choices/{offer['id']}", json={"choice": "b"}, headers=minji).json()
    assert [taken["message"], taken["reply"]] == [offer["message"], offer["b"]]
    assert client.get(f"/api/rooms/{room}/choices", headers=minji).json() == []


@pytest.mark.parametrize("way", ["dialogs", "dialogs/stream", "choices"])
def test_whoever_talks_on_without_choosing_keeps_the_first_reply(client, minji, way):
    client.put("/api/me/consents/training", json={"granted": True}, headers=minji)
    room = start(client, minji)
    offer = client.post(f"/api/rooms/{room}/choices", json={"text": "둘 다 들려줘요"}, headers=minji).json()
    client.post(f"/api/rooms/{room}/{way}", json={"text": "그냥 말할게요"}, headers=minji)
    asked = client.app.state.counselor.backend.asked[-1].messages
    assert [m["content"] for m in asked[-3:]] == ["둘 다 들려줘요", offer["a"], "그냥 말할게요"]
    first = client.get(f"/api/rooms/{room}/dialogs", headers=minji).json()[0]
    assert (first["message"], first["reply"]) == ("둘 다 들려줘요", offer["a"])
    assert first["exchange"] == client.get("/api/memory", headers=minji).json()[-1]["id"]
    assert client.post(f"/api/choices/{offer['id']}", json={"choice": "b"}, headers=minji).status_code == 404
    assert list(client.app.state.store.preferences.pairs()) == []


def test_reviewed_answers_are_chosen_from_as_well(tmp_path):
    answers = {"수면": ["낮에 걸어 보셨어요?", "잠들기 전에 무엇을 하세요?"], "가족": ["가족과 이야기해 보셨어요?"]}
    backend = CategoryAnswers(Telling(answers=answers))
    with client_of(make_app(tmp_path, accounts=False, backend=backend)) as client:
        room = start(client, None)
        two = client.post(f"/api/rooms/{room}/choices", json={"text": "수면이 문제예요"}).json()
        assert {two["a"], two["b"]} == set(answers["수면"])
        assert client.post(f"/api/choices/{two['id']}", json={"choice": "b"}).json()["reply"] == two["b"]
        one = client.post(f"/api/rooms/{room}/choices", json={"text": "가족 이야기예요"}).json()
        assert (one["id"], one["answer"]["dialog"]["reply"]) == (None, answers["가족"][0])  # there is no other


def test_log_in_cookie_password_and_log_out(client, minji):
    wrong = client.post("/api/session", json={"name": "minji", "password": "아닌 비밀번호"})
    nobody = client.post("/api/session", json={"name": "nobody", "password": PASSWORD})
    assert (wrong.status_code, wrong.json()) == (nobody.status_code, nobody.json())
    taken = client.post("/api/accounts", json={"name": "MINJI", "password": PASSWORD, "agree": True})
    assert taken.json()["code"] == "name_taken"
    unagreed = client.post("/api/accounts", json={"name": "dana", "password": PASSWORD, "agree": False})
    assert unagreed.status_code == 422
    assert PASSWORD not in unagreed.text

    spelled = {"content": r'{"name": "minji", "password": "\ud800"}', "headers": {"Content-Type": "application/json"}}
    halves = client.post("/api/session", **spelled)
    assert (halves.status_code, halves.json()["code"]) == (401, "bad_login")

    cookie = client.post("/api/session", json={"name": "minji", "password": PASSWORD, "cookie": True})
    assert cookie.json()["token"] is None
    assert {"httponly", "samesite=lax"} <= set(cookie.headers["set-cookie"].lower().split("; "))
    origin = {"Origin": "http://testserver"}
    assert client.get("/api/me").json()["name"] == "minji"
    change = {"old": PASSWORD, "new": "하얀 고래 43마리"}
    assert client.put("/api/me/password", json=change, headers=origin).status_code == 204
    assert client.get("/api/me", headers=minji).json()["code"] == "not_logged_in"
    assert client.get("/api/me").status_code == 200
    assert client.put("/api/me/password", json=change, headers=origin).json()["code"] == "bad_login"
    kept = client.cookies[COOKIE]
    assert client.delete("/api/session", headers=origin).status_code == 204
    assert client.get("/api/me", headers={"Authorization": f"Bearer {kept}"}).status_code == 401


def test_consents_and_what_an_administrator_sees(client, minji):
    assert [c["kind"] for c in client.get("/api/me/consents", headers=minji).json()] == ["terms"]
    given = client.put("/api/me/consents/training", json={"granted": True}, headers=minji).json()
    assert {c["kind"]: c["granted"] for c in given} == {"terms": True, "training": True}
    assert client.get("/api/admin/counts", headers=minji).json()["code"] == "not_found"
    send(client, minji, start(client, minji), SECRET)
    client.app.state.store.people.set_role("minji", "admin")
    counts = client.get("/api/admin/counts", headers=minji)
    assert counts.json()["dialogs"] == 1
    assert SECRET not in counts.text


def test_an_account_leaves_no_trace(client, minji, tmp_path):
    dana = sign_up(client, "dana")
    kept = start(client, dana)
    for number in range(3):
        room = start(client, minji, title=SECRET)
        said = send(client, minji, room, f"{SECRET} {number}번째 이야기예요").json()["dialog"]
        client.put(f"/api/dialogs/{said['id']}/feedback", json={"rating": 1, "comment": SECRET}, headers=minji)
        client.post(f"/api/rooms/{room}/choices", json={"text": f"{SECRET} 둘 다요"}, headers=minji)
        send(client, dana, kept, f"{number}번째 남는 이야기예요")
    openai = {
        "model": "gonggam",
        "user": "친구",
        "messages": [{"role": "user", "content": f"{SECRET} 다른 길로 왔어요"}],
    }
    assert client.post("/v1/chat/completions", json=openai, headers=minji).status_code == 200
    export = client.get("/api/me/export", headers=minji).text
    assert export.count(SECRET) >= 8
    assert len(holding(tmp_path, SECRET)) >= 2
    wrong = client.request("DELETE", "/api/me", json={"password": "아닌 비밀번호"}, headers=minji)
    assert wrong.json()["code"] == "bad_login"
    left = client.request("DELETE", "/api/me", json={"password": PASSWORD}, headers=minji)
    assert left.json() == {"erased": True, "files_clean": True}
    assert client.get("/api/me", headers=minji).status_code == 401
    assert holding(tmp_path, SECRET) == []
    assert len(list((tmp_path / "users").glob("*/*"))) == 1  # dana's memory, vectors and all
    assert len(client.get(f"/api/rooms/{kept}/dialogs", headers=dana).json()) == 3
    assert len(client.get("/api/memory", headers=dana).json()) == 3


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_an_account_leaves_nothing_in_any_table_of_a_server(kind, tmp_path):
    with database_url(kind, tmp_path) as url:
        app = make_app(tmp_path, GOOD, GOOD, OTHER, url=url)
        with client_of(app) as client:
            who = sign_up(client, "minji")
            room = start(client, who, title=SECRET)
            said = send(client, who, room, SECRET).json()["dialog"]["id"]
            client.put(f"/api/dialogs/{said}/feedback", json={"rating": 1, "comment": SECRET}, headers=who)
            client.post(f"/api/rooms/{room}/choices", json={"text": SECRET}, headers=who)
            held = tables_holding(app.state.store, SECRET)
            assert {name.split(".")[0] for name in held} == {"counsel", "dialog", "feedback", "preference"}
            assert client.request("DELETE", "/api/me", json={"password": PASSWORD}, headers=who).json()["files_clean"]
            assert tables_holding(app.state.store, SECRET) == tables_holding(app.state.store, "minji") == []
            assert holding(tmp_path, SECRET) == []


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_what_is_older_than_the_term_is_in_no_table_of_a_server(kind, tmp_path):
    with database_url(kind, tmp_path) as url:
        app = make_app(tmp_path, url=url)
        with client_of(app) as client:
            who = sign_up(client, "minji")
            send(client, who, start(client, who, title=SECRET), SECRET)
            assert app.state.store.upkeep.expire(0) == 1
            assert tables_holding(app.state.store, SECRET) == []


def test_all_that_was_said_is_erased_and_the_account_stays(tmp_path):
    with client_of(make_app(tmp_path, accounts=False)) as client:
        said = send(client, {}, start(client, {}, title=SECRET), SECRET).json()["dialog"]
        client.put(f"/api/dialogs/{said['id']}/feedback", json={"rating": 1, "comment": f"{SECRET}!"})
        assert f"{SECRET}!" in client.get("/api/me/export").text
        assert client.delete("/api/me/data").json() == {"erased": True, "files_clean": True}
        assert holding(tmp_path, SECRET) == []
        assert client.get("/api/rooms").json() == client.get("/api/memory").json() == []
        assert send(client, {}, start(client, {}), "다시 시작해요").status_code == 201


def test_memories_are_listed_forgotten_and_taken_along(client, minji):
    room = start(client, minji)
    for text in ("강아지 초코가 아팠어요", "면접을 봤어요"):
        send(client, minji, room, text)
    last = send(client, minji, start(client, minji), "초코가 또 아파요").json()
    recalled = client.get(f"/api/dialogs/{last['dialog']['id']}/recalled", headers=minji).json()
    assert {row["id"] for row in recalled} == set(last["dialog"]["recalled"]) != set()
    listed = client.get("/api/memory?limit=2", headers=minji).json()
    assert [row["user"] for row in listed] == ["초코가 또 아파요", "면접을 봤어요"]
    assert len(client.get("/api/memory/export", headers=minji).json()["exchanges"]) == 3
    assert client.delete(f"/api/memory/{recalled[0]['id']}", headers=minji).status_code == 204
    assert client.delete(f"/api/memory/{recalled[0]['id']}", headers=minji).status_code == 404
    after = client.get(f"/api/dialogs/{last['dialog']['id']}/recalled", headers=minji).json()
    assert len(after) == len(recalled) - 1
    assert client.delete("/api/memory", headers=minji).status_code == 204
    assert client.get("/api/memory", headers=minji).json() == []
    said = client.get(f"/api/rooms/{room}/dialogs", headers=minji).json()
    assert [d["exchange"] for d in said] == [None, None]
    new = send(client, minji, room, "고양이를 데려왔어요").json()["dialog"]
    assert client.delete(f"/api/dialogs/{said[0]['id']}", headers=minji).status_code == 204  # long forgotten
    assert client.get(f"/api/rooms/{room}/dialogs", headers=minji).json() == [said[1], new]
    assert [row["id"] for row in client.get("/api/memory", headers=minji).json()] == [new["exchange"]]


def test_a_model_answers_to_the_sentiment_it_is_given_or_tells_it_by_itself(tmp_path):
    known = Sentiments({"일상": "0", "이별": "1"})
    app = make_app(tmp_path, *[GOOD, OTHER] * 6, accounts=False, sentiments=known)
    with client_of(app) as client:
        asked = app.state.counselor.backend.asked
        assert client.get("/api/sentiments").json() == ["일상", "이별"]
        room = start(client, {})
        said = send(client, {}, room, "어제 헤어졌어요", sentiment="이별").json()["dialog"]
        client.put(f"/api/dialogs/{said['id']}", json={"sentiment": "일상"})
        send(client, {}, room, "오늘은 비가 왔어요")
        client.post(f"/api/rooms/{room}/choices", json={"text": "어떡하죠", "sentiment": "이별"})
        client.post(f"/api/rooms/{room}/dialogs/stream", json={"text": "그래도요", "sentiment": "1"})
        assert [one.messages[-1]["sentiment"] for one in asked] == ["1", "0", "0", "1", "1", "1"]
        for text in ("또 울었어요", "죽고 싶어요"):
            wrong = send(client, {}, room, text, sentiment="분노")
            assert (wrong.status_code, wrong.json()["code"]) == (400, "no_sentiment")


def test_a_model_without_sentiments_refuses_them(client, minji):
    assert client.get("/api/sentiments", headers=minji).json() == []
    wrong = send(client, minji, start(client, minji), "안녕하세요", sentiment="이별")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "no_sentiment")


def test_a_database_that_is_gone_is_told_as_such_and_used_again_when_it_is_back(client, minji, tmp_path):
    room = start(client, minji)
    away = (tmp_path / "service").rename(tmp_path / "away")
    client.app.state.store.database.close()
    for failed in (send(client, minji, room, "들려요?"), client.get("/api/rooms", headers=minji)):
        assert (failed.status_code, failed.json()["code"]) == (503, "database_unavailable")
        assert failed.headers["Retry-After"] == "5"
    assert client.get("/health/ready").json()["checks"]["database"] is False
    away.rename(tmp_path / "service")
    assert send(client, minji, room, "들려요?").status_code == 201


def test_a_disk_that_is_full_or_a_database_that_was_taken_away_is_not_ready(client, minji, tmp_path, monkeypatch):
    def ready():
        answer = client.get("/health/ready")
        return answer.status_code, [name for name, well in answer.json()["checks"].items() if not well]

    assert ready() == (200, [])
    with monkeypatch.context() as patch:
        patch.setattr("gonggam.files.shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
        assert ready() == (503, ["database", "memory"])
    (tmp_path / "service" / "gonggam.db").unlink()  # SQLite would go on writing to the file that nobody finds any more
    assert ready() == (503, ["database"])


def test_a_memory_that_cannot_be_written_is_the_services_trouble_not_the_callers(client, minji, tmp_path, caplog):
    room = start(client, minji)
    said = send(client, minji, room, "면접 떨어졌어").json()["dialog"]
    users = (tmp_path / "users").rename(tmp_path / "away")
    (tmp_path / "users").write_text("no folder")
    for failed in (
        send(client, minji, room, "또 떨어졌어"),
        client.delete(f"/api/dialogs/{said['id']}", headers=minji),
    ):
        assert (failed.status_code, failed.json()["code"]) == (503, "storage_unavailable")
        assert failed.json()["detail"] == texts()["refused"]["storage_unavailable"]["message"]
    assert "(Not a directory) at " in caplog.text
    (tmp_path / "users").unlink()
    users.rename(tmp_path / "users")
    assert [d["id"] for d in client.get(f"/api/rooms/{room}/dialogs", headers=minji).json()] == [said["id"]]
    assert send(client, minji, room, "또 떨어졌어").status_code == 201


def test_every_refusal_says_all_of_its_sentence():
    assert [code for code, entry in texts()["refused"].items() if set(entry) != {"status", "message"}] == []


def test_what_fails_is_not_kept(tmp_path):
    app = make_app(tmp_path, backend=ScriptedBackend("아", fail=BackendError("server down")), accounts=False)
    with client_of(app) as client:
        room = start(client, {})
        failed = send(client, {}, room, "들려요?")
        assert (failed.status_code, failed.json()["code"]) == (503, "model_unavailable")
        assert "잠시 뒤에" in failed.json()["detail"]
        streamed = client.post(f"/api/rooms/{room}/dialogs/stream", json={"text": "들려요?"})
        assert streamed.status_code == 503
        assert client.get(f"/api/rooms/{room}/dialogs").json() == client.get("/api/memory").json() == []
        assert app.state.store.claims.enter(
            client.get("/api/me").json()["id"], room
        ).claim  # and the room is free again


def test_a_stream_that_fails_late_says_so_and_is_not_kept(tmp_path):
    backend = ScriptedBackend(GOOD + " 그", fail=BackendError("server down"))
    with client_of(make_app(tmp_path, backend=backend, accounts=False)) as client:
        room = start(client, {})
        told = events(client.post(f"/api/rooms/{room}/dialogs/stream", json={"text": "들려요?"}))
        assert [name for name, _ in told] == ["piece"] * (len(told) - 1) + ["error"]
        assert told[-1][1]["code"] == "model_unavailable"
        assert "잠시 뒤에" in told[-1][1]["detail"]
        assert client.get(f"/api/rooms/{room}/dialogs").json() == client.get("/api/memory").json() == []


@pytest.mark.parametrize("how", ["dialogs", "dialogs/stream", "choices"])
def test_what_is_given_up_is_not_kept(tmp_path, how):
    backend = HeldBackend(free=2)
    app = make_app(tmp_path, backend=backend, accounts=False, hosts=("127.0.0.1",))
    with serving(app) as (address, _), httpx.Client(base_url=address, timeout=60) as other:
        room = start(other, {})
        body = json.dumps({"text": "면접을 보고 왔어요"})
        head = f"POST /api/rooms/{room}/{how} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":")[-1]))) as leaving:
            leaving.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            assert backend.begun.acquire(timeout=30)
            assert send(other, {}, room, "저기요").json()["code"] == "room_busy"
        assert backend.given_up.acquire(timeout=30)
        backend.go.set()
        answers = (send(other, {}, room, "다시 왔어요") for _ in range(500))
        said = next(answer for answer in answers if answer.status_code == 201)
        assert said.json()["dialog"]["position"] == 0
        assert [row["user"] for row in other.get("/api/memory").json()] == ["다시 왔어요"]
        counted = (other.get("/metrics").text for _ in range(500))  # once the request has ended: given up, no fault
        assert any(f'route="/api/rooms/{{room}}/{how}",status="499"' in numbers for numbers in counted)


def test_without_accounts_everybody_is_one(tmp_path):
    with client_of(make_app(tmp_path, accounts=False)) as client:
        assert send(client, {}, start(client, {}), "혼자 쓰는 곳이에요").status_code == 201
        sign = client.post("/api/accounts", json={"name": "minji", "password": PASSWORD, "agree": True})
        assert sign.json()["code"] == "no_accounts"
        assert len(client.get("/api/rooms").json()) == 1


def test_a_room_goes_on_at_another_worker_and_is_busy_meanwhile(tmp_path):
    backend = HeldBackend()
    with client_of(make_app(tmp_path, backend=backend)) as one, client_of(make_app(tmp_path, OTHER)) as two:
        minji = sign_up(one, "minji")
        room = start(one, minji)
        backend.go.set()
        send(one, minji, room, "첫 번째 일꾼에게")
        assert send(two, minji, room, "두 번째 일꾼에게").json()["dialog"]["position"] == 1
        asked = [m["content"] for m in two.app.state.counselor.backend.asked[0].messages]
        assert asked[-3:] == ["첫 번째 일꾼에게", *asked[-2:-1], "두 번째 일꾼에게"]
        store = one.app.state.store
        user = store.people.find("minji")[0].id
        claim = store.claims.enter(user, room).claim
        busy = send(two, minji, room, "아직인가요")
        assert (busy.status_code, busy.json()["code"], busy.headers["retry-after"]) == (409, "room_busy", "5")
        assert one.delete(f"/api/rooms/{room}", headers=minji).status_code == 409
        store.claims.release(room, claim)


def test_what_a_worker_that_died_remembered_is_put_right(client, minji):
    """It had remembered an exchange and died before the commit: the database, which alone was acknowledged, counts."""
    state = client.app.state
    room = start(client, minji)
    kept = send(client, minji, room, "적힌 이야기예요").json()["dialog"]
    person = state.store.people.find("minji")[0]
    memory = next(iter(state.counselor.memory._loaded.values()))
    for revive in (lambda: send(client, minji, room, "이어서 말해요"), state.talks.erasure.recover):
        memory.add(SECRET, "적히지 못한 답", session=room)
        claim = state.store.claims.enter(person.id, room).claim
        state.store.claims.renew(room, claim, timedelta(0))
        revive()
        remembered = client.get("/api/memory", headers=minji).json()
        assert SECRET not in [row["user"] for row in remembered]
        assert kept["exchange"] in [row["id"] for row in remembered]
        assert state.store.claims.abandoned() == []


def test_what_a_worker_that_died_had_forgotten_is_not_said_to_be_remembered(client, minji):
    """It was deleting an exchange: the memory had let go of it, the row still stood."""
    state = client.app.state
    room = start(client, minji)
    said = send(client, minji, room, "지우려던 이야기예요").json()["dialog"]
    person = state.store.people.find("minji")[0]
    next(iter(state.counselor.memory._loaded.values())).forget(said["exchange"])
    claim = state.store.claims.enter(person.id, room).claim
    state.store.claims.renew(room, claim, timedelta(0))
    assert state.talks.erasure.recover() == 1
    assert [d["exchange"] for d in client.get(f"/api/rooms/{room}/dialogs", headers=minji).json()] == [None]


TALKER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from store_standin import make_app
from test_native_api import client_of, send
with client_of(make_app(Path(sys.argv[1]), accounts=False)) as client:
    while True:
        said = send(client, {}, sys.argv[3], "면접을 보고 왔어요").json()["dialog"]
        print(said["id"], said["exchange"], flush=True)
"""


def test_database_and_memory_agree_after_kill_9(tmp_path):
    app, acknowledged = make_app(tmp_path, accounts=False), []
    with client_of(app) as client:
        room = start(client, {})
        for lines in (1, 7):
            command = [sys.executable, "-c", TALKER, str(tmp_path), str(ROOT / "tests"), room]
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(tmp_path), cwd=ROOT) as talker:
                acknowledged += [talker.stdout.readline().split() for _ in range(lines)]
                talker.kill()
                acknowledged += [line.split() for line in talker.stdout]
            abandon(app.state.store, room)
            assert send(client, {}, room, "이어서 말해요").status_code == 201
            said = client.get(f"/api/rooms/{room}/dialogs?limit=200").json()
            remembered = client.get("/api/memory?limit=200").json()
            assert {row["id"] for row in remembered} == {dialog["exchange"] for dialog in said}
            assert {(d.decode(), e.decode()) for d, e in acknowledged} <= {(d["id"], d["exchange"]) for d in said}


def abandon(store, room):
    """Let the lease of whoever died run out."""
    with store.database.writing() as session:
        found = session.get(Counsel, room)
        if found.claim:
            found.claim_until = found.created_at


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """An application with Minji, who has one of everything, and Dana; (client, Minji, Dana, Minji's ids by name)."""
    app = make_app(tmp_path_factory.mktemp("town"), *[GOOD, OTHER] * 200)
    app.state.accounts.limits = Limits(name=100)  # she logs in anew for every route
    with client_of(app) as client:
        minji, dana = sign_up(client, "minji"), sign_up(client, "dana")
        room = start(client, minji, title=SECRET)
        said = send(client, minji, room, f"{SECRET} 첫 이야기예요").json()["dialog"]
        pair = client.post(f"/api/rooms/{room}/choices", json={"text": f"{SECRET} 둘 다요"}, headers=minji).json()
        yield client, minji, dana, {
            "room": room, "dialog": said["id"], "pair": pair["id"], "exchange": said["exchange"]
        }  # fmt: skip


def operations(client, prefix="/api/"):
    schema = schemathesis.openapi.from_dict(client.app.openapi())
    schema.app = client.app
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if operation.path.startswith(prefix)]


def call(client, case, headers):
    body = b"" if case.body is schemathesis.core.NOT_SET else case.body
    body = body if isinstance(body, bytes) else json.dumps(body, default=repr).encode()
    kind = {"Content-Type": case.media_type} if case.media_type else {}
    head = {**kind, **(headers or {})}
    return client.request(case.method, case.formatted_path, params=case.query or {}, content=body, headers=head)


def try_out(strategy, check):
    """A few inputs of a strategy, the same each time."""
    SILENT(given(strategy)(check))()


def test_other_peoples_things_are_not_there_on_any_route(town):
    client, minji, dana, ids = town
    before = client.get("/api/me/export", headers=minji).json()
    owned = [o for o in operations(client) if any(p.name in ids for p in o.path_parameters)]
    assert len(owned) >= 15
    assert ("patch", "/api/rooms/{room}") in [(operation.method, operation.path) for operation in owned]

    def others_get_404(case):
        assert call(client, case, None).status_code == 401
        answer = call(client, case, dana)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (case.method, case.path)

    for operation in owned:
        theirs = {p.name: ids[p.name] for p in operation.path_parameters}
        try_out(operation.as_strategy(path_parameters=theirs), others_get_404)
    assert client.get("/api/me/export", headers=minji).json() == before


def test_nothing_of_others_is_on_routes_without_ids(town):
    client, _, dana, _ = town
    for operation in operations(client):
        if operation.method == "get" and "{" not in operation.path:
            assert SECRET not in client.get(operation.path, headers=dana).text


def test_no_input_makes_the_service_fail_or_answer_as_it_does_not_say(town):
    client, _, _, ids = town
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation in operations(client):
        minji = log_in(client, "minji")  # anew, as one of the routes is to log out
        own = {p.name: ids[p.name] for p in operation.path_parameters if p.name in ids}
        kinds = [operation.as_strategy(generation_mode=mode) for mode in modes]
        if own:
            kinds.append(operation.as_strategy(path_parameters=own))

        try_out(st.one_of(kinds), never_failing(client, minji))


def never_failing(client, who):
    """The service does not fail, and answers as its OpenAPI description says."""

    def check(case):
        answer = call(client, case, who)
        assert answer.status_code < 500, (case.method, case.formatted_path)
        case.validate_response(answer, checks=[status_code_conformance, response_schema_conformance])

    return check


@pytest.mark.parametrize("text", ["\ud800", "\x00", "a" * 20_001, "", None, 5, ["x"], {"$ne": 1}])
def test_texts_that_are_none_are_refused_or_read_without_what_cannot_be(town, text):
    client, minji, _, _ = town
    room = start(client, minji)
    body = json.dumps({"text": text}).encode()
    head = {**minji, "Content-Type": "application/json"}
    answer = client.post(f"/api/rooms/{room}/dialogs", content=body, headers=head)
    assert answer.status_code == (201 if text == "\x00" else 422)


def test_days_and_weeks_are_those_of_the_clock_on_the_wall():
    night = datetime(2026, 3, 1, 16, 30, tzinfo=UTC)  # a Sunday in London, already Monday in Seoul
    felt = [Felt(dialog=str(n), at=night + timedelta(hours=n), label=label, score=1.0) for n, label in enumerate("aab")]
    seoul, london = spans(felt, "week", ZoneInfo("Asia/Seoul")), spans(felt, "day", ZoneInfo("Europe/London"))
    assert [(str(s.start), s.messages, s.counts) for s in seoul] == [("2026-03-02", 3, {"a": 2, "b": 1})]
    assert [str(s.start) for s in london] == ["2026-03-01"]


def test_sealed_all_the_way(tmp_path):
    from pipeline.cipher import new_key

    app = make_app(tmp_path, keys=[new_key()])
    with client_of(app) as client:
        minji = sign_up(client, "minji")
        room = start(client, minji, title=SECRET)
        for _ in range(2):
            send(client, minji, room, SECRET)
        app.state.counselor.memory.close()  # writes the vectors, too
        assert list(tmp_path.rglob("index.faiss"))
        assert holding(tmp_path, SECRET) == []
        exported = client.get("/api/me/export", headers=minji).json()
        assert [one["user"] for one in exported["memory"]["exchanges"]] == [SECRET, SECRET]
    assert holding(tmp_path, SECRET) == []


def test_what_was_begun_is_finished_however_often_it_is_cancelled():
    """A cancel scope, as around streams, cancels at every await anew; the work may not even have got its thread yet."""
    done = []

    async def give_up():
        busy = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        first = asyncio.ensure_future(asyncio.to_thread(busy.wait))
        asyncio.get_running_loop().call_later(0.05, busy.set)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await finish(lambda: done.append(1))
        await first

    asyncio.run(give_up())
    assert done == [1]


def test_what_was_begun_for_somebody_who_went_away_is_undone():
    undone = []

    async def give_up():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await finish(lambda: "taken", undo=undone.append)

    asyncio.run(give_up())
    assert undone == ["taken"]
