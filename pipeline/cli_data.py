"""`gonggam data`: prepare, prefer, audit, explore. Thin: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gonggam.errors import UserError
from gonggam.progress import progress_bar
from pipeline.cli_prefer import prefer
from pipeline.cli_show import console, show_pairs, show_table

app = typer.Typer(help="Prepare, check and look at data.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="folder to write")]


@app.command()
def prepare(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="files, folders, globs or hub ids; counsel_ko, or nothing, for the packaged sample"),
    ] = None,
    out: Out = Path("prepared"),
    reader: Annotated[str | None, typer.Option(help="reader; left out, recognised from the columns")] = None,
    rows: Annotated[
        list[str] | None, typer.Option(help="FILE=N: keep at most so many conversations of it; N alone: of each")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="FILE=W: its share relative to the others; the scarcest is kept whole")
    ] = None,
    privacy: Annotated[str, typer.Option(help="mask, drop, report or off")] = "mask",
    turns: Annotated[str, typer.Option(help="all, or single for rows of one exchange")] = "all",
    near: Annotated[float, typer.Option(help="similarity of near duplicates; 0 keeps them")] = 0.85,
    validation: Annotated[float, typer.Option(help="share for validation")] = 0.05,
    test: Annotated[float, typer.Option(help="share for test")] = 0.05,
    parquet: Annotated[bool, typer.Option(help="write parquet too")] = False,
    replies: Annotated[bool, typer.Option(help="write alpaca_replies too: one Alpaca row a reply")] = False,
    off: Annotated[
        list[str] | None, typer.Option(help="a cleaning rule to switch off, reassemble, or duplicates")
    ] = None,
) -> None:
    """Raw dialogue files to clean, leak-free conversations in all forms."""
    from data_prep import prepare as run

    sources = _sources(files or [reader or "counsel_ko"], reader, rows or [], weight or [])
    with progress_bar("preparing") as progress:
        report = run(
            sources,
            out,
            progress=progress,
            privacy=privacy,
            turns=turns,
            split={"validation": validation, "test": test},
            **_switched(off or [], near),
            formats=["messages", "alpaca", "sharegpt", *["alpaca_replies"] * replies, *["parquet"] * parquet],
        )
    _show_report(report)
    console.print(f"Look at it: gonggam data explore {out}")


def _sources(files: list[str], reader: str | None, rows: list[str], weights: list[str]) -> list[dict[str, Any]]:
    """The sources that the command line names. Where they are mixed, each is called like its file."""
    from data_prep.sources import READERS

    stems = [Path(file).stem for file in files]
    names = [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]
    sources: list[dict[str, Any]] = []
    for file in files:
        own = file in READERS and not Path(file).exists()  # a reader's own data, such as the packaged sample
        sources.append({"reader": file} if own else {"reader": reader, "path": file})
    for option, values, number in (("rows", rows, int), ("weight", weights, float)):
        for value in values:
            name, _, amount = value.rpartition("=")
            chosen = [i for i, file in enumerate(files) if name in (file, Path(file).name, Path(file).stem, "")]
            if not chosen or (option == "weight" and not name):
                raise UserError(f"--{option} {value} names none of the files", f"write --{option} {files[0]}=2")
            try:
                for i in chosen:
                    sources[i] |= {option: number(amount), "name": names[i]}
            except ValueError as error:
                raise UserError(f"--{option} {value} gives no number", f"write --{option} {files[0]}=2") from error
    return sources


def _switched(off: list[str], near: float) -> dict[str, Any]:
    """The options of preparation with these steps and cleaning rules switched off."""
    rules = [rule for rule in off if rule not in ("reassemble", "duplicates")]
    return {
        "clean": {rule: "off" if rule == "hangul" else False for rule in rules},
        "reassemble": "reassemble" not in off,
        "deduplicate": {"exact": "duplicates" not in off, "near": near or None},
    }


def _show_report(report: dict[str, Any]) -> None:
    """Where the rows went (what happened to none is left out), what was written, and what was changed."""
    fates = [fate for fate, count in report["rows"].items() if count or fate in ("rows", "kept")]
    books = {**report["sources"], "total": report["rows"]}
    show_table("Rows", [{"source": name, **{fate: book[fate] for fate in fates}} for name, book in books.items()])
    show_table("Written", [{"form": form, **splits} for form, splits in report["files"].items()])
    changes = {**report["cleaned"], **{f"personal data: {k}": n for k, n in report["personal_data"].items()}}
    if changes:
        show_pairs("Changed", changes, ("what", "count"))
    console.print(f"{report['conversations']:,} conversations, {report['supervised_replies']:,} supervised replies")
    if shared := report["shared_replies"]:
        console.print(
            f"{shared:,} replies stand where conversations begin alike: messages/ marks them as given, alpaca/ and "
            "sharegpt/ teach them again. --replies writes alpaca_replies/, exact with mask_history: true"
        )


@app.command()
def audit(
    files: Annotated[list[str], typer.Argument(help="prepared folders, or files whose names say train, test ...")],
    near: Annotated[float, typer.Option(help="similarity of near duplicates; 0 does not look")] = 0.85,
    apart: Annotated[bool, typer.Option(help="train pairs must not share conversations with SFT data")] = False,
) -> None:
    """Does anything that is trained on stand in what is measured by? Exit code 1 if so.

    A file's role is read from its name, or said: train=FILE, test=FILE, eval=FILE, preference=FILE.
    """
    from data_prep.audit import audit as run

    found = run(files, near=near or None, apart=apart)
    show_table("Files", found.files)
    if found.unread:
        console.print(f"[yellow]warning[/] {found.unread:,} rows hold no conversation and were not compared")
    if found.openers:
        first = "; ".join(f"{text[:30]!r}" for text in list(found.openers)[:5])
        console.print(f"shared first turns (no leak): {sum(found.openers.values()):,}, such as {first}", markup=False)
    note = "a leak, as --apart says" if apart else "by design, as DPO starts where SFT ended; --apart makes it an error"
    if found.preference:
        console.print(f"train pairs from SFT training conversations: {found.preference:,} ({note})")
    console.print(f"near duplicates across splits: {found.near:,}")
    if found.near:
        show_table("Near duplicates", found.near_examples)
    if not found.ok:
        show_table("Leaks", found.examples)
        console.print(f"[red]leak[/] {found.leaks:,} conversations or pairs share two turns or more with train")
        raise typer.Exit(1)
    console.print("[green]no leaks[/]")


app.command()(prefer)


@app.command()
def explore(
    data: Annotated[str, typer.Argument(help="a prepared folder, or a file of dialogues")],
    out: Annotated[Path | None, typer.Option(help="folder to write; by default DATA/explore")] = None,
    tokenizer: Annotated[list[str] | None, typer.Option(help="model folder or hub id; may be given again")] = None,
    max_length: Annotated[int, typer.Option(help="tokens above which a conversation would be cut")] = 1024,
    seed: Annotated[int, typer.Option(help="another seed shows other conversations")] = 0,
) -> None:
    """One HTML report about the data, and its plots as PNG."""
    from data_prep.explore import explore as run

    counters = {}
    if tokenizer:
        from pipeline.model import load_tokenizer
        from pipeline.prompt import counter

        counters = {name: counter(load_tokenizer(name)) for name in tokenizer}
    folder = out or (Path(data) / "explore" if Path(data).is_dir() else Path("explore"))
    page = run(data, folder, tokenizers=counters, max_length=max_length, seed=seed)
    console.print(f"written: {page}")
