"""OpenAI's API over a real server, spoken by the real clients."""

from __future__ import annotations

from functools import partial

import httpx
import openai
import pytest
from chat_standin import ScriptedBackend, tiny_adapter, tiny_model
from serve_standin import GOOD, serving

from pipeline.chat.backends import BackendError
from pipeline.chat.counselor import Counselor
from pipeline.chat.options import ChatOptions
from pipeline.chat.sentiment import Sentiments
from pipeline.serve.app import create_app
from pipeline.serve.options import ServeOptions

HARD = [{"role": "user", "content": "면접 떨어졌어"}]
TALK = [
    {"role": "system", "content": "짧게 답해요."},
    *HARD,
    {"role": "assistant", "content": "많이 속상하셨겠어요."},
    {"role": "user", "content": "응"},
    {"role": "user", "content": [{"type": "text", "text": "이제 뭘 하지"}]},
]


@pytest.fixture(scope="module")
def backend():
    backend = ScriptedBackend(GOOD)
    backend.adapters = ("sft", "dpo")
    return backend


@pytest.fixture(scope="module")
def address(backend):
    app = create_app(Counselor(backend, ChatOptions(max_new_tokens=100)), ServeOptions(max_body_kb=64))
    with serving(app) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_whole_answer(client, backend):
    answer = client.chat.completions.create(
        model="dpo:할아버지", messages=TALK, max_tokens=50, temperature=0.1, top_p=0.5, seed=3, n=1, user="minji"
    )
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", GOOD, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 7
    assert answer.model == "dpo:할아버지"
    assert answer.gonggam["persona"] == "할아버지"
    asked = backend.asked[-1]
    assert [message["role"] for message in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.messages[0]["content"].endswith("짧게 답해요.")
    assert asked.messages[-1]["content"].endswith("응\n이제 뭘 하지")
    said = asked.settings
    assert (said.adapter, said.max_new_tokens, said.temperature, said.top_p, said.seed) == ("dpo", 50, 0.1, 0.5, 3)


def test_what_the_recipe_allows_is_not_exceeded_and_base_means_no_adapter(client, backend):
    client.chat.completions.create(model="base", messages=HARD, max_completion_tokens=5000)
    assert (backend.asked[-1].settings.max_new_tokens, backend.asked[-1].settings.adapter) == (100, "none")


def test_a_conversation_keeps_its_name_so_that_its_prefix_is_found_again(client, backend):
    client.chat.completions.create(model="gonggam", messages=HARD)
    first = backend.asked[-1].settings.session
    client.chat.completions.create(model="gonggam", messages=TALK)
    assert backend.asked[-1].settings.session == first
    client.chat.completions.create(model="gonggam", messages=HARD, user="other")
    assert first not in (None, backend.asked[-1].settings.session)


def test_a_stream(client):
    stream = client.chat.completions.create(
        model="gonggam", messages=HARD, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, pieces)) == GOOD
    assert len([piece for piece in pieces if piece]) == 2  # sentence by sentence
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].gonggam["source"] == "model"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stop", ["지금", ["zzz", " 지금"]])
def test_the_reply_ends_before_a_stop_text(client, stop):
    answer = client.chat.completions.create(model="gonggam", messages=HARD, stop=stop)
    assert answer.choices[0].message.content == "많이 속상하셨겠어요."


def test_high_risk_is_answered_without_the_model(client, backend):
    asked = len(backend.asked)
    answer = client.chat.completions.create(model="gonggam", messages=[{"role": "user", "content": "오늘 죽으려고 해"}])
    assert answer.gonggam["source"] == "safety"
    assert "109" in answer.choices[0].message.content
    assert len(backend.asked) == asked


