"""`gonggam eval compare`: runs and models on the same conversations; replies that are missing are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.compare import BASE, find_raw, gather
from eval.store import Store, content_key
from gonggam.errors import UserError
from gonggam.files import read_jsonl
from pipeline.run import state_of
from pipeline.yardsticks import held_out_pairs, pair_makers

if TYPE_CHECKING:
    from eval.raw import Raw
    from pipeline.chat.counselor import Counselor

Item = Mapping[str, Any]
Said = Mapping[str, str]
"""``reply`` and its ``source``."""
Answers = Literal["policy", "counselor"]
_BATCH = 16


@dataclass
class Contest:
    """What is compared.

    Attributes:
        items: the conversations, the same for all.
        replies: name → one reply per item.
        sources: name → id of an item → where its reply comes from (`pipeline.chat.reply.Reply.source`).
        pairs: to calibrate a judge with, from the first evaluated run.
        makers: models that made preference pairs of any of the runs.
        left_out: conversations left out because a run was trained on them.
        first: the first run that was evaluated.
        asked: names whose replies were written for this comparison, in part or all.
        raw: the evaluations put together, where nothing had to be asked.
    """

    items: list[Item]
    replies: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    makers: set[str] = field(default_factory=set)
    left_out: int = 0
    first: str = ""
    asked: list[str] = field(default_factory=list)
    raw: Raw | None = None


def contest(
    targets: Sequence[str],
    answers: Answers = "policy",
    limit: int | None = None,
    tell: Callable[[str], None] = lambda name: None,
    keep: Path | None = None,
) -> Contest:
    """The targets' replies to the conversations of the first one that was evaluated.

    Args:
        targets: run folders, model folders, hub ids, ``openai:URL#model``, and ``base``, the base model of the first
            run.
        answers: ``policy``: what the model itself writes, greedily, as in the eval stage; replies that an evaluation
            holds already are taken from there. ``counselor``: what a user would be told, with safety layer and gate.
        limit: so many conversations at most.
        tell: called with the name of each target that is about to be asked.
        keep: folder in which replies are kept as they come, so that a comparison that was cut off goes on from there;
            those of a model that has changed since are asked for anew.

    Raises:
        UserError: nothing to compare, no evaluated run among the targets, two of the same name, or a model that
            cannot be had.
    """
    known = {target: raw for target in targets if target != BASE and (raw := _evaluation(target))}
    if len(set(map(_name, targets))) < len(targets):
        raise UserError("two targets have the same name", "rename one of the folders")
    if not known:
        raise UserError("none of these is a run with a finished evaluation", "name one such as runs/demo first")
    first = next(iter(known))
    held_out, left_out = _unseen(known[first].items, targets)
    found = Contest(held_out[:limit], left_out=left_out, first=first)
    found.pairs = known[first].pairs or held_out_pairs(Path(first) / "prepare")
    found.makers = {maker for target in known for maker in pair_makers(Path(target) / "prepare")}
    if not found.items:
        raise UserError("every conversation is in the training data of one of these runs", "split the data alike")
    for target in targets:
        said = {} if answers == "counselor" else _said(target, known, first)
        if missing := [item for item in found.items if _key(item) not in said]:
            found.asked.append(_name(target))
            said |= _written(target, first, missing, answers, keep, tell)
        found.replies[_name(target)] = [said[_key(item)]["reply"] for item in found.items]
        found.sources[_name(target)] = {str(item["id"]): said[_key(item)]["source"] for item in found.items}
    if not found.asked and not left_out and limit is None:
        found.raw = replace(gather(targets), sources=found.sources)
    return found


def _evaluation(target: str) -> Raw | None:
    folders = (Path(target) / "eval" / "raw", Path(target) / "raw")
    return find_raw(target) if any((folder / "evaluation.json").is_file() for folder in folders) else None


def _said(target: str, known: Mapping[str, Raw], first: str) -> dict[str, Said]:
    """The replies that an evaluation holds: of a run its last policy's, for ``base`` the first run's first."""
    raw = known.get(first if target == BASE else target)
    if raw is None:
        return {}
    system = next(iter(raw.replies)) if target == BASE else list(raw.replies)[-1]
    told = raw.sources.get(system, {})
    return {
        _key(item): {"reply": reply, "source": told.get(str(item["id"]), "model")}
        for item, reply in zip(raw.items, raw.replies[system], strict=True)
    }


def _unseen(items: Iterable[Item], runs: Iterable[str]) -> tuple[list[Item], int]:
    """The items that no run was trained on, and how many were left out; a conversation is known by how it begins."""
    trained = {
        _opening(row["messages"])
        for run in runs
        if (file := Path(run) / "prepare" / "messages" / "train.jsonl").is_file()
        for row in read_jsonl(file)
    }
    every = list(items)
    kept = [item for item in every if _opening(item["messages"]) not in trained]
    return kept, len(every) - len(kept)


def _opening(messages: Iterable[Mapping[str, str]]) -> str:
    return next(m["content"] for m in messages if m["role"] == "user")


def _written(
    target: str,
    first: str,
    items: Sequence[Item],
    answers: Answers,
    keep: Path | None,
    tell: Callable[[str], None],
) -> dict[str, Said]:
    """The target's replies to the items; those that ``keep`` holds already are not asked for again."""
    source = first if target == BASE else target
    keys = {_key(item): content_key(target, state_of(source), answers, item["messages"]) for item in items}
    with Store(keep / "raw" / "written.jsonl" if keep else None) as store:
        missing = [item for item in items if "source" not in (store.get(keys[_key(item)]) or {})]
        if missing:
            tell(f"{_name(target)} ({len(missing)} conversations)")
            for item, said in _ask(source, missing, answers, "none" if target == BASE else None):
                store.put(keys[_key(item)], dict(said))
        return {key: row for key, stored in keys.items() if (row := store.get(stored))}


def _ask(source: str, items: Sequence[Item], answers: Answers, adapter: str | None) -> Iterator[tuple[Item, Said]]:
    """Each item with its reply, as it comes."""
    from pipeline import Counselor

    bot = Counselor.load(source, adapter=adapter) if adapter else Counselor.load(source)
    try:
        if answers == "policy":
            yield from _policy(bot, items, adapter)
        else:
            yield from ((item, _counselled(bot, item, adapter)) for item in items)
    finally:
        bot.close()


def _policy(bot: Counselor, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[Item, Said]]:
    from pipeline.chat.backends import Request, Settings, collect
    from pipeline.chat.reviewed import PickedStream
    from pipeline.prompt import with_system

    settings = Settings.of(bot.options, temperature=0)
    if adapter:
        settings = replace(settings, adapter=adapter)
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        asked = [with_system(item["messages"], bot.system) for item in batch]
        marked = [bot.sentiments.mark(messages) if bot.sentiments else messages for messages in asked]
        streams = bot.backend.stream([Request(talk, settings) for talk in marked])
        for item, stream in zip(batch, streams, strict=True):
            source = stream.picked.source if isinstance(stream, PickedStream) else "model"
            yield item, {"reply": collect(stream).text, "source": source}


def _counselled(bot: Counselor, item: Item, adapter: str | None) -> Said:
    *past, last = item["messages"]
    session = f"compared {item['id']}"
    bot.take_up(past, session=session)
    reply = bot.reply(last["content"], session=session, adapter=adapter)
    return {"reply": reply.text, "source": reply.source}


def _name(target: str) -> str:
    if target == BASE:
        return BASE
    return target.rpartition("#")[2] if target.startswith("openai:") else Path(target).resolve().name


def _key(item: Item) -> str:
    return repr([(m["role"], m["content"]) for m in item["messages"]])
