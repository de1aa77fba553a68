"""Accounts: sign up, log in and out, change the password, consents, take everything along, leave."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.callers import COOKIE
from pipeline.serve.native.access import (
    LOGGED_IN,
    Address,
    Me,
    TheAccounts,
    TheStore,
    TheTalks,
    TheToken,
    Who,
    refusals,
    stay,
)  # fmt: skip
from pipeline.serve.native.export import everything
from pipeline.serve.store.records import Agreement, Kind, Person

router = APIRouter(tags=["accounts"])

Name = Annotated[str, Field(max_length=64, description="2 to 32 letters, digits, dots, dashes", examples=["minji"])]
Password = Annotated[SecretStr, Field(max_length=128, description="8 to 128 characters", examples=["파란 고래 42마리"])]


class SignUp(BaseModel):
    """A new account; signing up is agreeing to the terms."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    password: Password
    agree: Literal[True] = Field(description="agrees to the terms that are shown")
    training: bool = Field(False, description="lets choices between two replies be used to improve the model")


class Credentials(BaseModel):
    """Who wants to log in."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    password: Password
    cookie: bool = Field(False, description="true: a cookie for a browser; false: a token in the answer")


class LoggedIn(BaseModel):
    """A log-in."""

    person: Person
    expires_at: datetime
    token: str | None = Field(None, description="send it as Authorization: Bearer …; null where a cookie was set")


class PasswordChange(BaseModel):
    """The password there was and the one there is to be."""

    model_config = ConfigDict(extra="forbid")
    old: Password
    new: Password


class ConsentChange(BaseModel):
    """A consent given or taken back."""

    model_config = ConfigDict(extra="forbid")
    granted: bool


class Left(BaseModel):
    """What became of the data."""

    erased: Literal[True] = True
    files_clean: bool = Field(description="false: the database was busy, its file is written anew at the next clean-up")


@router.post("/accounts", status_code=201, responses=refusals("bad_name", "name_taken", "too_many"))
def sign_up(wanted: SignUp, accounts: TheAccounts, address: Address) -> Person:
    """Sign up."""
    password = wanted.password.get_secret_value()
    return accounts.sign_up(wanted.name, password, address=address, training=wanted.training)


@router.post("/session", responses=refusals("bad_login", "too_many"))
def log_in(
    given: Credentials, accounts: TheAccounts, address: Address, request: Request, response: Response
) -> LoggedIn:
    """Log in."""
    kind: Kind = "web" if given.cookie else "api"
    login = accounts.log_in(given.name, given.password.get_secret_value(), kind=kind, address=address)
    if given.cookie:
        stay(response, login, accounts, request)
    return LoggedIn(person=login.person, expires_at=login.expires_at, token=None if given.cookie else login.token)


@router.delete("/session", status_code=204, responses=LOGGED_IN)
def log_out(who: Me, accounts: TheAccounts, token: TheToken, response: Response) -> None:
    """Log out."""
    accounts.log_out(token or "")
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


@router.get("/me", responses=LOGGED_IN)
def me(who: Me) -> Person:
    """Who I am."""
    return who


@router.put("/me/password", status_code=204, responses=refusals("bad_login", "bad_password", "too_many"))
def change_password(change: PasswordChange, who: Me, accounts: TheAccounts, token: TheToken, address: Address) -> None:
    """Change the password; every other log-in ends."""
    old, new = change.old.get_secret_value(), change.new.get_secret_value()
    accounts.change_password(who, old, new, token=token, address=address)


@router.get("/me/consents", responses=LOGGED_IN)
def consents(who: Me, store: TheStore) -> list[Agreement]:
    """What I agreed to."""
    return store.people.agreements(who.id)


@router.put("/me/consents/{kind}", responses=LOGGED_IN)
def consent(kind: Literal["terms", "training"], change: ConsentChange, who: Me, store: TheStore) -> list[Agreement]:
    """Agree to something, or take it back."""
    store.people.agree(who.id, kind, TERMS_VERSION, change.granted)
    return store.people.agreements(who.id)


@router.get("/me/export", responses=LOGGED_IN)
def export(who: Who, store: TheStore, talks: TheTalks) -> dict[str, Any]:
    """Everything there is of me."""
    return everything(store, talks.counselor, who)


@router.delete("/me", responses=refusals("bad_login", "too_many"))
def leave(
    password: Annotated[Password, Body(embed=True)],
    who: Who,
    accounts: TheAccounts,
    talks: TheTalks,
    address: Address,
    response: Response,
) -> Left:
    """Delete my account with all that belongs to it: rooms, messages, memory and its vectors."""
    accounts.confirm(who.person, password.get_secret_value(), address=address)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return Left(files_clean=talks.erasure.everything(who, account=True))


@router.delete("/me/data", responses=LOGGED_IN)
def erase(who: Who, talks: TheTalks) -> Left:
    """Erase everything I said and all that is remembered of me; the account stays."""
    return Left(files_clean=talks.erasure.everything(who, account=False))
