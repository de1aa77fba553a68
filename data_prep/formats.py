"""The forms in which prepared conversations are written, one JSON-lines file a split."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import IO, Any

from data_prep.conversation import Conversation
from data_prep.split import SPLITS, Split
from gonggam.errors import UserError
from gonggam.files import friendly_os_errors, write_json

Record = dict[str, Any]


def messages_row(conversation: Conversation) -> Record:
    """``messages`` is what TRL reads; the first ``given`` of them are context that is not to be trained on.

    ``source``, ``file`` and ``row`` say where it comes from, ``origin`` and ``type`` what the data itself says of that.
    """
    return {
        "id": conversation.id,
        "source": conversation.source,
        "file": conversation.meta.get("file", ""),
        "row": conversation.meta.get("row", 0),
        **{name: conversation.meta.get(name, "") for name in ("origin", "type", "category", "emotion")},
        "given": conversation.given,
        "messages": _with_sentiment(conversation),
    }


def _with_sentiment(conversation: Conversation) -> list[Record]:
    """The messages; a sentiment that the source knew stands with each of the user's, for templates that read it."""
    sentiment = conversation.meta.get("sentiment")
    if sentiment is None:
        return conversation.messages()
    return [m | {"sentiment": sentiment} if m["role"] == "user" else m for m in conversation.messages()]


def alpaca_row(conversation: Conversation) -> Record:
    """Alpaca as LLaMA-Factory reads it: earlier exchanges in ``history``, the last one in instruction and output.

    The replies in ``history`` are trained on too, unless the trainer is told ``mask_history: true``.
    """
    said = [turn.content for turn in conversation.turns if turn.role != "system"]
    system = next((turn.content for turn in conversation.turns if turn.role == "system"), "")
    return {
        "instruction": said[-2],
        "input": "",
        "output": said[-1],
        "system": system,
        "history": [[said[i], said[i + 1]] for i in range(0, len(said) - 2, 2)],
    }


def alpaca_replies(conversation: Conversation) -> list[Record]:
    """One Alpaca row for each reply that this conversation teaches; made for ``mask_history: true``."""
    ends = [i for i, turn in enumerate(conversation.turns, 1) if turn.role == "assistant" and i > conversation.given]
    return [alpaca_row(replace(conversation, turns=conversation.turns[:end])) for end in ends]


def sharegpt_row(conversation: Conversation) -> Record:
    """ShareGPT: ``conversations[{from, value}]``."""
    system = next((turn.content for turn in conversation.turns if turn.role == "system"), "")
    said = [turn for turn in conversation.turns if turn.role != "system"]
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[t.role], "value": t.content} for t in said], "system": system}


def preference_rows(conversation: Conversation) -> list[Record]:
    """One pair for each rejected reply, in TRL's conversational form."""
    *prompt, chosen = conversation.messages()
    return [
        {
            "id": conversation.id + (f"-{number}" if number else ""),
            "source": conversation.source,
            "prompt": prompt,
            "chosen": [chosen],
            "rejected": [{"role": "assistant", "content": text}],
            **({"made_by": conversation.meta["made_by"]} if conversation.meta.get("made_by") else {}),
        }
        for number, text in enumerate(conversation.rejected)
    ]


def labelled_row(conversation: Conversation) -> Record:
    """An utterance with its label, for classifiers."""
    return {
        "id": conversation.id,
        "source": conversation.source,
        "text": conversation.turns[-1].content,
        "label": conversation.meta.get("emotion", ""),
    }


ROWS: dict[str, Callable[[Conversation], list[Record]]] = {
    "messages": lambda conversation: [messages_row(conversation)],
    "alpaca": lambda conversation: [alpaca_row(conversation)],
    "alpaca_replies": alpaca_replies,
    "sharegpt": lambda conversation: [sharegpt_row(conversation)],
}

_ALPACA: Record = {
    "formatting": "alpaca",
    "columns": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
}

#: Columns of each form in LLaMA-Factory's ``dataset_info.json``.
_LLAMA_FACTORY: dict[str, Record] = {
    "alpaca": _ALPACA,
    "alpaca_replies": _ALPACA,
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}},
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
}


#: What preparation writes: the quarantine comes first and marks the folder, the report last and says it is whole.
OUTPUTS = (
    "quarantine.jsonl",
    "messages",
    "alpaca",
    "alpaca_replies",
    "sharegpt",
    "parquet",
    "preference",
    "labelled",
    "README.md",
    "report.json",
)


class Writer:
    """Writes rows as ``<out>/<form>/<split>.jsonl``; every form it was asked for gets all three files."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.counts: dict[str, Counter[str]] = {}
        self._stack = ExitStack()
        self._files: dict[tuple[str, str], IO[str]] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, form: str, split: Split, row: Record) -> None:
        """Add one row."""
        if form not in self.counts:
            self._open(form)
        self._files[form, split].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.counts[form][split] += 1

    def _open(self, form: str) -> None:
        (self.out / form).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            path = self.out / form / f"{split}.jsonl"
            self._files[form, split] = self._stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        self.counts[form] = Counter(dict.fromkeys(SPLITS, 0))
        if form in _LLAMA_FACTORY:
            info = {f"gonggam_{split}": {"file_name": f"{split}.jsonl", **_LLAMA_FACTORY[form]} for split in SPLITS}
            write_json(self.out / form / "dataset_info.json", info)


def write_parquet(out: Path) -> None:
    """Turn ``<out>/messages/*.jsonl`` into ``<out>/parquet/<split>.parquet``; empty splits are left out."""
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    (out / "parquet").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        source = out / "messages" / f"{split}.jsonl"
        if source.stat().st_size:
            options = pj.ReadOptions(block_size=64 << 20)
            target = out / "parquet" / f"{split}.parquet"
            with (
                pj.open_json(source, read_options=options) as reader,
                pq.ParquetWriter(target, reader.schema) as writer,
            ):
                for batch in reader:
                    writer.write_batch(batch)


@contextmanager
def finishing(out: Path) -> Iterator[Path]:
    """Yield an empty folder; on success what was put into it moves into ``out``, the report last.

    Entries of an earlier result are replaced, other files in ``out`` are left alone.

    Raises:
        UserError: ``out`` holds something of the same name that is no earlier result, or cannot be written.
    """
    taken = [name for name in OUTPUTS if (out / name).exists()]
    if out.is_file() or (taken and "quarantine.jsonl" not in taken):
        what = f"holds {', '.join(taken)}, which preparation did not write" if taken else "is a file"
        raise UserError(what, "choose another folder", file=out)
    with friendly_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".preparing.*"):  # left by a run that was killed
            shutil.rmtree(stale)
        aside = Path(mkdtemp(dir=out, prefix=".preparing."))
        try:
            yield aside
            for name in reversed(OUTPUTS):
                place = out / name
                if place.is_dir():
                    shutil.rmtree(place)
                elif name != "quarantine.jsonl":
                    place.unlink(missing_ok=True)
            for name in OUTPUTS:
                if (aside / name).exists():
                    (aside / name).replace(out / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):
                out.rmdir()  # only an empty folder can go: the one made above when nothing came of it
