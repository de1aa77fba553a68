"""`gonggam data prefer`: build preference pairs, then audit them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gonggam.errors import UserError
from gonggam.progress import progress_bar
from pipeline.cli_show import console, show_pairs

if TYPE_CHECKING:
    from data_prep import Conversation
    from data_prep.preferences import Prompts
    from data_prep.teacher import Teacher
    from pipeline import Counselor

    Splits = Mapping[str, list[Conversation]]

Rows = list[dict[str, Any]]
Option = typer.Option


def prefer(
    data: Annotated[
        str | None, typer.Argument(help="a prepared folder, or a file of conversations or of pairs")
    ] = None,
    out: Annotated[Path, Option(help="folder to write")] = Path("pairs"),
    service: Annotated[
        str | None, Option("--from-service", help="instead of DATA: a run, or the URL of its service's database")
    ] = None,
    teacher: Annotated[str | None, Option(help="OpenAI-compatible endpoint, ending in /v1")] = None,
    model: Annotated[str, Option(help="the teacher's model name")] = "",
    api_key_env: Annotated[str, Option(help="environment variable with the key")] = "OPENAI_API_KEY",
    policy: Annotated[str | None, Option(help="run or model whose replies become the rejected ones")] = None,
    samples: Annotated[int, Option(help="with --policy: sample so many; best against worst is a pair")] = 0,
    judge: Annotated[str | None, Option(help="ranks samples: a judge of `eval`, or local; else the teacher")] = None,
    rubric: Annotated[str, Option(help="what --judge goes by")] = "counsel-ko",
    chosen_prompt: Annotated[Path | None, Option(help="text file instead of the packaged prompt")] = None,
    rejected_prompt: Annotated[Path | None, Option(help="likewise; several parted by lines of ---")] = None,
    limit: Annotated[int | None, Option(help="use at most this many conversations a split")] = None,
    concurrency: Annotated[int, Option(help="requests under way at once")] = 8,
    per_minute: Annotated[float, Option(help="requests per minute at most")] = 60,
    price_in: Annotated[float, Option(help="price of a million prompt tokens")] = 0,
    price_out: Annotated[float, Option(help="price of a million answer tokens")] = 0,
    max_length: Annotated[int | None, Option(help="name pairs longer than this many tokens")] = None,
    tokenizer: Annotated[str | None, Option(help="counts them; without it 0.7 a character")] = None,
    evaluation: Annotated[list[str] | None, Option(help="file that pairs must not share a beginning with")] = None,
    dry_run: Annotated[bool, Option(help="only say what it would take")] = False,
) -> None:
    """Build preference pairs, then audit them. Without --teacher or --policy, DATA holds pairs already.

    --from-service takes what users chose between two replies, of those users only who agreed to that; personal data
    is masked.

    Answers, samples and verdicts are kept in OUT: after an interruption the same command goes on without asking (or
    paying) twice.
    """
    from data_prep.preferences import by_split, load_prompts
    from data_prep.teacher import Teacher, TeacherOptions

    asked = None
    if teacher is not None:
        limits = {"concurrency": concurrency, "requests_per_minute": per_minute}
        prices = {"price_in": price_in, "price_out": price_out}
        options = TeacherOptions(base_url=teacher, model=model, api_key_env=api_key_env, **limits, **prices)
        asked = Teacher(options, out / "cache.jsonl")
    way = _Way(asked, load_prompts(chosen_prompt, rejected_prompt), policy, samples, judge, rubric, out)
    if service is not None and data is None:
        splits = _chosen_by_users(service)
    elif data is not None and service is None:
        splits = by_split(data, limit, pairs=not (asked or policy))
    else:
        raise UserError("no data", "name a folder or file, or a service with --from-service")
    if dry_run:
        show_pairs("Dry run", way.plan([conversation for split in splits.values() for conversation in split]))
        return
    made = way.build(splits)
    _write(way, made)
    if _audited(out, made, max_length, tokenizer, evaluation or []):
        raise typer.Exit(1)


def _chosen_by_users(service: str) -> Splits:
    from pipeline.cli_db import open_store
    from pipeline.prefer import from_service

    url = service if "://" in service else os.environ.get("GONGGAM_DATABASE")
    store = open_store(Path(service), url)
    try:
        found = from_service(store.preferences.pairs())
    finally:
        store.close()
    if not found:
        raise UserError("nobody who agreed to that has chosen between two replies yet", "ask for two on the page")
    return {"pairs": found}


@dataclass(frozen=True)
class _Way:
    """Where pairs come from: out of the data, from a teacher, or from samples of the policy that a judge ranks.

    Raises:
        UserError: somebody is missing who is needed.
    """

    teacher: Teacher | None
    prompts: Prompts
    policy: str | None
    samples: int
    judge: str | None
    rubric: str
    out: Path

    def __post_init__(self) -> None:
        if self.policy and not (self.samples or self.teacher):
            raise UserError("nobody writes the chosen replies", "add --teacher URL, or --samples N and --judge NAME")
        if self.ranks and not (self.judge or self.teacher):
            raise UserError("nobody is named to judge the samples", "add --judge NAME or --teacher URL")

    @property
    def ranks(self) -> bool:
        """Whether samples of the policy are ranked."""
        return bool(self.policy and self.samples)

    @property
    def maker(self) -> str:
        """Who chose; that one must not judge what was learnt of it (the eval stage reads this)."""
        teacher = self.teacher.options.model if self.teacher else ""
        return (self.judge or teacher) if self.ranks else teacher

    def plan(self, conversations: list[Conversation]) -> dict[str, Any]:
        """What it would take."""
        from data_prep.preferences import teacher_requests

        if self.ranks:
            return {"samples": self.samples * len(conversations), "judged at most": self.samples * len(conversations)}
        if not self.teacher:
            return {"requests": 0}
        return self.teacher.plan(teacher_requests(conversations, self.prompts, rejected=self.policy is None))

    def build(self, splits: Splits) -> dict[str, Rows]:
        """The pairs of every split."""
        from data_prep.preferences import from_pairs

        work = self._rank() if self.ranks else self._ask() if self.teacher else None
        made = {}
        for split, conversations in splits.items():
            with progress_bar(split) as progress:
                made[split] = work(conversations, progress) if work else from_pairs(conversations)
        return made

    def _ask(self) -> Any:
        from data_prep.preferences import from_teacher
        from pipeline.prefer import sampler

        teacher = self.teacher
        assert teacher is not None  # else `build` does not ask
        sample = sampler(self.counselor, self.policy, self.out / "samples.jsonl") if self.policy else None
        say = (lambda prompt: sample(prompt, 1)[0]) if sample else None
        return lambda talks, progress: from_teacher(talks, teacher, self.prompts, policy=say, progress=progress)

    def _rank(self) -> Any:
        from data_prep.preferences import Judge, from_samples, teacher_judge
        from pipeline.prefer import geval_judge, sampler

        verdicts = self.out / "verdicts.jsonl"
        score: Judge
        if self.judge:  # a judge that cannot be used is told before the model is loaded
            score = geval_judge(self.judge, self.rubric, verdicts, lambda: self.counselor)
        else:
            assert self.teacher is not None  # `__post_init__` has seen to it
            score = teacher_judge(self.teacher)
        assert self.policy is not None  # else nothing is ranked
        sample = sampler(self.counselor, self.policy, self.out / "samples.jsonl")
        return lambda talks, progress: from_samples(talks, sample, score, n=self.samples, progress=progress)

    @cached_property
    def counselor(self) -> Counselor:
        """The policy, loaded when it is first needed."""
        from pipeline import Counselor

        assert self.policy is not None  # else it is not needed
        return Counselor.load(self.policy)


def _write(way: _Way, made: Mapping[str, Rows]) -> None:
    """Write the pairs, and say what they cost."""
    from gonggam.files import write_jsonl

    if way.teacher:
        show_pairs("Teacher", {**way.teacher.usage, "cost": round(way.teacher.cost(), 4)})
    maker = {"made_by": way.maker} if way.maker else {}
    for split, pairs in made.items():
        write_jsonl(way.out / f"{split}.jsonl", ({**pair, **maker} for pair in pairs))


def _audited(
    out: Path, made: Mapping[str, Rows], max_length: int | None, tokenizer: str | None, evaluation: list[str]
) -> bool:
    """Audit what was written; whether a finding is an error."""
    from data_prep.pair_audit import audit_pairs

    count = None
    if tokenizer:
        from pipeline.model import load_tokenizer
        from pipeline.prompt import counter

        tokens = counter(load_tokenizer(tokenizer))
        count = lambda text: tokens([{"role": "user", "content": text}])  # noqa: E731
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    failed = False
    for split, pairs in made.items():
        if not pairs:
            console.print(f"{split}: no pairs")
            continue
        file = out / f"{split}.jsonl"
        figures, findings = audit_pairs(file, max_length=max_length, count_tokens=count, evaluation=evaluation)
        show_pairs(split, figures, ("figure", "value"))
        for finding in findings:
            console.print(f"[{colours[finding.level]}]{finding.level}[/] {finding.what}: {finding.count:,}")
            failed = failed or finding.level == "error"
    return failed
