"""Preparing exploded multi-turn rows: gonggam against the plain way, in one run.

The rows have the shape of the real set: of 26,662 rows 8,094 single, the others exchanges of conversations stored
again as prefixes, with exact and near duplicates. The plain way does the same steps as users write them: pandas, a
function applied row by row, datasketch's own MinHash and LSH, then grouping and writing.

Run: ``python bench/prepare.py [--rows 26662] [--tenfold] [--million]``: also ten times the rows, also a million (peak
resident memory). Results go to ``bench/results/prepare.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, record, table, told, versions

PACKAGES = ("datasketch", "numpy", "pandas", "pyarrow")


def make_rows(path: Path, rows: int, seed: int = 7) -> None:
    """Write ``rows`` rows in the real set's shape, out of shuffled words of the sample corpus."""
    pick = random.Random(seed)
    words: list[str] = []
    with (ROOT / "data_prep/samples/counsel_ko/dialogues.jsonl").open(encoding="utf-8") as file:
        for line in file:
            words += [w for turn in json.loads(line)["turns"] for w in turn["content"].split()]
    extra = [
        "ㅋㅋㅋㅋㅋㅋ",
        "제 번호는 010-1234-5678이에요",
        "<br>",
        "저는 김민지라고 합니다",
        "a@b.com",
        "!!!!!!",
        "1393에",
    ]

    def say(low: int, high: int) -> str:
        text = pick.choices(words, k=pick.randint(low, high))
        if pick.random() < 0.05:
            text.insert(pick.randrange(len(text)), pick.choice(extra))
        return " ".join(text)

    made = 0
    with path.open("w", encoding="utf-8") as file:
        while made < rows:
            exchanges = pick.choices((1, 2, 3), weights=(30, 35, 35))[0]
            turns = [say(5, 15) if k % 2 == 0 else say(12, 30) for k in range(2 * exchanges)]
            stored = list(range(1, exchanges + 1))
            if pick.random() < 0.03:
                stored.append(exchanges)
            for k in stored[: rows - made]:
                said = turns[: 2 * k]
                if pick.random() < 0.02:
                    said[-1] += " 네"
                marks = "\n".join(f"{'답변' if i % 2 else '질문'}: {t}" for i, t in enumerate(said[:-1]))
                kind = "single" if k == 1 else f"multi_{k}"
                row = {"instruction": marks if k > 1 else said[0], "output": said[-1], "source": "x", "type": kind}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                made += 1


def ours(path: str, out: str) -> dict:
    """The project's way."""
    from data_prep import prepare

    formats = ["messages", "alpaca", "sharegpt"]
    return prepare([{"reader": "empathetic_dialogues_ko", "path": path}], out, formats=formats)["rows"]


def plain(path: str, out: str) -> dict:
    """The plain way: the same steps, row by row, in pandas. Masking uses the same patterns."""
    import pandas as pd

    from data_prep.privacy import mask

    frame = pd.read_json(path, lines=True)
    frame["turns"] = frame.apply(plain_parse, axis=1)
    frame["turns"] = frame["turns"].apply(lambda turns: [mask(plain_clean(t)) for t in turns])
    frame["key"] = frame["turns"].apply(tuple)
    frame = frame.drop_duplicates("key")
    prefixes = {key[:n] for key in frame["key"] for n in range(2, len(key), 2)}
    frame = frame[frame["key"].apply(lambda key: key not in prefixes)]
    frame = frame.loc[sorted(plain_distinct(frame))]
    places = frame["key"].apply(lambda key: hash(key[0]) % 100)
    os.makedirs(out, exist_ok=True)
    for split, low, high in (("test", 0, 5), ("validation", 5, 10), ("train", 10, 100)):
        part = frame[(places >= low) & (places < high)]["turns"]
        for form, shape in PLAIN_FORMS.items():
            with open(f"{out}/{form}-{split}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part.apply(shape))
    return {"kept": len(frame)}


def plain_parse(row: dict[str, str]) -> list[str]:
    """The turns of a row."""
    text = row["instruction"].replace("\\n", "\n")
    parts = re.split(r"(?:^|\n)(질문|답변)\s*:\s*", text)
    turns = [t.strip() for t in parts[2::2]] if len(parts) > 1 else [text]
    return [*turns, row["output"]]


def plain_clean(text: str) -> str:
    """A text without markup, control characters and long runs."""
    text = re.sub(r"<[^<>]+>", " ", text)
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\u200b\ufeff]", "", text)
    text = re.sub(r"([ㄱ-ㅎㅏ-ㅣ!?~.])\1{3,}", r"\1\1\1", text)
    text = re.sub(r"(?<!\d)1393(?!\d)", "109", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def plain_distinct(frame: Any) -> Any:
    """Index of the rows without near duplicates: what datasketch's LSH proposes is gone, as its documentation does."""
    from datasketch import MinHash, MinHashLSH

    lsh, kept = MinHashLSH(threshold=0.85, num_perm=128), []
    frame = frame.assign(length=frame["key"].apply(lambda key: sum(map(len, key)))).sort_values(
        "length", ascending=False
    )
    for number, turns in zip(frame.index, frame["turns"], strict=True):
        text = "".join("\n".join(turns).split())
        signature = MinHash(num_perm=128)
        for piece in {text[i : i + 5] for i in range(max(1, len(text) - 4))}:
            signature.update(piece.encode())
        if not lsh.query(signature):
            lsh.insert(number, signature)
            kept.append(number)
    return kept


PLAIN_FORMS = {
    "messages": lambda ts: {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(ts)]
    },
    "sharegpt": lambda ts: {"conversations": [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(ts)]},
    "alpaca": lambda ts: {
        "instruction": ts[-2],
        "input": "",
        "output": ts[-1],
        "history": [[ts[i], ts[i + 1]] for i in range(0, len(ts) - 2, 2)],
    },
}


