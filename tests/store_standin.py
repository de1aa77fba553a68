"""A service for the tests of its data: databases of their own on every server that answers, and a quick memory."""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from chat_standin import ScriptedBackend, bigram_memory
from sqlalchemy import MetaData, make_url, select, text

from gonggam.errors import UserError
from pipeline.chat.counselor import Counselor
from pipeline.chat.options import ChatOptions
from pipeline.cipher import Cipher
from pipeline.serve.accounts import Accounts
from pipeline.serve.app import create_app
from pipeline.serve.options import ServeOptions
from pipeline.serve.store import Database, Store, default_url

SERVERS = {
    "mariadb": "mysql+pymysql://root:@127.0.0.1:3306/test",
    "postgresql": "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
}
GOOD = "많이 속상하셨겠어요. 애써 준비하신 시간이 있어서 더 그러실 거예요. 지금 가장 마음에 남는 건 무엇인가요?"
OTHER = "그런 일이 있으셨군요. 마음이 많이 무거우셨겠어요. 그때 어떤 생각이 드셨나요?"
PASSWORD = "파란 고래 42마리"
WEAK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@contextmanager
def database_url(kind: str, folder: Path):
    """URL of an empty database that is gone afterwards; skips where no such server answers."""
    if kind == "sqlite":
        yield default_url(folder)
        return
    server, name = Database(SERVERS[kind]), f"gonggam_test_{secrets.token_hex(6)}"
    try:
        server.reach()
    except UserError:
        pytest.skip(f"no {kind} answers on this machine")
    try:
        with server.bare() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield str(make_url(SERVERS[kind]).set(database=name).render_as_string(hide_password=False))
    finally:
        with server.bare() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))
        server.close()


def make_app(
    folder: Path, *texts: str, accounts: bool = True, keys=(), backend=None, sentiments=None, url=None, **settings
):
    """The application over ``url`` (SQLite in ``folder``) with weak password hashes; it says ``texts``."""
    counselor = Counselor(
        backend or ScriptedBackend(*(texts or (GOOD,))),
        ChatOptions(),
        memory=bigram_memory(folder, Cipher(keys) if keys else None, threshold=0.0, lexical=0),
        sentiments=sentiments,
    )
    settings = {"accounts": accounts, "hosts": ("testserver",), "page": False} | settings
    options = ServeOptions(**settings)
    app = create_app(counselor, options, Store.open(url or default_url(folder), keys))
    if accounts:
        app.state.accounts = Accounts(app.state.store, hasher=WEAK)
    return app


def holding(folder: Path, words: str) -> list[str]:
    """Files under ``folder`` in which ``words`` stand, as UTF-8 or in JSON's escapes."""
    forms = {words.encode(), words.encode("unicode_escape")}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


def tables_holding(store: Store, words: str) -> list[str]:
    """Columns of any table there is in which ``words`` stand, also in JSON's escapes."""
    forms = {words, json.dumps(words)[1:-1]}
    found = []
    with store.database.engine.connect() as connection:
        known = MetaData()
        known.reflect(connection)
        for table in known.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                found += [f"{table}.{name}" for name, value in row.items() if any(form in str(value) for form in forms)]
    return found
