"""The files under deploy/ are parsed and held against the program: no cluster is started here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from pipeline import cli
from pipeline.serve import health
from pipeline.serve.options import ServeOptions

DEPLOY = Path(__file__).parent.parent / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
CLUSTER = [part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")) if part]
WORKLOADS = {part["metadata"]["name"]: part for part in CLUSTER if part["kind"] == "Deployment"}
OURS = WORKLOADS["gonggam"]["spec"]["template"]["spec"]
JOB = next(part for part in CLUSTER if part["kind"] == "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def parsed(arguments):
    """The options that the command line makes of arguments; raises where it would refuse them."""
    filled = [re.sub(r"\$\{(\w+)[^}]*\}", r"\1", argument) for argument in arguments]
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[filled.pop(0)]
    return command.make_context("gonggam", filled).params


@pytest.mark.parametrize("arguments", [COMPOSE["services"]["gonggam"]["command"], OURS["containers"][0]["args"]])
def test_the_service_is_started_as_the_command_line_wants_it(arguments):
    found = parsed(arguments)
    assert found["accounts"]
    assert (found["host"], found["port"]) == ("0.0.0.0", 8000)
    settings = dict(text.removeprefix("serve.").split("=", 1) for text in found["overrides"])
    ServeOptions.model_validate({key: yaml.safe_load(value) for key, value in settings.items()})


def test_old_words_go_at_night():
    assert parsed(JOB["containers"][0]["args"])["days"] == 365


def test_probes_ask_for_paths_that_there_are():
    paths = {route.path for route in health.router.routes}
    probes = [OURS["containers"][0][f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert set(probes) <= paths
    assert "/health/ready" in str(COMPOSE["services"]["gonggam"]["healthcheck"]["test"])


def test_running_replies_have_the_time_to_finish():
    longest = ServeOptions().shutdown_s
    assert OURS["terminationGracePeriodSeconds"] > longest
    assert int(COMPOSE["services"]["gonggam"]["stop_grace_period"].rstrip("s")) > longest


def test_labels_volumes_and_networks_meet():
    labels = [part["spec"]["template"]["metadata"]["labels"] for part in WORKLOADS.values()]
    for part in CLUSTER:
        selector = part["spec"].get("selector") or part["spec"].get("podSelector")
        if selector:
            assert selector.get("matchLabels", selector) in labels, part["kind"]
    claims = {part["metadata"]["name"] for part in CLUSTER if part["kind"] == "PersistentVolumeClaim"}
    for spec in (OURS, JOB, WORKLOADS["model"]["spec"]["template"]["spec"]):
        used = {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "emptyDir" not in volume}
        assert used <= claims
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_no_secret_stands_in_a_file_and_nothing_runs_as_root():
    whole = "".join(path.read_text("utf-8") for path in DEPLOY.iterdir())
    assert not re.search(r"(?:PASSWORD|KEY): +[^$ {\n]", whole)
    assert not re.search(r"^(?:DATABASE_PASSWORD|GONGGAM_KEY)=.", whole, re.M)
    assert OURS["securityContext"]["runAsNonRoot"]
    assert "USER gonggam" in (DEPLOY / "Dockerfile").read_text("utf-8")
    written = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text("utf-8")))
    assert written == set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text("utf-8"), re.M))
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["tls"]
