"""The card of figures tells what was reached, what was not, and what nobody measured."""

import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import all as every
import card
import record

FIGURES = {
    "fast": {"what": "times as fast", "at_least": 3},
    "late": {"what": "ms late", "at_most": 10},
    "seen": {"what": "seen"},
}
BENCH = {"title": "Speed", "command": "bench/x.py", "figures": FIGURES}


@pytest.fixture
def told(tmp_path):
    """The card of one bench that measured this."""

    def compose(measured=None, **changes):
        if measured is not None:
            facts = {"command": "python bench/x.py", "date": "2026-01-02", "machine": "2 cores", "threads": "all"}
            found = {**facts, "load": 0.5, "versions": {"torch": "2"}, "measured": measured}
            (tmp_path / "speed.json").write_text(json.dumps(found), "utf-8")
        return card.compose({"speed": {**BENCH, **changes}}, tmp_path)

    return compose


def test_a_goal_that_is_missed_stands_there(told):
    text = told({"fast": 2.9, "late": 10, "seen": 4})
    assert "| times as fast | at least 3 | 2.9 | **NOT MET** |" in text
    assert "| ms late | at most 10 | 10 | met |" in text
    assert "| seen |  | 4 |  |" in text
    assert "2 goals: 1 met, 1 not met, 0 not measured" in text
    assert "2026-01-02; 2 cores; torch 2; load 0.5" in text


def test_what_nobody_measured_is_not_met(told):
    assert "2 goals: 0 met, 0 not met, 2 not measured" in told()
    assert "| ms late | at most 10 | – | not measured |" in told({"fast": 3})


def test_what_a_bench_needs_stands_on_the_card_and_keeps_it_from_running(told, monkeypatch):
    monkeypatch.delenv("PEER_PYTHON", raising=False)
    needy = {**BENCH, "command": "bench/x.py --python $PEER_PYTHON"}
    assert "needs PEER_PYTHON in the environment" in told(command=needy["command"])
    assert "needs an NVIDIA GPU" in told(needs="cuda")
    assert not every.fits(needy)
    assert every.fits(BENCH)


def test_a_figure_that_the_goals_do_not_know_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(KeyError, match="sft_time"):
        record.record("train", {"sft_time": 1.0})
    record.record("train", {"sft_times_trl": 5}, ["numpy"])
    found = json.loads((tmp_path / "train.json").read_text("utf-8"))
    assert found["measured"] == {"sft_times_trl": 5.0}
    assert found["versions"]["numpy"]


def test_an_option_is_given_where_its_variable_is_set(monkeypatch):
    bench = {"command": "bench/x.py", "optional": "--peer $PEER_PYTHON"}
    monkeypatch.delenv("PEER_PYTHON", raising=False)
    assert every.words(bench) == ["bench/x.py"]
    monkeypatch.setenv("PEER_PYTHON", "/env/bin/python")
    assert every.words(bench) == ["bench/x.py", "--peer", "/env/bin/python"]


@pytest.mark.parametrize("name", record.goals())
def test_every_bench_hands_over_its_figures(name):
    """A key that no script mentions could never be measured."""
    bench = record.goals()[name]
    script = ROOT / bench["command"].split()[0]
    family = [path.read_text("utf-8") for path in script.parent.glob(f"{script.stem}*.py")]
    told = rf'(record|publish)\(\s*("{name}"|f"{script.stem}-\{{name\}}")'
    assert any(re.search(told, text) for text in family)
    for key in bench["figures"]:
        stem = re.sub("^(sft|dpo)", r"(\1|\\{\\w+\\})", key)
        composed = r"|\{key\}_cpu" if key.endswith("_cpu") else ""
        assert any(re.search(f'"({stem}{composed})"', text) for text in family), f"{script.name} never measures {key}"


def test_every_bench_stands_on_the_card():
    scripts = {bench["command"].split()[0] for bench in record.goals().values()}
    helpers = {"all", "card", "record", "serve_app", "serve_load", "serve_model", "serve_process"}
    assert {path.stem for path in (ROOT / "bench").glob("*.py")} == helpers | {path[6:-3] for path in scripts}


def test_the_card_is_made_of_the_last_measurements():
    path = ROOT / "bench/results/CARD.md"
    assert path.read_text("utf-8") == card.compose(record.goals(), record.RESULTS), "run: python bench/card.py"
