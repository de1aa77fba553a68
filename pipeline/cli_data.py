"""`gonggam data`: prepare, prefer, audit, explore. Thin: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gonggam.errors import UserError

if TYPE_CHECKING:
    from data_prep import Conversation
    from data_prep.preferences import Prompts
    from data_prep.teacher import Teacher
    from pipeline import Counselor

    Splits = Mapping[str, list[Conversation]]

app = typer.Typer(help="Prepare, check and look at data.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False)

Files = Annotated[list[str], typer.Argument(help="Files, folders, globs, or ids on the Hugging Face hub.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]


@app.command()
def prepare(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, globs or hub ids; none for the packaged sample.")
    ] = None,
    out: Out = Path("prepared"),
    reader: Annotated[str | None, typer.Option(help="Reader; left out, recognised from the columns.")] = None,
    privacy: Annotated[str, typer.Option(help="mask, drop, report or off")] = "mask",
    turns: Annotated[str, typer.Option(help="all, or single for rows of one exchange")] = "all",
    near: Annotated[float, typer.Option(help="Similarity of near duplicates; 0 keeps them.")] = 0.85,
    validation: Annotated[float, typer.Option(help="Share for validation.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share for test.")] = 0.05,
    parquet: Annotated[bool, typer.Option(help="Write parquet too.")] = False,
    replies: Annotated[bool, typer.Option(help="Write alpaca_replies too: one Alpaca row a reply.")] = False,
    off: Annotated[list[str] | None, typer.Option(help="A cleaning rule to switch off, such as repeats.")] = None,
) -> None:
    """Raw dialogue files to clean, leak-free conversations in all forms."""
    from data_prep import prepare as run

    sources = [{"reader": reader, "path": file} for file in files or []] or [{"reader": reader or "counsel_ko"}]
    with _bar("preparing") as progress:
        report = run(
            sources,
            out,
            progress=progress,
            privacy=privacy,
            turns=turns,
            deduplicate={"near": near or None},
            split={"validation": validation, "test": test},
            clean=dict.fromkeys(off or [], False),
            formats=["messages", "alpaca", "sharegpt", *["alpaca_replies"] * replies, *["parquet"] * parquet],
        )
    books = {**report["sources"], "total": report["rows"]}
    _table("Rows", [{"": fate, **{name: book[fate] for name, book in books.items()}} for fate in report["rows"]])
    _table("Written", [{"form": form, **splits} for form, splits in report["files"].items()])
    changes = {**report["cleaned"], **{f"personal data: {k}": n for k, n in report["personal_data"].items()}}
    if changes:
        _table("Changed", [{"what": what, "count": count} for what, count in changes.items()])
    console.print(f"{report['conversations']:,} conversations, {report['supervised_replies']:,} supervised replies")
    if shared := report["shared_replies"]:
        console.print(
            f"{shared:,} replies stand where conversations begin alike: messages/ marks them as given, alpaca/ and "
            "sharegpt/ teach them again. --replies writes alpaca_replies/, exact with mask_history: true"
        )
    console.print(f"Look at it: gonggam data explore {out}")


@app.command()
def audit(
    files: Annotated[list[str], typer.Argument(help="Prepared folders, or files whose names say train, test ...")],
    near: Annotated[float, typer.Option(help="Similarity of near duplicates; 0 does not look.")] = 0.85,
    apart: Annotated[bool, typer.Option(help="Train pairs must not share conversations with SFT data.")] = False,
) -> None:
    """Does anything that is trained on stand in what is measured by? Exit code 1 if so.

    A file's role is read from its name, or said: train=FILE, test=FILE, eval=FILE, preference=FILE.
    """
    from data_prep.audit import audit as run

    found = run(files, near=near or None, apart=apart)
    _table("Files", found.files)
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
        _table("Near duplicates", found.near_examples)
    if not found.ok:
        _table("Leaks", found.examples)
        console.print(f"[red]leak[/] {found.leaks:,} conversations or pairs share two turns or more with train")
        raise typer.Exit(1)
    console.print("[green]no leaks[/]")


@app.command()
def prefer(
    data: Annotated[str, typer.Argument(help="A prepared folder, or a file of conversations or of pairs.")],
    out: Out = Path("pairs"),
    teacher: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, ending in /v1.")] = None,
    model: Annotated[str, typer.Option(help="The teacher's model name.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the key.")] = "OPENAI_API_KEY",
    policy: Annotated[str | None, typer.Option(help="Run or model whose replies become the rejected ones.")] = None,
    samples: Annotated[int, typer.Option(help="With --policy: sample so many; best against worst is a pair.")] = 0,
    judge: Annotated[
        str | None, typer.Option(help="Who ranks samples: a judge of `eval` by name or YAML, or local; or the teacher.")
    ] = None,
    rubric: Annotated[str, typer.Option(help="What --judge goes by.")] = "counsel-ko",
    chosen_prompt: Annotated[Path | None, typer.Option(help="Text file instead of the packaged prompt.")] = None,
    rejected_prompt: Annotated[Path | None, typer.Option(help="Likewise; several parted by lines of ---.")] = None,
    rows: Annotated[int | None, typer.Option(help="Use at most this many conversations a split.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 8,
    per_minute: Annotated[float, typer.Option(help="Requests per minute at most.")] = 60,
    price_in: Annotated[float, typer.Option(help="Price of a million prompt tokens.")] = 0,
    price_out: Annotated[float, typer.Option(help="Price of a million answer tokens.")] = 0,
    max_length: Annotated[int | None, typer.Option(help="Name pairs longer than this many tokens.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Counts them; without it 0.7 a character.")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option(help="File that pairs must not share a beginning with.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what it would take.")] = False,
) -> None:
    """Build preference pairs, then audit them. Without --teacher or --policy, DATA holds pairs already.

    Answers, samples and verdicts are kept in OUT: after an interruption the same command goes on without asking (or
    paying) twice.
    """
    from data_prep.preferences import by_split, from_pairs, load_prompts, teacher_requests
    from gonggam.files import write_jsonl

    splits = by_split(data, rows)
    asked, prompts = None, load_prompts(chosen_prompt, rejected_prompt)
    if teacher is not None:
        from data_prep.teacher import Teacher, TeacherOptions

        options = TeacherOptions(
            base_url=teacher,
            model=model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            requests_per_minute=per_minute,
            price_in=price_in,
            price_out=price_out,
        )
        asked = Teacher(options, out / "cache.jsonl")
    if policy and not (samples or asked):
        raise UserError("nobody writes the chosen replies", "add --teacher URL, or --samples N and --judge NAME")
    if dry_run:
        every = [conversation for conversations in splits.values() for conversation in conversations]
        if policy and samples:
            plan = {"samples": samples * len(every), "judged at most": samples * len(every)}
        else:
            plan = asked.plan(teacher_requests(every, prompts, rejected=policy is None)) if asked else {"requests": 0}
        _table("Dry run", [{"what": what, "value": value} for what, value in plan.items()])
        return
    if policy and samples:
        made = _rank(splits, asked, policy, samples, judge, rubric, out)
    elif asked:
        made = _ask(splits, asked, prompts, policy, out)
    else:
        made = {split: from_pairs(conversations) for split, conversations in splits.items()}
    if asked:
        usage = {**asked.usage, "cost": round(asked.cost(), 4)}
        _table("Teacher", [{"what": what, "value": value} for what, value in usage.items()])
    # Whoever chose must not judge what was learnt of it: the eval stage reads this.
    maker = {"made_by": judge or model} if policy and samples else {"made_by": model} if asked else {}
    for split, pairs in made.items():
        write_jsonl(out / f"{split}.jsonl", ({**pair, **maker} for pair in pairs))
    _show_pair_audit(out, made, max_length, tokenizer, evaluation or [])


def _ask(
    splits: Splits, teacher: Teacher, prompts: Prompts, policy: str | None, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Pairs whose chosen reply the teacher wrote; the rejected one too, or the policy did."""
    from data_prep.preferences import from_teacher
    from pipeline.prefer import sampler

    sample = sampler(_counselor(policy), policy, out / "samples.jsonl") if policy else None
    say = (lambda prompt: sample(prompt, 1)[0]) if sample else None
    made = {}
    for split, conversations in splits.items():
        with _bar(split) as progress:
            made[split] = from_teacher(conversations, teacher, prompts, policy=say, progress=progress)
    return made