def test_a_danger_told_before_is_not_lost_where_the_caller_keeps_the_conversation(client):
    talk = [{"role": "user", "content": "오늘 죽으려고 해"}]
    answer = client.chat.completions.create(model="gonggam", messages=talk)
    talk += [{"role": "assistant", "content": answer.choices[0].message.content}, {"role": "user", "content": "네"}]
    assert client.chat.completions.create(model="gonggam", messages=talk).gonggam["risk"] == "high"
    assert client.chat.completions.create(model="gonggam", messages=talk[2:]).gonggam["risk"] == "none"


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names[:4] == ["gonggam", "base", "sft", "dpo"]
    assert "dpo:선비" in names
    assert client.models.retrieve("dpo:선비").owned_by == "gonggam"


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"extra_body": {"foo": 1}}, openai.BadRequestError, "unknown_parameter", "foo"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "봐"}, {"type": "image_url"}]}]},
            openai.BadRequestError,
            "invalid_value",
            "messages[0].content[1].type",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            openai.BadRequestError,
            "invalid_value",
            "messages[0].content",
        ),
        ({"stop": list("abcde")}, openai.BadRequestError, "invalid_value", "stop"),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, "invalid_value", "messages[0].role"),
        ({"messages": [*HARD, {"role": "assistant", "content": "네"}]}, openai.BadRequestError, "invalid_value", None),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "dpo:없음"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"sentiment": "이별"}}, openai.BadRequestError, "unsupported_parameter", "sentiment"),
        ({"extra_body": {"messages": None}}, openai.BadRequestError, "invalid_value", "messages"),
    ],
)
def test_errors_in_openais_form(client, change, kind, code, param):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "gonggam", "messages": HARD, **change})
    assert (caught.value.code, caught.value.type) == (code, "invalid_request_error")
    assert caught.value.param == param or param is None


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"[" * 5000, b'"\xff"', b""])
def test_a_body_that_is_no_request(address, body):
    answer = httpx.post(f"{address}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_asks_for_nothing_is_accepted(client):
    answer = client.chat.completions.create(
        model="gonggam", messages=HARD, frequency_penalty=0, logprobs=False, tools=[], metadata={"a": "b"}, store=False
    )
    assert answer.choices[0].message.content == GOOD


def test_langchain(address):
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="dpo", base_url=f"{address}/v1", api_key="none", max_retries=0, temperature=0.3, max_tokens=40, seed=1
    )
    answer = model.invoke([SystemMessage("짧게"), HumanMessage("면접 떨어졌어"), AIMessage("네"), HumanMessage("응")])
    assert answer.content == GOOD
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream("면접 떨어졌어")) == GOOD


def test_a_sentiment_comes_in_the_extra_body():
    from langchain_openai import ChatOpenAI

    backend = ScriptedBackend(GOOD)
    app = create_app(Counselor(backend, sentiments=Sentiments({"일상": "0", "이별": "1"})), ServeOptions())
    with serving(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        ask = partial(client.chat.completions.create, model="gonggam", messages=HARD)
        for given in ({"sentiment": "이별"}, {}):
            ask(extra_body=given)
        chain = ChatOpenAI(model="gonggam", base_url=f"{address}/v1", api_key="x", extra_body={"sentiment": "이별"})
        chain.invoke("보고 싶다")
        assert [asked.messages[-1]["sentiment"] for asked in backend.asked] == ["1", "0", "1"]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="one of: 일상, 이별") as caught:
                ask(extra_body={"sentiment": "분노"}, stream=stream)
            assert (caught.value.code, caught.value.param) == ("invalid_value", "sentiment")
        described = app.openapi()["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
        assert "predicted" in described["application/json"]["schema"]["properties"]["sentiment"]["description"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_is_told(stream):
    app = create_app(Counselor(ScriptedBackend("아", fail=BackendError("server down"))), ServeOptions())
    with serving(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="gonggam", messages=HARD, stream=stream)
        assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")
        assert int(caught.value.response.headers["Retry-After"]) > 0


def test_a_stream_that_fails_late_says_so():
    app = create_app(Counselor(ScriptedBackend(GOOD + " 그", fail=BackendError("server down"))), ServeOptions())
    with serving(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="gonggam", messages=HARD, stream=True)
        with pytest.raises(openai.APIError, match="server down"):
            list(stream)


def test_a_real_model_with_its_adapters(tmp_path):
    from pipeline.chat.local import load_local

    model = tiny_model(tmp_path / "model")
    adapters = {name: tiny_adapter(model, tmp_path / name, seed) for seed, name in enumerate(("sft", "dpo"))}
    bot = Counselor(load_local(str(model), adapters=adapters), ChatOptions(max_new_tokens=8, gate={"retries": 0}))
    app = create_app(bot, ServeOptions())
    with serving(app) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        ask = client.chat.completions.create
        first = ask(model="dpo", messages=HARD, max_tokens=4)
        assert first.usage.completion_tokens <= 4
        again = ask(model="dpo", messages=[*HARD, {"role": "assistant", "content": "네."}, *HARD], max_tokens=4)
        assert again.usage.prompt_tokens_details.cached_tokens > 20
        other = ask(model="sft", messages=HARD, max_tokens=4)
        assert other.usage.prompt_tokens_details.cached_tokens == 0
