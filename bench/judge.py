"""How fast judgements come from a slow API: ours, and deepeval's GEval where an environment with it is named.

    python bench/judge.py [--items 1000] [--latency 0.2] [--width 32] [--deepeval PYTHON]

A stand-in server answers every request after the latency, with log-probabilities. Ideal time is
items / width x latency. ``--deepeval`` names the Python of an environment in which deepeval is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import Row, publish

TOKENS = [{"token": "4", "logprob": -0.7, "bytes": [52], "top_logprobs": [
    {"token": "4", "logprob": -0.7, "bytes": [52]}, {"token": "5", "logprob": -1.2, "bytes": [53]}]}]  # fmt: skip


def answer(body: dict) -> bytes:
    """A completion: a bare score, or JSON where deepeval's prompt asks for it."""
    text = '{"score": 4, "reason": "good"}' if "JSON" in json.dumps(body["messages"]) else "4"
    content = [{**TOKENS[0], "token": c, "top_logprobs": TOKENS[0]["top_logprobs"]} for c in text]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301}
    head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    return json.dumps({**head, "choices": [{**choice, "logprobs": {"content": content}}], "usage": usage}).encode()


async def serve(latency: float) -> None:
    """Answer on a free port, whose number is printed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
                body = json.loads(await reader.readexactly(int(fields[b"content-length"])))
                await asyncio.sleep(latency)
                data = answer(body)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
                    + data
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def ours(url: str, items: int, width: int) -> dict:
    """Judge ``items`` replies under one criterion; then once more, from disk."""
    from eval.geval import Answer, GEval
    from eval.http_judge import HttpJudge
    from eval.judges import JudgeSpec
    from eval.rubric import load_rubric
    from eval.store import Store

    rubric = load_rubric("counsel-ko").only(["empathy"])
    judge = HttpJudge(JudgeSpec(name="bench", model="gpt-4o", url=url, api_key_env="", concurrency=width))
    answers = [
        Answer({"id": str(i), "messages": [{"role": "user", "content": f"힘들어 {i}"}]}, "그랬군요")
        for i in range(items)
    ]
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            with Store(Path(folder) / "verdicts.jsonl") as store:
                start = time.perf_counter()
                found = GEval(rubric, judge, store).score(answers)
                seconds.append(time.perf_counter() - start)
    assert all(j.verdict.score for j in found)
    return {"seconds": seconds[0], "again": seconds[1]}


DEEPEVAL = """
import os, sys, time, json
os.environ.update(DEEPEVAL_TELEMETRY_OPT_OUT="YES", OPENAI_API_KEY="x", DEEPEVAL_DISABLE_DOTENV="1")
from deepeval import evaluate
from deepeval.evaluate import AsyncConfig, CacheConfig, DisplayConfig
from deepeval.metrics import GEval
from deepeval.models import GPTModel
from deepeval.test_case import LLMTestCase
try: from deepeval.test_case import SingleTurnParams as P
except ImportError: from deepeval.test_case import LLMTestCaseParams as P
url, items, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
metric = GEval(name="empathy", criteria="empathy", evaluation_steps=["read", "judge the empathy"],
    evaluation_params=[P.INPUT, P.ACTUAL_OUTPUT], async_mode=True,
    model=GPTModel(model="gpt-4o", api_key="x", base_url=url))
cases = [LLMTestCase(input=f"힘들어 {i}", actual_output="그랬군요") for i in range(items)]
start = time.perf_counter()
evaluate(cases, [metric], async_config=AsyncConfig(max_concurrent=width, throttle_value=0),
    display_config=DisplayConfig(show_indicator=False, print_results=False),
    cache_config=CacheConfig(write_cache=False))
seconds = time.perf_counter() - start
from importlib.metadata import version
print("RESULT", json.dumps({"seconds": seconds, "version": version("deepeval")}))
"""
ABOUT = (
    "1,000 judgements, 200 ms latency, 32 in flight. deepeval: `GEval`, steps given, one request a case, "
    "`max_concurrent=32`, no throttle, telemetry off; started again it begins anew."
)


def theirs(python: str, url: str, items: int, width: int) -> dict:
    """The same number of judgements by deepeval, steps given, telemetry off."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", DEEPEVAL, url, str(items), str(width)], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "DEEPEVAL_TELEMETRY_OPT_OUT": "YES"}, check=False,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(lines[-1].removeprefix("RESULT"))


def told(ideal: float, found: dict, deepeval: dict | None) -> list[Row]:
    """The rows of the table."""
    share, again = ideal / found["seconds"], found["again"]
    rows: list[Row] = [
        ("ideal", f"{ideal:.1f} s"),
        ("gonggam", f"{found['seconds']:.2f} s, {share:.2f} of the ideal speed", {"share_of_ideal": share}),
        ("gonggam once more, from disk", f"{again:.2f} s", {"again_s": again}),
    ]
    if deepeval:
        times = deepeval["seconds"] / found["seconds"]
        what = f"deepeval {deepeval['version']}"
        figure = f"{deepeval['seconds']:.1f} s, {ideal / deepeval['seconds']:.2f} of the ideal speed"
        rows.append((what, figure, {"times_deepeval": times}))
    return rows


def main() -> None:
    """Measure, print, and write the table where the size is the usual one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--deepeval", help="Python of an environment with deepeval")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        asyncio.run(serve(a.latency))
        return
    command = [sys.executable, __file__, "--serve", "--latency", str(a.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = next(iter(server.stdout or ()))
            url = f"http://127.0.0.1:{int(port)}/v1"
            ideal = -(-a.items // a.width) * a.latency
            ours(url, 64, a.width)  # imports and connections
            found = ours(url, a.items, a.width)
            rows = told(ideal, found, theirs(a.deepeval, url, a.items, a.width) if a.deepeval else None)
            for what, figure, *_ in rows:
                print(f"| {what} | {figure} |")
            if (a.items, a.latency, a.width) == (1000, 0.2, 32):
                publish("judge", "Judgements against a slow server", rows, ["httpx"], about=ABOUT)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
