"""Raw files in, clean and leak-free conversations out: the whole way in one function.

Every row is read, cleaned and masked into a spool on disk; only hashes stay in memory. Then it is decided which rows
are prefixes or duplicates of others, and what is kept is written by split. The same input gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.card import data_card
from data_prep.collect import Collected
from data_prep.conversation import Conversation, letters
from data_prep.formats import ROWS, Writer, finishing, labelled_row, preference_rows, write_parquet
from data_prep.near import jaccard, near_duplicates, shingles
from data_prep.options import PrepareOptions
from data_prep.reassemble import DUPLICATE, KEPT, MERGED, fates, given_turns
from data_prep.split import Split, guaranteed, split_of
from data_prep.spool import Spool
from gonggam.errors import UserError
from gonggam.files import write_json, write_text
from gonggam.progress import Progress

if TYPE_CHECKING:
    import numpy as np


NEAR, UNWANTED = 3, 4
FATES = {KEPT: "kept", MERGED: "merged", DUPLICATE: "duplicate", NEAR: "near_duplicate", UNWANTED: "filtered"}


def prepare(
    sources: Sequence[Mapping[str, Any]], out: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """Prepare data sources into the folder ``out``.

    Args:
        sources: entries such as ``{"reader": "counsel_ko"}`` or ``{"path": "data/*.csv", "rows": 5000}``.
        out: folder to write; an earlier result in it is replaced, other files are left alone.
        progress: called as ``progress(done, total)``; while rows are read the total is not known and 0.
        options: the other fields of `PrepareOptions` (split, clean, privacy, reassemble, deduplicate, turns, formats).

    Returns:
        The report that is also written to ``report.json``. For each source and in total, rows = kept + merged +
        duplicate + near_duplicate + quarantined + filtered.

    Raises:
        UserError: an unknown reader, unreadable data, wrong options, nothing left, or ``out`` holds something else.
    """
    settings = _settings(sources, options)
    tell = progress or (lambda done, total: None)
    with finishing(Path(out)) as folder, Spool(folder) as spool:
        data = Collected(settings, spool)
        with (folder / "quarantine.jsonl").open("w", encoding="utf-8", newline="\n") as quarantine:
            data.collect(quarantine, tell)
        fate = _decide(data, tell)
        with Writer(folder) as writer:
            replies = _write(data, fate, writer, tell)
        if "parquet" in settings.formats:
            write_parquet(folder)
        report = _report(data, fate, writer, replies)
        write_text(folder / "README.md", data_card(report))
        write_json(folder / "report.json", report)
    return report


def _settings(sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> PrepareOptions:
    from pydantic import ValidationError

    try:
        return PrepareOptions.model_validate({"sources": [dict(source) for source in sources], **options})
    except ValidationError as error:
        first = error.errors()[0]
        unknown = first["type"] == "extra_forbidden"
        why = "there is no such option" if unknown else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {why}", "see docs/data.md") from error


def _decide(data: Collected, progress: Progress) -> np.ndarray:
    """The fate of every spooled row, one of `FATES`."""
    options = data.options
    fate = fates(data.hashes, data.lengths, exact=options.deduplicate.exact, prefixes=options.reassemble)
    threshold = options.deduplicate.near
    if threshold is not None:
        rows = (fate == KEPT).nonzero()[0].tolist()
        texts = (data.spool[row].text() for row in rows)
        gone = near_duplicates(
            texts,
            lambda i: data.spool[rows[i]].text(),
            threshold,
            apart=lambda i, j: _branches(data.spool[rows[i]], data.spool[rows[j]], threshold),
            progress=lambda done: progress(done, len(rows)),
        )
        fate[[rows[i] for i in gone]] = NEAR
    fate[_unwanted(data, fate)] = UNWANTED
    if not (fate == KEPT).any():
        reasons = "; ".join(f"{reason} ({count})" for reason, count in data.reasons.most_common(3))
        raise UserError("no conversation is left", f"why rows were left out: {reasons or 'there were none'}")
    return fate


def _branches(one: Conversation, two: Conversation, threshold: float) -> bool:
    """Whether two conversations that look alike begin with the same exchange and end differently: both are wanted."""
    first, second = one.exchanges(), two.exchanges()
    if len(first) < 2 or first[:1] != second[:1]:
        return False
    return jaccard(*(shingles(letters("".join(exchanges[-1]))) for exchanges in (first, second))) < threshold


def _unwanted(data: Collected, fate: np.ndarray) -> list[int]:
    """Kept rows above what ``rows`` and ``weight`` of their source allow, chosen by the rows' hashes alone."""
    import numpy as np

    if not any(source.rows or source.weight for source in data.wanted.values()):
        return []
    ends = np.asarray(data.hashes, dtype=np.uint64)[np.cumsum(np.asarray(data.lengths, dtype=np.int64)) - 1]
    kept = {name: ((fate == KEPT) & (np.asarray(data.source) == i)).nonzero()[0] for i, name in enumerate(data.names)}
    weights = {name: source.weight for name, source in data.wanted.items() if source.weight}
    unit = min((len(kept[name]) / weight for name, weight in weights.items()), default=0.0)
    result: list[int] = []
    for name, rows in kept.items():
        limit = round(weights[name] * unit) if name in weights else data.wanted[name].rows
        if limit is not None:
            result += rows[np.argsort(ends[rows], kind="stable")][limit:].tolist()
    return result