def timed(way: str, rows: int, folder: Path) -> dict:
    """Run one way in a process of its own: seconds, CPU seconds, peak resident MiB, conversations kept."""
    data = folder / f"rows-{rows}.jsonl"
    if not data.exists():
        make_rows(data, rows)
    start = time.perf_counter()
    command = [sys.executable, __file__, "--way", way, "--data", str(data), "--out", str(folder / f"{way}-{rows}")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return {
        "way": way,
        "rows": rows,
        "seconds": time.perf_counter() - start,
        **json.loads(done.stdout.splitlines()[-1]),
    }


def _one(way: str, data: str, out: str) -> None:
    import resource

    kept = {"ours": ours, "plain": plain}[way](data, out)["kept"]
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(use.ru_utime + use.ru_stime for use in (own, children))
    print(json.dumps({"cpu": cpu, "peak_mib": max(own.ru_maxrss, children.ru_maxrss) / 1024, "kept": kept}))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=26_662)
    parser.add_argument("--tenfold", action="store_true")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--way")
    parser.add_argument("--data")
    parser.add_argument("--out")
    given = parser.parse_args()
    if given.way:
        _one(given.way, given.data, given.out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [timed("plain", given.rows, folder), timed("ours", given.rows, folder)]
        more = [10 * given.rows] * given.tenfold + [1_000_000] * given.million
        runs += [timed("ours", rows, folder) for rows in more]
    _write(runs)
    record("prepare", figures(runs, given.rows), PACKAGES)


def figures(runs: list[dict], rows: int) -> dict[str, float]:
    """What the card shows, by key."""
    plain, own = runs[:2]
    by_rows = {run["rows"]: run for run in runs[2:]}
    found = {"times_plain": plain["seconds"] / own["seconds"]}
    if 10 * rows in by_rows:
        found["tenfold"] = by_rows[10 * rows]["seconds"] / own["seconds"]
    if 1_000_000 in by_rows:
        found["million_gb"] = by_rows[1_000_000]["peak_mib"] * 2**20 / 1e9
    return found


def _write(runs: list[dict]) -> None:
    forms = {"way": "", "rows": ",", "kept": ",", "seconds": ".1f", "cpu": ".1f", "peak_mib": ",.0f"}
    cells = [[format(run[key], form) for key, form in forms.items()] for run in runs]
    lines = [
        "# Preparing exploded multi-turn rows",
        "",
        f"{told()} {', '.join(f'{name} {found}' for name, found in versions(PACKAGES).items())}.",
        "",
        *table(("way", "rows", "conversations kept", "seconds", "CPU seconds", "peak MiB"), cells),
        "",
        "The plain way drops every candidate of the LSH; ours compares candidates exactly and keeps those below the "
        "threshold, so it may keep a few conversations more.",
        "",
        f"Faster by {runs[0]['seconds'] / runs[1]['seconds']:.1f} times "
        f"(in CPU time {runs[0]['cpu'] / runs[1]['cpu']:.1f} times).",
    ]
    lines += [
        f"{run['rows'] / runs[1]['rows']:.1f} times the rows take {run['cpu'] / runs[1]['cpu']:.1f} times the CPU time "
        f"and {run['peak_mib']:,.0f} MiB."
        for run in runs[2:]
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "prepare.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
