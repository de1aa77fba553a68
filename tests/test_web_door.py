"""The page without a browser: who is let in, which routes there are, forms, what is shown to whom."""

from __future__ import annotations

import json
import re

import pytest
from starlette.testclient import TestClient
from store_standin import PASSWORD, make_app

from pipeline.chat.resources import data
from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.callers import COOKIE, Caller
from pipeline.serve.erasure import Member
from pipeline.serve.web.looks import words
from pipeline.serve.web.scenes import Scenes

FORM = {"name": "minji", "password": PASSWORD, "agree": "true"}
CLOSED = [
    "config",
    "login",
    "monitoring",
    "robots.txt",
    "gradio_api/info",
    "gradio_api/runs",
    "gradio_api/heartbeat/x",
    "gradio_api/queue/data",
    "gradio_api/proxy=https://example.com/",
    "gradio_api/file=/etc/passwd",
]
OURS = {"Origin": "http://testserver"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return make_app(tmp_path_factory.mktemp("door"), page=True)


@pytest.fixture
def client(app):
    return TestClient(app, raise_server_exceptions=False, headers=OURS)


def come_in(client, name):
    made = client.post("/sign-up", data=FORM | {"name": name}, follow_redirects=False)
    assert (made.status_code, made.headers["location"]) == (303, "/chat/")
    assert re.search(r"HttpOnly; .*SameSite=lax", made.headers["set-cookie"])


def member(app, name):
    person, _ = app.state.store.people.find(name)
    return Member.of(Caller(person.id, ""), person)


def test_nobody_comes_in_without_logging_in(client):
    for path in ("/", "/chat", "/chat/", "/account", "/account/export", "/consent"):
        assert client.get(path).url.path == "/log-in", path
    assert client.post("/chat/gradio_api/run/predict", json={"data": [], "fn_index": 0}).status_code == 401
    wrong = client.post("/log-in", data={"name": "nobody", "password": "<b>틀린 비밀번호</b>"})
    assert wrong.status_code == 401
    assert "맞지 않아요" in wrong.text
    assert COOKIE not in client.cookies


def test_of_gradio_there_is_only_what_the_page_needs(client):
    come_in(client, "gradio")
    page = client.get("/chat/")
    assert page.status_code == 200
    assert client.get("/chat/theme.css").status_code == 200
    for path in ("gradio_api/upload", "gradio_api/queue/join", "gradio_api/component_server", "login"):
        assert client.post(f"/chat/{path}", json={}).status_code == 404, path
    for path in CLOSED:
        assert client.get(f"/chat/{path}").status_code == 404, path
    config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", page.text, re.S)[1])
    assert not any(event["queue"] for event in config["dependencies"])
    assert (config["analytics_enabled"], config["footer_links"]) == (False, [])


def test_no_other_page_reads_the_chat_and_its_files_are_kept_as_long_as_they_stay_the_same(client):
    come_in(client, "reader")
    page = client.get("/chat/", headers={"Origin": "http://localhost:3000"})
    assert "access-control-allow-origin" not in page.headers
    assert page.headers["cache-control"] == "no-store"
    script = re.search(r"assets/index-[\w-]+\.js", page.text)[0]
    assert "immutable" in client.get(f"/chat/{script}").headers["cache-control"]
    ours = client.get("/static/talk.js")
    assert ours.headers["cache-control"] == "no-cache"
    assert client.get("/static/talk.js", headers={"If-None-Match": ours.headers["etag"]}).status_code == 304


def test_people_are_told_on_a_page_and_programs_in_their_form(client):
    person = {"Accept": "text/html,application/xhtml+xml"}
    for path, status, words_ in (("/nowhere", 404, "찾으시는 것이 없어요"), ("/log-in", 422, "다시 적어 주세요")):
        method = "GET" if status == 404 else "POST"
        told = client.request(method, path, headers=person)
        assert told.status_code == status
        assert words_ in told.text
        assert '<html lang="ko">' in told.text
        assert client.request(method, path).headers["content-type"] == "application/json"
    assert client.get("/api/nowhere", headers=person).json()["code"] == "not_found"


def test_nothing_is_erased_before_the_holder_is_sure(app, client):
    come_in(client, "sure")
    who = member(app, "sure")
    room = Scenes(app.state).start(who, None, "기본")[0]["open"]
    app.state.counselor.remember("나의 비밀", reply_of(app), user=who.memory, session=room)
    for path in ("/account/forget", "/account/talks"):
        assert client.post(path).status_code == 400
    assert Scenes(app.state).notes(who, None)["notes"] != []
    assert "모두 지웠어요" in client.post("/account/forget", data={"sure": "true"}).text
    assert Scenes(app.state).notes(who, None)["notes"] == []
    assert app.state.store.rooms.get(who.person.id, room)
    assert "대화를 모두 지웠어요" in client.post("/account/talks", data={"sure": "true"}).text
    assert app.state.store.rooms.of(who.person.id) == []


def test_forms_from_other_sites_are_refused(client):
    come_in(client, "forms")
    evil = {"Origin": "https://evil.example"}
    assert client.post("/account/leave", data={"confirmed": "모두 지우기"}, headers=evil).status_code == 403
    assert client.post("/log-out", headers=evil).status_code == 403
    told = client.post("/api/rooms", json={}, headers=evil)
    assert (told.status_code, told.json()["code"]) == (403, "cross_site")
    assert "다른 곳에서" in told.json()["detail"]
    long = client.post("/api/rooms", content=b"x" * 2_000_000)
    assert (long.status_code, long.json()["code"]) == (413, "request_too_large")
    assert client.post("/log-out").url.path == "/log-in"


def test_agreeing_comes_first_and_can_be_taken_back(app, client):
    assert client.post("/sign-up", data={**FORM, "agree": ""}).status_code in (400, 422)
    assert app.state.store.people.find("minji") is None
    come_in(client, "minji")
    user = member(app, "minji").person.id
    app.state.store.people.agree(user, "terms", TERMS_VERSION, False)
    assert client.get("/chat/").url.path == "/consent"
    assert client.post("/consent", data={}).status_code == 400
    client.post("/consent", data={"agree": "true", "training": "true"})
    assert client.get("/chat/").url.path == "/chat/"
    assert "checked" in client.get("/account").text
    client.post("/account/consent", data={})
    assert "checked" not in client.get("/account").text


def test_password_and_leaving_ask_for_the_holder(app, client):
    come_in(client, "jiho")
    assert (
        client.post("/account/password", data={"old": "아닌 비밀번호", "new": "새로운 비밀번호 7"}).status_code == 401
    )
    assert "다른 기기" in client.post("/account/password", data={"old": PASSWORD, "new": "새로운 비밀번호 7"}).text
    leave = {"confirmed": "모두 지우기", "password": "새로운 비밀번호 7"}
    assert client.post("/account/leave", data=leave | {"confirmed": "응"}).status_code == 400
    assert client.post("/account/leave", data=leave | {"password": PASSWORD}).status_code == 401
    assert app.state.store.people.find("jiho")
    assert "모두 지웠어요" in client.post("/account/leave", data=leave).text
    assert app.state.store.people.find("jiho") is None


def test_a_room_of_somebody_else_is_not_there(app, client):
    for name in ("owner", "guest"):
        come_in(client, name)
    scenes, owner, guest = Scenes(app.state), member(app, "owner"), member(app, "guest")
    room = scenes.start(owner, None, "기본")[0]["open"]
    app.state.counselor.remember("나의 비밀", reply_of(app), user=owner.memory, session=room)
    assert scenes.open(guest, {"room": room}, None)[:2] == (
        {"open": None, "rooms": [], "more": False},
        {"room": None, "title": None, "ended": False, "more": False, "dialogs": [], "pending": []},
    )
    scenes.speak(guest, None, {"open": room}, "할아버지")
    assert app.state.store.rooms.get(owner.person.id, room).character == "기본"
    (note,) = scenes.notes(owner, None)["notes"]
    assert scenes.forget(guest, {"note": note["id"]}, None)["notes"] == []
    assert scenes.notes(owner, None)["notes"] == [note]
    for nonsense in (None, [], "x", {"room": 7}, {"open": {"a": 1}}):
        assert scenes.open(guest, nonsense, nonsense)[0]["open"] is None
        assert scenes.more_rooms(guest, None, nonsense)["rooms"] == scenes.more_notes(guest, None, nonsense)["notes"]
        assert "아직" in scenes.moods(guest, None, nonsense)


def reply_of(app):
    from pipeline.chat.reply import Reply

    return Reply(text="네, 들었어요.", source="model", risk="none", memorable=True)


def test_without_accounts_one_person_agrees_first(tmp_path):
    client = TestClient(make_app(tmp_path, accounts=False, page=True), headers=OURS)
    assert client.get("/").url.path == "/consent"
    assert client.post("/consent", data={"agree": "true"}).url.path == "/chat/"
    assert "계정 없이" in client.get("/account").text
    assert "모두 지웠어요" in client.post("/account/leave", data={"confirmed": "모두 지우기"}).text
    assert client.get("/").url.path == "/consent"


def test_texts_and_help_lines_agree_with_the_counsellors():
    said = json.dumps(data("crisis"), ensure_ascii=False)
    assert all(line["number"] in said for line in data("help_lines"))
    assert set(words()["feelings"]) == set(data("texts")["feelings"])
