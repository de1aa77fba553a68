"""Coming in and going out: log in, sign up, first-use consent, log out. Plain forms, which need no script."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from gonggam.fonts import whole_woff
from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.callers import COOKIE
from pipeline.serve.errors import ApiError
from pipeline.serve.native.access import Address, TheAccounts, TheStore, TheToken, Who, member_of, stay
from pipeline.serve.web.door import CHAT
from pipeline.serve.web.looks import HERE, page

router = APIRouter(include_in_schema=False)

Name = Annotated[str, Form(max_length=64)]
Password = Annotated[str, Form(max_length=128)]
Ticked = Annotated[bool, Form()]


@router.get("/")
def home() -> Response:
    """The chat; whoever is not logged in is sent on from there."""
    return RedirectResponse(f"{CHAT}/", 303)


@router.get("/manifest.json")
def manifest() -> Response:
    """What a phone asks for that is to keep the page among its applications."""
    return FileResponse(HERE / "static" / "manifest.json")


@router.get("/favicon.ico")
def icon() -> Response:
    """What browsers ask for before they have read the page."""
    return FileResponse(HERE / "static" / "icon.svg", media_type="image/svg+xml")


@router.get("/font.woff")
def font(bold: str | None = None) -> Response:
    """A Korean font, for browsers on machines that have none."""
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(whole_woff(400 if bold is None else 700), media_type="font/woff", headers=kept)


@router.get("/log-in")
def log_in_form(request: Request) -> Response:
    """Ask for name and password."""
    if member_of(request.app.state, request):
        return home()
    return page("log_in", name="")


@router.post("/log-in")
def log_in(name: Name, password: Password, accounts: TheAccounts, address: Address, request: Request) -> Response:
    """Log in."""
    try:
        login = accounts.log_in(name, password, address=address)
    except ApiError as error:
        return page("log_in", status=error.status, error=error.message, name=name)
    response = home()
    stay(response, login, accounts, request)
    return response


@router.get("/sign-up")
def sign_up_form(request: Request) -> Response:
    """Ask for a name and a password to be, and for consent."""
    if member_of(request.app.state, request):
        return home()
    return page("sign_up", name="", agree=False, training=False)


@router.post("/sign-up")
def sign_up(
    name: Name,
    password: Password,
    accounts: TheAccounts,
    address: Address,
    request: Request,
    agree: Ticked = False,
    training: Ticked = False,
) -> Response:
    """Sign up and log in."""
    again = {"name": name, "agree": agree, "training": training}
    if not agree:
        return page("sign_up", status=400, need_consent=True, **again)
    try:
        accounts.sign_up(name, password, address=address, training=training)
        login = accounts.log_in(name, password, address=address)
    except ApiError as error:
        return page("sign_up", status=error.status, error=error.message, **again)
    response = home()
    stay(response, login, accounts, request)
    return response


@router.get("/consent")
def consent_form(who: Who) -> Response:
    """What one agrees to before the first talk."""
    return page("consent")


@router.post("/consent")
def consent(who: Who, store: TheStore, agree: Ticked = False, training: Ticked = False) -> Response:
    """Note what was agreed to."""
    if not agree:
        return page("consent", status=400, need_consent=True)
    store.people.agree(who.person.id, "terms", TERMS_VERSION, True)
    if training:
        store.people.agree(who.person.id, "training", TERMS_VERSION, True)
    return home()


@router.post("/log-out")
def log_out(accounts: TheAccounts, token: TheToken) -> Response:
    """Log out."""
    accounts.log_out(token or "")
    return without_cookie(RedirectResponse("/log-in", 303))


def without_cookie(response: Response) -> Response:
    """A response by which the browser is logged out."""
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return response
