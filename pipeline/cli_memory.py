"""`gonggam bench memory` and `bench safety`: how well memories are recalled, how well danger is seen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

app = typer.Typer(help="Measure parts of gonggam.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False)

COLUMNS = ("recall@1", "recall@2", "recall@5", "mrr", "kept@2", "auc", "false_recall", "missed")


@app.command()
def memory(
    users: Annotated[Path | None, typer.Argument(help="users file (JSON lines); none for the packaged sample")] = None,
    embedder: Annotated[
        list[str] | None, typer.Option(help="offline, a folder, or a hub id; may be given several times")
    ] = None,
    reranker: Annotated[str | None, typer.Option(help="cross-encoder (folder or hub id) to compare as well")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the rows to")] = None,
) -> None:
    """Recall of what a user said in earlier sessions: windows, BM25, vectors, both; for each embedder."""
    from gonggam.files import write_json
    from rag.bench import memory_bench, read_users
    from rag.rerank import load_reranker

    people = read_users(users or _sample("memory_bench/users.jsonl"))
    talks = _talks()
    with tempfile.TemporaryDirectory() as folder:
        named = {name: _embedder(name, talks, Path(folder)) for name in embedder or ["offline"]}
        rows = memory_bench(people, named, reranker=load_reranker(reranker) if reranker else None, calibration=talks)
    if out:
        write_json(out, rows)
    _show(rows)


@app.command()
def safety(
    picture: Annotated[Path | None, typer.Option(help="PNG file for the emotion confusion matrix")] = None,
) -> None:
    """Recall and false alarms of the safety layer, and how well emotions are told; about half a minute."""
    from pipeline.chat.measure import main

    main(picture)


@app.command()
def answers() -> None:
    """Whether human-written answers fit the feeling of held-out messages; about a minute."""
    from pipeline.chat.measure_answers import main

    main()


def _sample(name: str) -> Path:
    import data_prep

    return Path(data_prep.__file__).parent / "samples" / name


def _talks() -> list[list[tuple[str, str]]]:
    """The sample corpus as conversations of (utterance, reply)."""
    from gonggam.files import read_jsonl

    said = ([t["content"] for t in row["turns"]] for row in read_jsonl(_sample("counsel_ko/dialogues.jsonl")))
    return [list(zip(texts[::2], texts[1::2], strict=False)) for texts in said]


def _embedder(name: str, talks: list[list[tuple[str, str]]], folder: Path) -> Embeddings:
    from rag.embedders import fit_static, load_embedder

    if name == "offline":
        return fit_static([pair for talk in talks for pair in talk], folder / "offline")
    return load_embedder(name)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("method", "embedder", *COLUMNS)
    for row in rows:
        table.add_row(row["method"], row["embedder"], *(_figure(row[column]) for column in COLUMNS))
    console.print(table)
    kinds = list(rows[0]["by_kind"])
    table = Table("recall@2 by kind", "embedder", *kinds)
    for row in rows:
        table.add_row(row["method"], row["embedder"], *(_figure(row["by_kind"][kind]["recall@2"]) for kind in kinds))
    console.print(table)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
