"""Every kind of segmenter is known wherever kinds are listed."""

from __future__ import annotations

import tomllib

import pytest

from slidesam.flows.doctor import judge
from slidesam.tasks.folder import examine
from slidesam.tasks.report import provenance
from slidesam.tasks.settings.methods import SEGMENTER_KINDS, SEGMENTER_SECTIONS
from tests.support import ROOT

# Kinds whose computing can be sent to a device are networks, from packages of their own.
NETWORKS = [
    kind for kind, section in zip(SEGMENTER_KINDS, SEGMENTER_SECTIONS, strict=True) if "device" in section.model_fields
]


def test_each_section_is_that_of_its_kind() -> None:
    kinds = [section.model_fields["kind"].annotation for section in SEGMENTER_SECTIONS]
    assert [kind.__args__ for kind in kinds] == [(kind,) for kind in SEGMENTER_KINDS]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_named_in_the_provenance_by_the_doctor_and_among_the_extras(kind: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert kind in provenance._PACKAGES
    assert kind in examine.OPTIONAL
    assert kind in judge._NETWORKS
    assert kind in extras
