"""The scores as tables: CSV and JSON lines with one reply a row, Excel with the systems' answers side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gonggam.files import write_jsonl, writing


def write_sheets(results: Mapping[str, Any], out: Path) -> None:
    """Write ``scores.csv``, ``scores.jsonl`` and ``report.xlsx`` into ``out``."""
    rows = results["rows"]
    write_jsonl(out / "scores.jsonl", rows)
    flat = list(map(_flat, rows))
    names = dict.fromkeys(name for row in flat for name in row)
    with writing(out / "scores.csv") as file:
        file.write("\ufeff")  # without the mark, Excel reads Hangul as Latin-1
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows({name: _harmless(value) for name, value in row.items()} for row in flat)
    _write_excel(results, out / "report.xlsx")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: row[key] for key in ("item", "category", "turns", "system")}
    texts = {"question": row["messages"][-1]["content"], "reply": row["reply"], "reference": row["reference"]}
    if row["source"]:
        texts["source"] = row["source"]
    return {**plain, **texts, **row["scores"], **row["metrics"]}


def _side_by_side(results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        known = {"id": row["item"], "category": row["category"], "question": row["messages"][-1]["content"]}
        line = items.setdefault(row["item"], {**known, "reference": row["reference"]})
        line[row["system"]] = row["reply"]
        line.update({f"{row['system']} · {key}": score for key, score in row["scores"].items()})
    return items.values()


def _write_excel(results: Mapping[str, Any], path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    _sheet(book.active, "answers", list(_side_by_side(results)))
    means = [
        {"system": system, "criterion": key, **{k: score[k] for k in ("value", "low", "high", "n", "missing")}}
        for system, scores in results["scores"].items()
        for key, score in scores.items()
    ]
    _sheet(book.create_sheet(), "scores", means)
    _sheet(book.create_sheet(), "differences", results["tests"])
    with writing(path, "wb") as file:
        book.save(file)


def _sheet(sheet: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from openpyxl.styles import Alignment, Font

    sheet.title = title
    names = list(dict.fromkeys(name for row in rows for name in row))
    sheet.append(names)
    for row in rows:
        sheet.append([_harmless(row.get(name)) for name in names])
    for cell in sheet[1]:
        cell.font = Font(bold=True)
    for column in sheet.columns:
        longest = max(len(str(cell.value or "")) for cell in column)
        sheet.column_dimensions[column[0].column_letter].width = min(60, max(9, longest * 1.3))
        for cell in column:
            cell.alignment = Alignment(wrap_text=True, vertical="top")
    sheet.freeze_panes = "A2"


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet neither runs as a formula nor refuses for its control characters."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
