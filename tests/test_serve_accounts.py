"""The OpenAI-compatible API where accounts are on: keys, memories apart, a pace for each."""

from __future__ import annotations

import itertools
import json

import httpx
import openai
import pytest
from argon2 import PasswordHasher
from chat_standin import ScriptedBackend
from langchain_core.embeddings import DeterministicFakeEmbedding
from serve_standin import GOOD, serving

from pipeline.chat.counselor import Counselor
from pipeline.serve.accounts import Accounts
from pipeline.serve.app import create_app
from pipeline.serve.options import ServeOptions
from pipeline.serve.store import Store
from rag.memory import MemoryStore
from rag.options import MemoryOptions

PASSWORD = "보통보다 긴 비밀번호 1"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(address, application) with two accounts, minji and jun."""
    folder = tmp_path_factory.mktemp("service")
    memory = MemoryStore(folder / "memory", DeterministicFakeEmbedding(size=32), MemoryOptions(lexical=0))
    store = Store.open(f"sqlite:///{folder / 'service.db'}")
    app = create_app(Counselor(ScriptedBackend(GOOD), memory=memory), ServeOptions(accounts=True, per_minute=8), store)
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    app.state.accounts = Accounts(store, hasher=quick)
    for name in ("minji", "jun"):
        app.state.accounts.sign_up(name, PASSWORD)
    with serving(app) as (address, _):
        yield address, app


def client(service, name):
    address, app = service
    token = app.state.accounts.log_in(name, PASSWORD, kind="api").token
    return openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)


def say(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="gonggam", messages=messages, **more)


def test_without_a_key_nothing_is_told(service):
    address, _ = service
    for key in ("wrong", "x y"):
        headers = {"Authorization": f"Bearer {key}"}
        for path in ("/v1/models", "/v1/models/base"):
            answer = httpx.get(address + path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        say(stranger, "면접 떨어졌어")
    assert caught.value.code == "invalid_api_key"
    assert httpx.get(f"{address}/health/ready").status_code == 200


def test_user_names_a_memory_of_the_own_account_only(service):
    app = service[1]
    with client(service, "minji") as minji, client(service, "jun") as jun:
        assert say(minji, "면접에서 떨어졌어", user="me").gonggam["exchange"]
        assert say(jun, "여행 가서 신났어", user="me").gonggam["exchange"]
        assert say(minji, "오늘은 비가 와").gonggam["exchange"] is None
        # However a name is written, it reaches no other account's memory.
        minji_id = app.state.store.people.find("minji")[0].id
        for name in (json.dumps([minji_id, "me"]), minji_id, f'{minji_id}", "me'):
            assert say(jun, "면접에서 떨어졌어", user=name).gonggam["recalled"] == []
    stored = app.state.counselor.export(json.dumps([minji_id, "me"]))["exchanges"]
    assert [exchange["user"] for exchange in stored] == ["면접에서 떨어졌어"]
    assert app.state.store.people.memories(minji_id) == [json.dumps([minji_id, "me"])]


def test_a_cookie_is_a_key_only_for_the_own_page(service):
    address, app = service
    token = app.state.accounts.log_in("minji", PASSWORD).token
    body = {"model": "gonggam", "messages": [{"role": "user", "content": "안녕하세요 오늘 힘들었어"}]}
    cookie = {"Cookie": f"gonggam_session={token}"}
    assert httpx.post(f"{address}/v1/chat/completions", json=body, headers=cookie).status_code == 403
    own = {**cookie, "Origin": address}
    assert httpx.post(f"{address}/v1/chat/completions", json=body, headers=own).status_code == 200
    foreign = {**cookie, "Origin": "http://evil.example"}
    assert httpx.post(f"{address}/v1/chat/completions", json=body, headers=foreign).status_code == 403


def test_routes_are_counted_by_their_declared_path(service):
    address, app = service
    token = app.state.accounts.log_in("minji", PASSWORD, kind="api").token
    headers = {"Authorization": f"Bearer {token}"}
    room = httpx.post(f"{address}/api/rooms", json={}, headers=headers).json()["id"]
    assert httpx.get(f"{address}/api/rooms/{room}/dialogs", headers=headers).json() == []
    counted = httpx.get(f"{address}/metrics").text
    assert 'gonggam_requests_total{method="GET",route="/api/rooms/{room}/dialogs",status="200"} 1.0' in counted
    assert room not in counted


def test_an_account_has_its_pace(service):
    app = service[1]
    app.state.accounts.sign_up("hasty", PASSWORD)
    with client(service, "hasty") as hasty, client(service, "minji") as minji:
        for _ in range(8):
            say(hasty, "면접에서 떨어졌어", user="a")
        endless = (say(hasty, "면접에서 떨어졌어", user="b") for _ in itertools.count())
        with pytest.raises(openai.RateLimitError) as caught:
            list(endless)  # several may pass: a part of the minute has gone by
        assert 0 < int(caught.value.response.headers["Retry-After"]) <= 60
        assert say(minji, "나는 천천히 말해").choices


def test_a_history_is_not_recalled_beside_itself(service):
    """The exchange of the first turn is remembered; sent along as history it is not recalled as well."""
    with client(service, "jun") as jun:
        first = say(jun, "강아지가 아파서 걱정이야", user="dog")
        history = [
            {"role": "user", "content": "강아지가 아파서 걱정이야"},
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "강아지가 아파서 걱정이야"},
        ]
        again = jun.chat.completions.create(model="gonggam", messages=history, user="dog")
        elsewhere = jun.chat.completions.create(model="gonggam", messages=[*history[1:2], *history[2:]], user="dog")
    assert first.gonggam["exchange"] not in [note["id"] for note in again.gonggam["recalled"]]
    assert first.gonggam["exchange"] in [note["id"] for note in elsewhere.gonggam["recalled"]]
