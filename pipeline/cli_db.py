"""`gonggam db`: the service's database, its tables, its keys and what it is to forget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gonggam.errors import UserError

if TYPE_CHECKING:
    from pipeline.serve.store import Store
    from pipeline.serve.store.database import Database

app = typer.Typer(help="The service's database. The service migrates by itself when it starts.", no_args_is_help=True)

Run = Annotated[Path, typer.Option(help="run folder that holds the database, or whose recipe names it")]
DEFAULT = Path("runs/demo")
Url = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL, in place of the run's", envvar="GONGGAM_DATABASE")
]
KeyFile = Annotated[Path | None, typer.Option(help="keys of sealed texts; none: the run's, else GONGGAM_KEY")]


@app.command()
def upgrade(
    run: Run = DEFAULT, to: Annotated[str, typer.Option(help="revision")] = "head", database: Url = None
) -> None:
    """Bring the tables to this version, or to a revision."""
    from pipeline.serve.store import migrate

    where = _database(run, database, None)
    migrate.upgrade(where, to)
    typer.echo(f"at {migrate.current(where)}")


@app.command()
def downgrade(
    to: Annotated[str, typer.Option(help="revision; base: remove the tables with all that is in them")],
    run: Run = DEFAULT,
    database: Url = None,
) -> None:
    """Take the tables back to a revision."""
    from pipeline.serve.store import migrate

    where = _database(run, database, None)
    migrate.downgrade(where, to)
    typer.echo(f"at {migrate.current(where) or 'base'}")


@app.command()
def current(run: Run = DEFAULT, database: Url = None) -> None:
    """Say which revision the tables are at, and which is the newest."""
    from pipeline.serve.store import migrate

    typer.echo(f"at {migrate.current(_database(run, database, None)) or 'base'}, newest {migrate.newest()}")


@app.command("new-key")
def new_key(file: Annotated[Path | None, typer.Argument(help="key file to make; none: print the key")] = None) -> None:
    """Make a key for sealing texts."""
    from pipeline.cipher import new_key, write_keys

    if file is None:
        typer.echo(new_key())
        return
    if file.exists():
        raise UserError("this key file is there already", "use rotate-key to change keys", file=file)
    write_keys(file, [new_key()])
    typer.echo(f"wrote {file}; without it sealed texts cannot be read: keep a copy apart from the database's")


@app.command("rotate-key")
def rotate_key(
    key_file: Annotated[Path, typer.Option(help="key file to change, or to make from the key in GONGGAM_KEY")],
    run: Annotated[Path | None, typer.Option(help="run folder that holds the memories, and the database")] = None,
    database: Url = None,
    stopped: Annotated[bool, typer.Option("--stopped", help="the service is stopped, though not seen to be")] = False,
) -> None:
    """Put a new key into the key file and seal every text and memory with it; stop the service before.

    Killed midway, run it again. Older keys are taken out of the file once nothing needs them.
    """
    from pipeline.cipher import Cipher, new_key, read_keys, write_keys
    from pipeline.serve.store.workers import Workers
    from rag.reseal import reseal

    old = read_keys(key_file if key_file.exists() else None)
    # What a running service writes meanwhile would be sealed with a key that is then taken out of the file.
    if not stopped and (count := Workers(_database(run or DEFAULT, database, None)).present()):
        hint = "stop it first; if it ended on another machine or boot, where that cannot be seen, add --stopped"
        raise UserError(f"the service is running ({count} processes)", hint)
    keys = (new_key(), *old)
    write_keys(key_file, keys)
    texts = open_store(run or DEFAULT, database, key_file).upkeep.rotate()
    if run is None and database:
        typer.echo(f"sealed {texts} texts with a new key. Without --run memories are not looked for: the older keys")
        typer.echo("stay in the file, as memories may need them, until this is run with --run FOLDER")
        return
    memories = reseal(run or DEFAULT, Cipher(keys))
    write_keys(key_file, keys[:1])
    typer.echo(f"sealed {texts} texts and the memories of {memories} users with a new key")


@app.command()
def expire(
    days: Annotated[float, typer.Option(min=0, help="erase what is older")],
    run: Run = DEFAULT,
    database: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Erase what was said more than DAYS ago, from the database and from the memories, and write the files anew."""
    erased = open_store(run, database, key_file).upkeep.expire(days)
    typer.echo(f"erased {erased} exchanges and {_expire_memories(run, days, key_file)} memories")


@app.command("grant-admin")
def grant_admin(
    name: Annotated[str, typer.Argument(help="name of an account")],
    run: Run = DEFAULT,
    revoke: Annotated[bool, typer.Option("--revoke", help="take it back")] = False,
    database: Url = None,
) -> None:
    """Let an account see the counts."""
    from pipeline.serve.accounts import fold
    from pipeline.serve.store.people import People

    if not People(_database(run, database, None)).set_role(fold(name), "user" if revoke else "admin"):
        raise UserError(f"no account {name!r}", "sign up first")
    typer.echo(f"{name} is {'no longer' if revoke else 'now'} an administrator")


def _expire_memories(run: Path, days: float, key_file: Path | None) -> int:
    """Memories lie in the run folder, where it has any."""
    from pipeline.chat.load import LOCK, load_memory
    from pipeline.cipher import read_keys
    from pipeline.recipe import load_recipe

    keys = read_keys(key_file) if key_file else None
    memory = load_memory(load_recipe(run / LOCK), run, keys)[0] if (run / LOCK).is_file() else None
    if memory is None:
        return 0
    memory.settings = memory.settings.model_copy(update={"retention_days": days})
    return memory.expire()


def open_store(run: Path, url: str | None = None, key_file: Path | None = None) -> Store:
    """The service's database of a run, or the one named; raises as `Store.open`."""
    from pipeline.serve.store import Store

    where = _database(run, url, key_file)
    return Store.open(where.url, where.cipher.keys)


def _database(run: Path, url: str | None, key_file: Path | None) -> Database:
    from pipeline.chat.load import LOCK
    from pipeline.cipher import read_keys
    from pipeline.recipe import load_recipe
    from pipeline.serve.store import Database, default_url

    if url is None and not (run / LOCK).is_file():
        raise UserError(f"no run folder ({LOCK} is missing)", "name one, or a database with --database", file=run)
    recipe = load_recipe(run / LOCK) if (run / LOCK).is_file() else None
    serve = recipe.serve if recipe else None
    keys = read_keys(key_file or (serve.key_file if serve else None))
    database = Database(url or (serve.database if serve else None) or default_url(run), keys)
    database.reach()
    return database
