"""Ending a command: a signal ends it as Ctrl-C does, wherever the program was and whoever handles the signal."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal
from pydantic import BaseModel, model_serializer
from pydantic_core import PydanticSerializationError

from slidesam.flows.signals import interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_an_interrupt_and_everything_is_as_before_it(number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupts():
        signal.raise_signal(number)
    assert signal.getsignal(number) is handler
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_comes_back_as_an_error_of_a_library_is_an_interrupt_too() -> None:
    class Told(BaseModel):
        @model_serializer
        def told(self) -> dict[str, Any]:
            signal.raise_signal(signal.SIGTERM)
            return {}

    def bridge(number: int, frame: object) -> None:
        raise TerminationSignal(number)

    def work() -> None:
        with interrupts() as stops:
            # What Prefect does while a flow runs.
            signal.signal(signal.SIGTERM, bridge)
            try:
                Told().model_dump_json()
            except PydanticSerializationError:
                assert stops.is_set()
                raise

    with pytest.raises(KeyboardInterrupt):
        work()


def test_an_error_without_a_signal_stays_that_error() -> None:
    def work() -> None:
        with interrupts() as stops:
            assert not stops.is_set()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
