"""The data card: README.md with the YAML head that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def data_card(report: Mapping[str, Any]) -> str:
    """README.md of a prepared folder, from its report."""
    import yaml

    configs = [
        {
            "config_name": form,
            **({"default": True} if form == "messages" else {}),
            "data_files": [{"split": s, "path": f"{form}/{s}.jsonl"} for s, rows in splits.items() if rows],
        }
        for form, splits in report["files"].items()
    ]
    head = yaml.safe_dump(
        {
            "language": ["ko"],
            "task_categories": ["text-generation"],
            "tags": ["counselling", "empathy", "dialogue"],
            "configs": configs,
        },
        allow_unicode=True,
        sort_keys=False,
    )
    sections = [f"---\n{head}---", "# Prepared Korean dialogues", _summary(report), "## Files", _files(report)]
    sections += ["## Where the rows went", _books(report), "## What was changed", _changes(report)]
    return "\n\n".join(sections) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    return (
        f"{report['conversations']:,} conversations with {report['supervised_replies']:,} supervised replies, "
        f"from {report['rows']['rows']:,} rows of {', '.join(report['sources'])}. Made with gonggam; "
        "the licence of each source holds for its rows."
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _files(report: Mapping[str, Any]) -> str:
    rows = [[form, *(f"{n:,}" for n in splits.values())] for form, splits in report["files"].items()]
    note = (
        "In `messages`, the first `given` messages of a row are context only: another row teaches the replies in them. "
        "A preference pair lies in the split of its conversation."
    )
    return _table(["form", "train", "validation", "test"], rows) + "\n\n" + note


def _books(report: Mapping[str, Any]) -> str:
    keys = list(report["rows"])
    rows = [[name, *(f"{book[key]:,}" for key in keys)] for name, book in report["sources"].items()]
    rows.append(["total", *(f"{report['rows'][key]:,}" for key in keys)])
    text = _table(["source", *keys], rows)
    reasons = [[reason.replace("|", "\\|"), f"{count:,}"] for reason, count in report["reasons"].items()]
    return text + ("\n\n" + _table(["reason (see quarantine.jsonl)", "rows"], reasons[:20]) if reasons else "")


def _changes(report: Mapping[str, Any]) -> str:
    rows = [[f"cleaning: {rule}", f"{count:,}"] for rule, count in report["cleaned"].items()]
    rows += [
        [f"personal data ({report['options']['privacy']}): {kind}", f"{count:,}"]
        for kind, count in report["personal_data"].items()
    ]
    return _table(["what", "count"], rows) if rows else "Nothing."
