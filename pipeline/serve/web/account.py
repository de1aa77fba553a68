"""My account: consents, password, taking everything along, forgetting, leaving."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.erasure import Member
from pipeline.serve.errors import ApiError
from pipeline.serve.native.access import Address, TheAccounts, TheStore, TheTalks, TheToken, Who
from pipeline.serve.native.export import everything
from pipeline.serve.store import Store
from pipeline.serve.store.people import LOCAL_NAME
from pipeline.serve.web.door import agreed
from pipeline.serve.web.entry import Password, Ticked, without_cookie
from pipeline.serve.web.looks import page, words

router = APIRouter(prefix="/account", include_in_schema=False)

Confirmed = Annotated[str, Form(max_length=32)]


@router.get("")
def show(who: Who, store: TheStore) -> Response:
    """Everything there is to set."""
    return _account(who, store)


@router.post("/consent")
def consent(who: Who, store: TheStore, training: Ticked = False) -> Response:
    """Let choices be used for training, or take that back."""
    store.people.agree(who.person.id, "training", TERMS_VERSION, training)
    return _account(who, store, note=words()["account"]["saved"])


@router.post("/password")
def password(
    old: Password, new: Password, who: Who, accounts: TheAccounts, store: TheStore, token: TheToken, address: Address
) -> Response:
    """Change the password."""
    try:
        accounts.change_password(who.person, old, new, token=token, address=address)
    except ApiError as error:
        return _account(who, store, status=error.status, error=error.message)
    return _account(who, store, note=words()["account"]["password_changed"])


@router.get("/export")
def export(who: Who, store: TheStore, talks: TheTalks) -> Response:
    """Everything there is of me, as a file."""
    text = json.dumps(everything(store, talks.counselor, who), ensure_ascii=False, indent=1)
    headers = {"Content-Disposition": 'attachment; filename="gonggam.json"', "Cache-Control": "no-store"}
    return Response(text, media_type="application/json", headers=headers)


@router.post("/forget")
def forget(who: Who, store: TheStore, talks: TheTalks, sure: Ticked = False) -> Response:
    """Forget everything that is remembered; rooms stay."""
    if not sure:
        return _account(who, store, status=400, error=words()["account"]["unsure"])
    talks.erasure.memories(who)
    return _account(who, store, note=words()["account"]["forgotten"])


@router.post("/talks")
def erase_talks(who: Who, store: TheStore, talks: TheTalks, sure: Ticked = False) -> Response:
    """Erase everything that was said and what came of it; the account stays."""
    texts = words()["account"]
    if not sure:
        return _account(who, store, status=400, error=texts["unsure"])
    clean = talks.erasure.everything(who, account=False)
    return _account(who, store, note=texts["talks_gone"] if clean else texts["talks_gone_later"])


@router.post("/leave")
def leave(
    who: Who,
    store: TheStore,
    talks: TheTalks,
    address: Address,
    request: Request,
    confirmed: Confirmed = "",
    password: Password = "",
) -> Response:
    """Delete everything, once the holder has said so twice."""
    texts = words()["account"]
    if confirmed.strip() != texts["leave_word"]:
        return _account(who, store, status=400, error=texts["leave_unsaid"])
    accounts = request.app.state.accounts
    try:
        if accounts is not None:
            accounts.confirm(who.person, password, address=address)
    except ApiError as error:
        return _account(who, store, status=error.status, error=error.message)
    clean = talks.erasure.everything(who, account=True)
    return without_cookie(page("good_bye", later=not clean))


def _account(who: Member, store: Store, **values: Any) -> Response:
    local = who.person.name == LOCAL_NAME
    return page("account", person=who.person, local=local, training=agreed(store, who.person.id, "training"), **values)
