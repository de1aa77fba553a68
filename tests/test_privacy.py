"""Nothing is sent anywhere unasked, by us or by the libraries we stand on."""

import socket
import subprocess
import sys

import pytest
from conftest import environment, listening

HERE = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "None", "", socket.gethostname()}
TALK = "from pipeline.cli import main; main(['ask', {run!r}, '면접 떨어졌어'])"
PAGE = """
from pathlib import Path
from pipeline import Counselor
from pipeline.serve.app import create_app
from pipeline.serve.options import ServeOptions
from pipeline.serve.store import Store, default_url
from starlette.testclient import TestClient

folder = Path({run!r})
app = create_app(Counselor.load(folder), ServeOptions(), Store.open("sqlite:///page.db"))
with TestClient(app, base_url="http://127.0.0.1:8000") as client:
    assert client.get("/health/live").status_code == 200
    assert client.get("/", follow_redirects=True).status_code == 200
"""
CALL = "import socket; socket.getaddrinfo('elsewhere.invalid', 443)"


def called(code, folder):
    """Whom a Python process calls beyond this machine; it may reach a hub, unlike the other tests' processes."""
    heard = folder / "heard.txt"
    everything = environment(folder) | listening(heard)
    del everything["HF_HUB_OFFLINE"]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=everything, cwd=folder, capture_output=True, text=True, check=False)
    return done, beyond(heard)


def beyond(heard):
    """The addresses in a listener's file that are not this machine's."""
    return set(heard.read_text("utf-8").splitlines()) - HERE if heard.exists() else set()


@pytest.mark.parametrize("code", [TALK, PAGE], ids=["a reply", "the service and its page"])
def test_nothing_leaves_the_machine(code, mini_run, tmp_path):
    done, whom = called(code.format(run=str(mini_run[0])), tmp_path)
    assert done.returncode == 0, done.stderr
    assert whom == set()


def test_the_whole_pipeline_calls_nobody(mini_run):
    """Preparation, three trainings, memory and evaluation; conftest.py listens while the shrunken run is made."""
    assert beyond(mini_run[0].parents[1] / "heard.txt") == set()


def test_a_call_would_be_heard(tmp_path):
    assert called(CALL, tmp_path)[1] == {"elsewhere.invalid"}
