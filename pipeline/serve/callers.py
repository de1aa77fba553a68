"""Who is calling: an account by its token or cookie, or, without accounts, whoever sits at this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from pipeline.serve.errors import ApiError

COOKIE = "gonggam_session"


class Accounts(Protocol):
    """What is asked of the accounts' side."""

    def account_of(self, token: str) -> str | None:
        """Id of the account that a token belongs to; None if it is unknown or has expired."""


@dataclass(frozen=True)
class Caller:
    """Who a request comes from; ``account`` is None where the service has no accounts."""

    account: str | None
    address: str

    @property
    def owner(self) -> str:
        """Whose turn in the queue a request takes."""
        return self.account or self.address

    def memory_of(self, user: str) -> str:
        """Name of the memory of ``user``: one of this account's, whatever the name is."""
        return user if self.account is None else json.dumps([self.account, user], ensure_ascii=False)


async def caller(request: Request) -> Caller:
    """The caller of a request.

    Raises:
        ApiError: 401, accounts are on and no valid token came.
    """
    address = request.client.host if request.client else ""
    accounts: Accounts | None = request.app.state.accounts
    if accounts is None:
        return Caller(None, address)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    account = await run_in_threadpool(accounts.account_of, token) if token else None
    if account is None:
        raise ApiError(401, "No valid API key or log-in came with this request.", code="invalid_api_key")
    return Caller(account, address)


Here = Annotated[Caller, Depends(caller)]
