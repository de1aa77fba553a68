"""Who may do what: the dependencies that every native route begins with.

They are asynchronous so that only what asks the database takes a thread.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response
from starlette.datastructures import State

from pipeline.serve.accounts import Accounts, Login
from pipeline.serve.callers import COOKIE, Caller
from pipeline.serve.erasure import Member
from pipeline.serve.refused import Refused
from pipeline.serve.store import Store
from pipeline.serve.store.records import Person
from pipeline.serve.talks import Talks
from pipeline.serve.texts import texts

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{24}$", description="24 hexadecimal digits", examples=["0" * 24])]


async def store(request: Request) -> Store:
    """The database."""
    return request.app.state.store


async def talks(request: Request) -> Talks:
    """What can be done in rooms."""
    return request.app.state.talks


async def accounts(request: Request) -> Accounts:
    """The accounts.

    Raises:
        Refused: no_accounts, everybody is one here.
    """
    if request.app.state.accounts is None:
        raise Refused("no_accounts")
    return request.app.state.accounts


async def token(request: Request) -> str | None:
    """The token that came with the request."""
    return token_in(request)


async def address(request: Request) -> str:
    """Where the request comes from."""
    return address_of(request)


async def member(request: Request) -> Member:
    """Who talks; without accounts the one person of this machine.

    Raises:
        Refused: not_logged_in.
    """
    state = request.app.state
    if state.accounts is not None and token_in(request) is None:
        raise Refused("not_logged_in")
    found = await asyncio.to_thread(member_of, state, request)
    if found is None:
        raise Refused("not_logged_in")
    return found


def member_of(state: State, request: Request) -> Member | None:
    """Who sends a request to an application with this state; None: nobody who is logged in."""
    known: Accounts | None = state.accounts
    if known is None:
        return Member.of(Caller(None, address_of(request)), state.store.people.local())
    held = token_in(request)
    found = known.who(held) if held else None
    return Member.of(Caller(found[0].id, address_of(request)), found[0]) if found else None


def token_in(request: Request) -> str | None:
    """The token that a request brings, as a bearer or as a cookie."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return (value.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE)) or None


def address_of(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else ""


def stay(response: Response, login: Login, accounts: Accounts, request: Request) -> None:
    """Let a browser keep a log-in."""
    response.set_cookie(
        COOKIE,
        login.token,
        max_age=int(accounts.lasts.total_seconds()),
        httponly=True,
        samesite="lax",
        # Behind a proxy that ends TLS this request came over HTTP, but the browser's page did not.
        secure=request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://"),
    )


async def person_of(found: Annotated[Member, Depends(member)]) -> Person:
    """The account that asks."""
    return found.person


async def admin(found: Annotated[Member, Depends(member)]) -> Person:
    """The account that asks, an administrator's.

    Raises:
        Refused: not_found, for everybody else.
    """
    if found.person.role != "admin":
        raise Refused("not_found")
    return found.person


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI is to say about the refusals of a route."""
    known = texts()["refused"]
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        entry = found.setdefault(known[code]["status"], {"description": "", "content": {"application/json": {}}})
        entry["description"] = ", ".join(filter(None, [entry["description"], code]))
        examples = entry["content"]["application/json"].setdefault("examples", {})
        examples[code] = {"value": {"detail": known[code]["message"], "code": code}}
    return found


TheStore = Annotated[Store, Depends(store)]
TheTalks = Annotated[Talks, Depends(talks)]
TheAccounts = Annotated[Accounts, Depends(accounts)]
Who = Annotated[Member, Depends(member)]
Me = Annotated[Person, Depends(person_of)]
Admin = Annotated[Person, Depends(admin)]
TheToken = Annotated[str | None, Depends(token)]
Address = Annotated[str, Depends(address)]
UNKEPT = ("database_unavailable", "storage_unavailable")
LOGGED_IN = refusals("not_logged_in")
OWN = refusals("not_logged_in", "not_found")
