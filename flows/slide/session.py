"""What a run of a slide needs from its caller: workers, a reporter, and a check whether it may continue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, SkipValidation, model_serializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.progress.reporters import Reporter, SilentReporter


def _continue() -> None:
    """Let a run continue that holds no lock."""


class Session(BaseModel):
    """Workers, a reporter and a check, handed down to everything that a run of a slide calls.

    Prefect stores the parameters of child flows; of a session it stores the cluster's profile only.

    Attributes:
        cluster: Where blocks are computed.
        reporter: Who shows messages and progress.
        check: Raises an error if the run may not continue, because it lost its lock.
        is_cluster_shared: Whether other slides use the cluster after this one. A cluster of one slide is closed before the lock
            of its result is released: a task that still runs must not meet those of the next run.
        allowed: Code that the person allows segmenters to load; see `tasks.segmenters.allowed`.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    cluster: Cluster
    reporter: SkipValidation[Reporter] = Field(default_factory=SilentReporter)
    check: Callable[[], None] = _continue
    is_cluster_shared: bool = False
    allowed: tuple[str, ...] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Prefect asks for the schema of each parameter of a flow.
        return {"type": "object", "title": cls.__name__}

    @model_serializer
    def _describe(self) -> dict[str, Any]:
        return {"cluster": self.cluster.profile.model_dump(mode="json")}
