"""What is said in a room: read, send, stream, say again, change, delete, rate, choose between two replies."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.reply import Note
from pipeline.chat.turn import clean
from pipeline.serve.completions import while_read
from pipeline.serve.errors import as_api_error
from pipeline.serve.native.access import OWN, UNKEPT, Id, Me, TheStore, TheTalks, Who, refusals
from pipeline.serve.native.memory import Remembered
from pipeline.serve.native.rooms import CharacterName, found
from pipeline.serve.refused import Refused
from pipeline.serve.store.records import Choice, Exchanged, Pair
from pipeline.serve.talks import Answered

router = APIRouter(tags=["dialogues"])

Text = Annotated[str, Field(min_length=1, max_length=20_000, examples=["면접에서 떨어졌어. 나는 왜 이럴까?"])]
Sentiment = Annotated[
    Annotated[str, Field(max_length=64, examples=["이별"])] | None,
    Field(description="what a model trained on sentiments shall answer to, see GET /api/sentiments; null: predicted"),
]
SAYING = OWN | refusals("room_ended", "room_busy", "not_last", "no_character", "no_sentiment")
SAYING |= refusals("queue_exceeded", "pace_exceeded", "model_unavailable", *UNKEPT)
EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["piece", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
EVENTS: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": SAYING
    | {
        200: {
            "description": "`piece` events with `{text}`, then one `done` with an answer, or one `error` with "
            "`{detail, code}`",
            "content": {"text/event-stream": {"schema": EVENT}},
        }
    },
}


class Message(BaseModel):
    """What the user says."""

    model_config = ConfigDict(extra="forbid")
    text: Text
    character: CharacterName | None = Field(None, description="for this reply only; null: the room's")
    sentiment: Sentiment = None


class Edited(BaseModel):
    """The last message anew; null: as it was, for another reply to it."""

    model_config = ConfigDict(extra="forbid")
    text: Text | None = None
    sentiment: Sentiment = None


class Answer(BaseModel):
    """A reply that is kept, and what is shown once."""

    dialog: Exchanged
    introduction: str | None = Field(None, description="at the beginning of a room: what this is")
    recalled: tuple[Note, ...] = Field((), description="earlier exchanges that were in view")
    ended: bool = Field(False, description="the user said goodbye, and the room was closed")


class Two(BaseModel):
    """Two replies to choose from, or the one reply there is."""

    message: str = Field(description="what they answer to")
    id: str | None = Field(None, description="for POST /api/choices/{id}; null: there was nothing to choose")
    a: str
    b: str | None = None
    introduction: str | None = Field(None, description="at the beginning of a room: what this is")
    answer: Answer | None = Field(None, description="the reply, where there was nothing to choose")

    @classmethod
    def of(cls, pair: Pair, introduction: str | None) -> Two:
        """What of a pair the user is to see."""
        return cls(message=pair.a.message, id=pair.id, a=pair.a.reply, b=pair.b.reply, introduction=introduction)


class AskTwo(BaseModel):
    """A message that is to get two replies."""

    model_config = ConfigDict(extra="forbid")
    text: Text
    sentiment: Sentiment = None


class Chosen(BaseModel):
    """Which of two replies was better."""

    model_config = ConfigDict(extra="forbid")
    choice: Choice


class Opinion(BaseModel):
    """What the user thinks of a reply."""

    model_config = ConfigDict(extra="forbid")
    rating: Literal[-1, 1] | None = Field(description="1 👍, -1 👎, null: taken back")
    comment: str | None = Field(None, max_length=2000)


@router.get("/rooms/{room}/dialogs", responses=OWN)
def read(
    room: Id,
    who: Me,
    store: TheStore,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="only positions before this one")] = None,
) -> list[Exchanged]:
    """The newest exchanges of a room, oldest first."""
    found(store, who.id, room)
    return store.rooms.dialogs(who.id, room, limit=limit, before=before)


@router.post("/rooms/{room}/dialogs", status_code=201, responses=SAYING, response_model=Answer)
async def send(room: Id, message: Message, who: Who, talks: TheTalks, request: Request) -> Response:
    """Say something and wait for the whole reply; going away gives it up."""
    return await _whole(request, talks.send(who, room, message.text, message.character, message.sentiment), 201)


@router.post("/rooms/{room}/dialogs/stream", **EVENTS)
async def stream(room: Id, message: Message, who: Who, talks: TheTalks, request: Request) -> Response:
    """Say something and read the reply as it comes; going away gives it up."""
    return await _events(request, talks.send(who, room, message.text, message.character, message.sentiment))


@router.put("/dialogs/{dialog}", responses=SAYING, response_model=Answer)
async def again(dialog: Id, edited: Edited, who: Who, talks: TheTalks, request: Request) -> Response:
    """Change the last message of a room, or have another reply to it."""
    return await _whole(request, talks.again(who, dialog, edited.text, edited.sentiment), 200)


@router.put("/dialogs/{dialog}/stream", **EVENTS)
async def again_stream(dialog: Id, edited: Edited, who: Who, talks: TheTalks, request: Request) -> Response:
    """The same, as it comes."""
    return await _events(request, talks.again(who, dialog, edited.text, edited.sentiment))


@router.delete("/dialogs/{dialog}", status_code=204, responses=OWN | refusals("room_busy"))
async def delete(dialog: Id, who: Who, talks: TheTalks) -> None:
    """Erase one exchange, also from the memory."""
    await talks.delete(who, dialog)


@router.put("/dialogs/{dialog}/feedback", status_code=204, responses=OWN)
def feedback(dialog: Id, opinion: Opinion, who: Me, store: TheStore) -> None:
    """Say what I think of a reply."""
    if store.rooms.dialog(who.id, dialog) is None:
        raise Refused("not_found")
    store.rooms.rate(dialog, opinion.rating, clean(opinion.comment or "") or None)


@router.get("/dialogs/{dialog}/recalled", responses=OWN)
def recalled(dialog: Id, who: Who, store: TheStore, talks: TheTalks) -> list[Remembered]:
    """The remembered exchanges that were in view for a reply, as far as they are still remembered."""
    if (one := store.rooms.dialog(who.person.id, dialog)) is None:
        raise Refused("not_found")
    remembered = talks.counselor.export(who.memory)["exchanges"]
    return [Remembered.model_validate(exchange) for exchange in remembered if exchange["id"] in one.recalled]


@router.post("/rooms/{room}/choices", status_code=201, responses=SAYING, response_model=Two)
async def offer(room: Id, message: AskTwo, who: Who, talks: TheTalks, request: Request) -> Two | Response:
    """Say something and get two replies to choose from.

    The pair waits until one is chosen. Whoever says something else meanwhile keeps the first, and no preference.
    """
    made = await while_read(request, talks.offer(who, room, message.text, message.sentiment))
    if made is None:
        return Response(status_code=499)
    if isinstance(made, Answered):
        return Two(message=made.dialog.message, a=made.dialog.reply, answer=_answer(made))
    return Two.of(made.pair, made.introduction)


@router.get("/rooms/{room}/choices", responses=OWN)
def pending(room: Id, who: Me, store: TheStore, talks: TheTalks) -> list[Two]:
    """Two replies of which none was chosen yet, as they were offered; nothing if there is no choice to be made."""
    found(store, who.id, room)
    begun = store.rooms.dialogs(who.id, room, limit=1)
    introduction = None if begun else talks.counselor.greeting
    return [Two.of(pair, introduction) for pair in store.preferences.pending_in(who.id, room)]


@router.post("/choices/{pair}", responses=OWN | refusals("room_busy"))
async def choose(pair: Id, chosen: Chosen, who: Who, talks: TheTalks) -> Exchanged:
    """Take one of two replies into the room."""
    return await talks.choose(who, pair, chosen.choice)


def _answer(made: Answered) -> Answer:
    return Answer(dialog=made.dialog, introduction=made.introduction, recalled=made.recalled, ended=made.ended)


async def _whole(request: Request, pieces: AsyncGenerator[str | Answered, None], status: int) -> Response:
    async def last() -> Answered:
        return [item async for item in pieces if isinstance(item, Answered)][-1]

    made = await while_read(request, last())
    if made is None:
        return Response(status_code=499)
    # Handed to FastAPI as it is, it would be checked against its own type once more.
    return Response(_answer(made).model_dump_json(), status, media_type="application/json")


async def _events(request: Request, pieces: AsyncGenerator[str | Answered, None]) -> Response:
    first = await while_read(request, anext(pieces))  # what goes wrong before it is told by a status
    if first is None:
        return Response(status_code=499)
    return StreamingResponse(_told(first, pieces), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _told(item: str | Answered, pieces: AsyncGenerator[str | Answered, None]) -> AsyncIterator[str]:
    try:
        while not isinstance(item, Answered):
            yield _event("piece", {"text": item})
            item = await anext(pieces)
        yield _event("done", _answer(item).model_dump(mode="json"))
    except Exception as error:  # a stream that has begun can tell of a failure in no other way
        yield _event("error", as_api_error(error).plain)
    finally:
        await pieces.aclose()


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
