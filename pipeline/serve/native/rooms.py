"""Rooms: start, list, rename, end, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.personas import DEFAULT
from pipeline.chat.turn import clean
from pipeline.serve.native.access import LOGGED_IN, OWN, Id, Me, TheStore, TheTalks, Who, refusals
from pipeline.serve.refused import Refused
from pipeline.serve.store import Store
from pipeline.serve.store.records import Manner, Room

router = APIRouter(tags=["rooms"])

Title = Annotated[str | None, Field(max_length=100, examples=["면접 이야기"])]
CharacterName = Annotated[str, Field(max_length=64, description="see GET /api/characters", examples=["반말친구"])]


class NewRoom(BaseModel):
    """A room to be opened."""

    model_config = ConfigDict(extra="forbid")
    title: Title = None
    character: CharacterName = DEFAULT


class RoomChange(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    title: Title = None
    character: CharacterName | None = None


@router.get("/characters", responses=LOGGED_IN)
def characters(who: Me, store: TheStore) -> list[Manner]:
    """The manners of speech (말투) there are."""
    return store.rooms.characters()


@router.get("/sentiments", responses=LOGGED_IN)
def sentiments(who: Me, talks: TheTalks) -> list[str]:
    """What a message can be given as its sentiment; none unless the model was trained to answer to one."""
    return list(talks.counselor.sentiments.values) if talks.counselor.sentiments else []


@router.post("/rooms", status_code=201, responses=refusals("no_character", "not_logged_in"))
def start(wanted: NewRoom, who: Me, store: TheStore) -> Room:
    """Open a room."""
    _known(store, wanted.character)
    return store.rooms.start(who.id, wanted.character, clean(wanted.title or "") or None)


@router.get("/rooms", responses=LOGGED_IN)
def rooms(
    who: Me,
    store: TheStore,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> list[Room]:
    """My rooms, the newest first."""
    return store.rooms.of(who.id, limit=limit, offset=offset)


@router.get("/rooms/{room}", responses=OWN)
def room(room: Id, who: Me, store: TheStore) -> Room:
    """One of my rooms."""
    return found(store, who.id, room)


@router.patch("/rooms/{room}", responses=OWN | refusals("no_character"))
def change(room: Id, wanted: RoomChange, who: Me, store: TheStore) -> Room:
    """Rename a room or change its character."""
    found(store, who.id, room)
    if wanted.character is not None:
        _known(store, wanted.character)
    title = None if wanted.title is None else clean(wanted.title)
    store.rooms.change(who.id, room, title=title, character=wanted.character)
    return found(store, who.id, room)


@router.post("/rooms/{room}/end", responses=OWN)
def end(room: Id, who: Me, store: TheStore) -> Room:
    """Close a room to new messages; it can still be read."""
    store.rooms.end(who.id, room)
    return found(store, who.id, room)


@router.delete("/rooms/{room}", status_code=204, responses=OWN | refusals("room_busy"))
async def delete(room: Id, who: Who, talks: TheTalks) -> None:
    """Erase a room, what was said in it and what is remembered of that."""
    await talks.delete_room(who, room)


def found(store: Store, user: str, room: str) -> Room:
    """The user's room of this id.

    Raises:
        Refused: not_found.
    """
    if (one := store.rooms.get(user, room)) is None:
        raise Refused("not_found")
    return one


def _known(store: Store, character: str) -> None:
    if character not in {manner.name for manner in store.rooms.characters()}:
        raise Refused("no_character")
