"""`gonggam data prefer` against a real server that fails, hangs and kills: nothing that was answered is asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep import Conversation, Turn
from data_prep.answers import Answers, kept
from data_prep.preferences import from_samples
from data_prep.teacher import Teacher, TeacherOptions
from gonggam.errors import UserError
from gonggam.files import read_jsonl, write_jsonl
from pipeline.prefer import geval_judge

ROOT = Path(__file__).parent.parent


class Server(ThreadingHTTPServer):
    """OpenAI-compatible; ``fails(number, body)`` may do harm first and say so with a status (0 cuts the connection)."""

    daemon_threads = True

    def __init__(self, fails: Callable[[int, dict], int | None] = lambda number, body: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails, self.asked, self.answered = fails, 0, Counter[str]()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked += 1
        status = self.server.fails(self.server.asked, json.loads(raw))
        if status == 0:
            self.close_connection = True
            return
        asked = "".join(message["content"] for message in json.loads(raw)["messages"])
        text = str(int("0번째 말" in asked)) if "평가" in asked else f"답 {len(asked)}"
        answer = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        body = b"" if status else json.dumps(answer).encode()
        self.send_response(status or 200)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if not status:
            self.server.answered[raw] += 1
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*args: object) -> Server:
        servers.append(Server(*args))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_killed_command_goes_on_without_paying_twice(tmp_path, serve):
    rows = [
        {"messages": [{"role": "user", "content": f"{i}번 고민"}, {"role": "assistant", "content": "네"}]}
        for i in range(5)
    ]
    write_jsonl(tmp_path / "talks.jsonl", rows)
    process: subprocess.Popen | None = None

    def kill_at_the_sixth(number: int, body: dict) -> int | None:
        if number == 6 and process is not None:
            os.kill(process.pid, signal.SIGKILL)
            return 0
        return {2: 429, 4: 500, 8: 0}.get(number)

    server = serve(kill_at_the_sixth)
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "data",
        "prefer",
        "talks.jsonl",
        "--out",
        "pairs",
        "--model",
        "m",
    ]
    command += ["--teacher", server.url, "--concurrency", "1", "--per-minute", "1e9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "pairs" / "pairs.jsonl").exists()
    assert server.answered.total() == 3  # of five requests two failed
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "length alone" in done.stdout, done.stdout + done.stderr
    assert len(list(read_jsonl(tmp_path / "pairs" / "pairs.jsonl"))) == 5
    assert len(server.answered) == server.answered.total() == 10


def test_a_server_that_hangs_is_given_up_on_and_asked_again(tmp_path, serve):
    release = threading.Event()

    def hang_once(number: int, body: dict) -> int | None:
        if number == 1:
            release.wait(20)
            return 0
        return None

    server = serve(hang_once)
    options = TeacherOptions(base_url=server.url, model="m", timeout=0.2, requests_per_minute=1e9)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    teacher = Teacher(options, tmp_path / "cache.jsonl", sleep=sleep)
    assert teacher.ask_all([[{"role": "user", "content": "가"}]]) == ["답 1"]
    release.set()
    assert (teacher.usage["requests"], len(waits)) == (2, 1)


def test_a_teacher_that_is_not_there_is_named_at_once(tmp_path):
    gone = TeacherOptions(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(UserError, match=r"nobody answers at http://127.0.0.1:9/v1/.*\. start the teacher"):
        Teacher(gone, tmp_path / "cache.jsonl").ask_all([[{"role": "user", "content": "가"}]])


def test_samples_are_drawn_once_and_ranked_by_a_judge_of_the_evaluation_room(tmp_path, serve):
    server = serve()
    judge = {"name": "j", "url": server.url, "model": "m", "method": "samples", "samples": 1, "api_key_env": ""}
    (tmp_path / "judge.yaml").write_text(json.dumps(judge), "utf-8")
    talks = [Conversation(f"c{i}", (Turn("user", f"{i}번 고민"), Turn("assistant", "네")), "s") for i in range(3)]
    drawn: list[int] = []

    def sample(prompt: list[dict[str, str]], n: int) -> list[str]:
        drawn.append(n)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return [f"{prompt[-1]['content']}에 답하는 {k}번째 말" for k in range(n)]

    def build() -> list[dict]:
        once = kept(Answers(tmp_path / "samples.jsonl"), "policy", sample)
        score = geval_judge(str(tmp_path / "judge.yaml"), "safety-ko", tmp_path / "verdicts.jsonl")
        return from_samples(talks, once, score, n=2)

    with pytest.raises(KeyboardInterrupt):
        build()
    rows = build()
    assert len(drawn) == 4  # three conversations, one of them cut off
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]
    assert all("0번째" in row["chosen"][0]["content"] for row in rows)
    assert set(server.answered.values()) == {1}
    assert build() == rows
    assert (len(drawn), set(server.answered.values())) == (4, {1})


def test_who_is_missing_is_named(tmp_path):
    from typer.testing import CliRunner

    from pipeline.cli_data import app

    write_jsonl(tmp_path / "a.jsonl", [{"q": "고민", "a": "네"}])
    for words, message in (([], "chosen replies"), (["--samples", "2"], "judge the samples")):
        done = CliRunner().invoke(app, ["prefer", str(tmp_path / "a.jsonl"), "--policy", "run", *words])
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)


def test_a_policy_behind_a_server_cannot_be_its_own_judge(tmp_path):
    behind_a_server = SimpleNamespace(backend=SimpleNamespace(model="gpt", name="gpt"))
    with pytest.raises(UserError, match="needs a model in this process"):
        geval_judge("local", "safety-ko", tmp_path / "verdicts.jsonl", lambda: behind_a_server)
