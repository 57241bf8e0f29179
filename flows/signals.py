"""Ctrl-C, SIGTERM and a lost connection: one way in which they end a command, wherever in a library they arrive."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ENDINGS = [signal.SIGINT, signal.SIGTERM]
# A connection that was lost; where that is to be ignored (nohup) it stays so.
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    _ENDINGS.append(signal.SIGHUP)


class Stops:
    """Whether a signal to end has arrived, whoever handles it.

    A handler raises wherever the program is. Inside a library's callback (pydantic's serializers, for one) that comes back
    as an error of the library, and while a flow runs SIGTERM is Prefect's to handle. So the interpreter itself is asked
    (`signal.set_wakeup_fd`) to note each signal's number.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._arrived: set[int] = set()

    def is_set(self) -> bool:
        """True once one of the signals that end a run has arrived."""
        with suppress(BlockingIOError):
            self._arrived.update(self._reader.recv(4096))
        return not self._arrived.isdisjoint(_ENDINGS)

    def close(self) -> None:
        """Leaves the interpreter as it was."""
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()


@contextmanager
def interrupts() -> Iterator[Stops]:
    """Takes SIGTERM and a lost connection as Ctrl-C, so that jobs of a run that is itself a job don't outlive it.

    An error that is only such a signal in a library's words becomes the interrupt again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    stops = Stops()
    before = {number: signal.signal(number, stop) for number in _ENDINGS}
    try:
        yield stops
    # Whichever error: what is asked is only whether a signal is behind it.
    except Exception:
        if stops.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stops.close()
