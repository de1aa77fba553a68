"""POST /v1/chat/completions and GET /v1/models: any client of OpenAI's API can talk to the counsellor.

The caller holds the conversation and sends all of it each time, so that nothing of it stays in this process. `model`
names an adapter of the run and a persona (``dpo:할아버지``); `user` names a memory of the caller's account.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from pipeline.chat.counselor import Counselor
from pipeline.chat.personas import personas
from pipeline.chat.reply import Reply
from pipeline.chat.session import exchanges
from pipeline.chat.turn import Ask, Sampling, clean
from pipeline.serve.callers import Caller, Here
from pipeline.serve.errors import ApiError, as_api_error
from pipeline.serve.wire import Answer, ChatMessage, CompletionRequest

DEFAULT = "gonggam"
"""The model that means: what the recipe says."""

router = APIRouter(prefix="/v1", tags=["OpenAI"])
T = TypeVar("T")


def model_names(counselor: Counselor) -> list[str]:
    """Every name that ``model`` may have: an adapter, or an adapter and a persona."""
    adapters = (DEFAULT, "base", *counselor.backend.adapters)
    manners = list(personas())[1:]
    return [*adapters, *(f"{adapter}:{manner}" for adapter in adapters for manner in manners)]


def chosen(model: str, counselor: Counselor) -> tuple[str | None, str | None]:
    """Adapter and persona that a model's name stands for.

    Raises:
        ApiError: 404, there is no such model.
    """
    adapter, _, manner = model.partition(":")
    known = (DEFAULT, "base", *counselor.backend.adapters)
    if adapter not in known or (manner and manner not in personas()):
        message = f"The model does not exist. Models are {', '.join(known)}, each also with :말투; see GET /v1/models."
        raise ApiError(404, message, param="model", code="model_not_found")
    return {DEFAULT: None, "base": "none"}.get(adapter, adapter), manner or None


def as_ask(request: CompletionRequest, caller: Caller, counselor: Counselor) -> Ask:
    """The newest message with all that came before it.

    Raises:
        ApiError: the last message is not the user's, or the model does not know the sentiment.
    """
    adapter, persona = chosen(request.model, counselor)
    _check_sentiment(request.sentiment, counselor)
    *history, newest = joined([message for message in request.messages if message.role in ("user", "assistant")]) or [
        {"role": "", "content": ""}
    ]
    if newest["role"] != "user" or request.messages[-1].role == "assistant":
        raise ApiError(400, "The last message must be the user's.", param="messages", code="invalid_value")
    system = "\n\n".join(message.text for message in request.messages if message.role in ("system", "developer"))
    return Ask(
        newest["content"],
        user=caller.memory_of(request.user) if request.user else None,
        persona=persona,
        session=_conversation(caller, request, history[0]["content"] if history else newest["content"]),
        adapter=adapter,
        sentiment=request.sentiment,
        history=exchanges(history),
        system=system.strip() or None,
        sampling=Sampling(request.limit, request.temperature, request.top_p, request.seed, request.stops),
    )


def _check_sentiment(given: str | None, counselor: Counselor) -> None:
    if given is None:
        return
    if counselor.sentiments is None:
        message = "Unsupported parameter: 'sentiment' is not supported with this model."
        raise ApiError(400, message, param="sentiment", code="unsupported_parameter")
    if not counselor.sentiments.knows(given):
        message = f"Invalid value for 'sentiment'. It is one of: {', '.join(counselor.sentiments.values)}."
        raise ApiError(400, message, param="sentiment", code="invalid_value")


def joined(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages in which nobody speaks twice in a row."""
    return [
        {"role": role, "content": "\n".join(message.text for message in run)}
        for role, run in groupby(messages, key=lambda message: message.role)
    ]


@router.get("/models")
async def list_models(request: Request, caller: Here) -> dict[str, Any]:
    """The models: adapters of the run, each with every manner of speech."""
    state = request.app.state
    return {"object": "list", "data": [_model(name, state.began) for name in model_names(state.counselor)]}


@router.get("/models/{model}")
async def get_model(model: str, request: Request, caller: Here) -> dict[str, Any]:
    """One model."""
    chosen(model, request.app.state.counselor)
    return _model(model, request.app.state.began)


async def _read(request: Request) -> CompletionRequest:
    try:
        return CompletionRequest.read(json.loads(await request.body()))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_input=False, include_url=False)) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of the request is not valid JSON.", code="invalid_json") from None


_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": CompletionRequest.model_json_schema()}},
    }
}


@router.post("/chat/completions", openapi_extra=_SCHEMA, response_model=None)
async def complete(request: Request, caller: Here, wanted: Annotated[CompletionRequest, Depends(_read)]) -> Response:
    """Answer the newest message of a conversation, whole or as a stream of server-sent events."""
    state = request.app.state
    ask, answer = as_ask(wanted, caller, state.counselor), Answer(wanted.model)
    if ask.user:
        ask = await run_in_threadpool(_remembered, ask, wanted, caller, state)
    owner = caller.account or wanted.user or caller.address
    if not wanted.stream:
        reply = await while_read(request, state.queue.reply(ask, owner))
        return Response(status_code=499) if reply is None else JSONResponse(answer.whole(reply))
    pieces = state.queue.stream(ask, owner)
    begun = await while_read(request, _begun(pieces))
    if begun is None:
        return Response(status_code=499)
    include_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    events = _events(answer, begun, pieces, include_usage=include_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _remembered(ask: Ask, wanted: CompletionRequest, caller: Caller, state: State) -> Ask:
    """Note whose memory this is, and find the history's exchanges in it, so that none is recalled beside itself."""
    if caller.account:
        state.store.people.note_memory(caller.account, ask.user)
    memory = state.counselor.memory
    if memory is None or not ask.history:
        return ask
    written = memory.for_user(ask.user).recent(len(ask.history), session=ask.session)
    ids = {past.user: past.id for past in written}
    return replace(ask, history=[replace(turn, exchange=ids.get(clean(turn.user))) for turn in exchanges(ask.history)])


async def _begun(pieces: AsyncIterator[str | Reply]) -> str | Reply:
    """The first piece; what goes wrong before it can still be told by a status."""
    return await anext(pieces)


async def _events(
    answer: Answer, first: str | Reply, pieces: AsyncGenerator[str | Reply, None], *, include_usage: bool
) -> AsyncIterator[str]:
    try:
        yield answer.begin()
        item = first
        while not isinstance(item, Reply):
            yield answer.piece(item)
            item = await anext(pieces)
        for event in answer.end(item, include_usage=include_usage):
            yield event
    except Exception as error:  # a stream that has begun can tell of a failure in no other way
        yield answer.failure(as_api_error(error))
    finally:
        await pieces.aclose()


async def while_read(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; it is given up, and the result is None, once the client has gone away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return None
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _conversation(caller: Caller, request: CompletionRequest, first: str) -> str:
    """A name under which the model keeps this conversation's computed prefix from turn to turn."""
    whose = json.dumps([caller.owner, request.user, first]).encode("utf-8", "surrogatepass")
    return "v1-" + hashlib.sha256(whose).hexdigest()[:24]


def _model(name: str, began: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": began, "owned_by": "gonggam"}