def _stand_ins(data: Collected, kept: Sequence[int]) -> dict[int, Split]:
    """See `data_prep.split.guaranteed`."""
    sources: list[list[int]] = [[] for _ in data.names]
    for row in kept:
        sources[data.source[row]].append(data.roots.group(data.root[row]))
    return guaranteed(sources, **data.options.split.model_dump())


def _write(data: Collected, fate: np.ndarray, writer: Writer, progress: Progress) -> Counter[str]:
    """Write every kept row in every form, and the preference pairs.

    Returns:
        The number of replies ``taught``, and of those that stand ``again`` where conversations begin alike.
    """
    options, taught, ids, replies = data.options, set[int](), set[str](), Counter[str]()
    kept = (fate == KEPT).nonzero()[0].tolist()
    roots = {data.root[row] for row in kept}
    moved = _stand_ins(data, kept)
    pairs: set[bytes] = set()
    for row, conversation in enumerate(data.spool):
        root = data.roots.group(data.root[row])
        split = moved.get(root) or split_of(root, **options.split.model_dump())
        identity = conversation.id
        if fate[row] == KEPT and identity in ids:
            identity = f"{identity}-{row}"
        if conversation.rejected and fate[row] in (KEPT, MERGED, DUPLICATE) and data.root[row] in roots:
            for pair in _unseen(preference_rows(replace(conversation, id=identity)), pairs):
                writer.write("preference", split, pair)
        if fate[row] != KEPT:
            continue
        ids.add(identity)
        conversation = replace(conversation, id=identity)
        if conversation.turns[-1].role == "user":
            writer.write("labelled", split, labelled_row(conversation))
            continue
        if options.reassemble:
            conversation = replace(conversation, given=given_turns(conversation, taught))
        replies["taught"] += len(conversation.targets())
        replies["again"] += sum(turn.role == "assistant" for turn in conversation.turns[: conversation.given])
        for form in options.formats:
            if form in ROWS:
                for record in ROWS[form](conversation):
                    writer.write(form, split, record)
        if row % 500 == 0:
            progress(row, len(data.spool))
    return replies


def _unseen(pairs: Iterable[dict[str, Any]], seen: set[bytes]) -> Iterator[dict[str, Any]]:
    """The pairs whose hash is not in ``seen``; adds them to it."""
    for pair in pairs:
        key = blake2b(repr((pair["prompt"], pair["chosen"], pair["rejected"])).encode(), digest_size=16).digest()
        if key not in seen:
            seen.add(key)
            yield pair


def _report(data: Collected, fate: np.ndarray, writer: Writer, replies: Counter[str]) -> dict[str, Any]:
    for number, name in enumerate(data.names):
        rows = fate[[i for i, source in enumerate(data.source) if source == number]].tolist()
        data.books[name].update(FATES[row] for row in rows)
        book = data.books[name]
        if book["rows"] != sum(count for key, count in book.items() if key != "rows"):
            raise AssertionError(f"the books of {name} do not balance: {dict(book)}")
    columns = ("rows", *dict.fromkeys(FATES.values()), "quarantined")
    total = sum(data.books.values(), Counter[str]())
    options = data.options.model_dump(exclude_none=True)
    for source in options["sources"]:  # where files lie differs between machines, what they are called does not
        paths = source.pop("path", [])
        source["files"] = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
    return {
        "rows": {key: total[key] for key in columns},
        "sources": {name: {key: book[key] for key in columns} for name, book in data.books.items()},
        "conversations": sum(writer.counts.get("messages", Counter()).values()),
        "supervised_replies": replies["taught"],
        "shared_replies": replies["again"],
        "files": {form: dict(counts) for form, counts in sorted(writer.counts.items())},
        "cleaned": dict(sorted((+data.cleaner.counts).items())),
        "personal_data": dict(sorted(data.privacy.counts.items())),
        "reasons": dict(sorted(data.reasons.items(), key=lambda item: (-item[1], item[0]))[:100]),
        "options": options,
    }
