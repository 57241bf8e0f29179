"""What Prefect stores of a session: flow runs show their parameters in the UI."""

from __future__ import annotations

import pytest

from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.cluster.profile import LocalProfile
from slidesam.flows.slide.segment_slide import segment_slide_in
from slidesam.flows.slide.session import Session
from slidesam.flows.slide.stages import image_stage, segment_stage, stitch_stage


@pytest.mark.parametrize("flow", [segment_slide_in, image_stage, segment_stage, stitch_stage])
def test_prefect_stores_the_profile_only_and_passes_the_session_on_as_it_is(flow) -> None:
    from prefect.utilities.collections import visit_collection

    session = Session(cluster=Cluster(LocalProfile(workers=3)))
    assert flow.serialize_parameters({"session": session}) == {
        "session": {"cluster": session.cluster.profile.model_dump(mode="json")}
    }
    # As the engine does before it calls the flow.
    assert visit_collection(session, lambda part: part, return_data=True, remove_annotations=True) is session
