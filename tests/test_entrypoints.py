"""What is started by name: the flows of the deployments, and the command."""

from __future__ import annotations

import tomllib
from importlib import import_module

import yaml

from tests.support import ROOT


def test_each_deployment_names_a_flow_that_can_be_imported() -> None:
    from prefect import Flow

    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert len(deployments) == 5
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(import_module(module), name)
        assert isinstance(flow, Flow)
        assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)


def test_the_command_can_be_imported() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))
