"""`gonggam chat` through a pipe: streaming, commands, and errors that end neither the talk nor the process badly."""

from __future__ import annotations

import io
import json
import sys

from chat_standin import ScriptedBackend
from rich.console import Console

from pipeline.chat.backends import BackendError
from pipeline.chat.counselor import Counselor
from pipeline.cli_chat import Talk

GOOD = "많이 속상하셨겠어요. 지금 가장 마음에 남는 건 무엇인가요?"


def talk(monkeypatch, lines, backend=None, **parts):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    counselor = Counselor(backend or ScriptedBackend(GOOD), **parts)
    Talk(counselor, "me", None, Console(file=out, width=100, highlight=False)).run()
    return " ".join(out.getvalue().split()), counselor


def test_lines_of_a_pipe_are_answered_until_goodbye(monkeypatch):
    shown, counselor = talk(monkeypatch, ["", "면접 떨어졌어 [bold]", "고마워, 이만 종료할게", "안 읽힐 말"])
    assert GOOD in shown
    assert "[bold]" in shown
    assert "안 읽힐 말" not in shown
    assert len(counselor.backend.asked) == 1


def test_commands(monkeypatch, tmp_path):
    file = tmp_path / "memory.json"
    lines = [
        "/why",
        "/mood",
        "면접 떨어졌어",
        "/why",
        "/mood",
        "/persona",
        "/persona 선비",
        "또 떨어졌어",
        "/export " + str(file),
    ]
    shown, counselor = talk(monkeypatch, [*lines, "/forget", "/reset", "/help", "/what", "/quit", "안 읽힐 말"])
    assert shown.count("아직 나눈 이야기가 없어요") == 2
    assert "모델이 직접 쓴 답" in shown
    assert "전문 상담사" in shown
    assert "선비" in counselor.backend.asked[1].messages[0]["content"]
    assert "/what 는 모르는 명령이에요" in shown
    assert json.loads(file.read_text("utf-8"))["exchanges"] == []
    assert "안 읽힐 말" not in shown


def test_a_backend_that_fails_is_told_and_the_talk_goes_on(monkeypatch):
    backend = ScriptedBackend(GOOD, fail=BackendError("server down", "start it"))
    shown, _ = talk(monkeypatch, ["면접 떨어졌어", "/help"], backend)
    assert "server down. start it" in shown
    assert "/reset" in shown