def _rank(
    splits: Splits, teacher: Teacher | None, policy: str, samples: int, judge: str | None, rubric: str, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Best against worst of the policy's samples, in the eyes of a judge, else of the teacher."""
    from data_prep.preferences import from_samples, teacher_judge
    from pipeline.prefer import geval_judge, sampler

    if not judge and not teacher:
        raise UserError("nobody is named to judge the samples", "add --judge NAME or --teacher URL")
    verdicts = out / "verdicts.jsonl"
    score = geval_judge(judge, rubric, verdicts) if judge and judge != "local" else None
    counselor = _counselor(policy)
    sample = sampler(counselor, policy, out / "samples.jsonl")
    if score is None:
        score = teacher_judge(teacher) if teacher and not judge else geval_judge("local", rubric, verdicts, counselor)
    made = {}
    for split, conversations in splits.items():
        with _bar(split) as progress:
            made[split] = from_samples(conversations, sample, score, n=samples, progress=progress)
    return made


def _counselor(where: str) -> Counselor:
    from pipeline import Counselor

    return Counselor.load(where)


def _show_pair_audit(
    out: Path,
    made: Mapping[str, list[dict[str, Any]]],
    max_length: int | None,
    tokenizer: str | None,
    evaluation: list[str],
) -> None:
    """Audit what was written; exit code 1 if a finding is an error."""
    from data_prep.pair_audit import audit_pairs

    counter = _token_counter(tokenizer) if tokenizer else None
    count = (lambda text: counter([{"role": "user", "content": text}])) if counter else None
    failed = False
    for split, pairs in made.items():
        if not pairs:
            console.print(f"{split}: no pairs")
            continue
        figures, findings = audit_pairs(
            out / f"{split}.jsonl", max_length=max_length, count_tokens=count, evaluation=evaluation
        )
        _table(split, [{"figure": name, "value": value} for name, value in figures.items()])
        colours = {"error": "red", "warning": "yellow", "note": "dim"}
        for finding in findings:
            console.print(f"[{colours[finding.level]}]{finding.level}[/] {finding.what}: {finding.count:,}")
            failed = failed or finding.level == "error"
    if failed:
        raise typer.Exit(1)


@app.command()
def explore(
    data: Annotated[str, typer.Argument(help="A prepared folder, or a file of dialogues.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default DATA/explore.")] = None,
    tokenizer: Annotated[list[str] | None, typer.Option(help="Model folder or hub id; may be given again.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens above which a conversation would be cut.")] = 1024,
    seed: Annotated[int, typer.Option(help="Another seed shows other conversations.")] = 0,
) -> None:
    """One HTML report about the data, and its plots as PNG."""
    from data_prep.explore import explore as run

    counters = {name: _token_counter(name) for name in tokenizer or []}
    folder = out or (Path(data) / "explore" if Path(data).is_dir() else Path("explore"))
    page = run(data, folder, tokenizers=counters, max_length=max_length, seed=seed)
    console.print(f"written: {page}")


def _token_counter(name: str) -> Callable[[list[dict[str, str]]], int]:
    """Counts the tokens of messages as this tokenizer's chat template renders them, or of their text without one."""
    from pipeline.model import load_tokenizer
    from pipeline.prompt import encode

    loaded = load_tokenizer(name)
    if loaded.chat_template:
        return lambda messages: len(encode(loaded, messages, add_generation_prompt=False))
    return lambda messages: len(loaded("\n".join(m["content"] for m in messages))["input_ids"])


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def _table(title: str, rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    """Rows as a table; numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v).replace("[", "\\[") for v in row.values()))
    console.print(table)
