"""Ends a command on Ctrl-C, SIGTERM and a lost connection, wherever in a library the signal arrives."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from slidesam.tasks.errors import ServerError

_ENDINGS = [signal.SIGINT, signal.SIGTERM]
# A lost connection; if it is to be ignored (nohup), it stays so.
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    _ENDINGS.append(signal.SIGHUP)


class Stops:
    """Tells whether a signal to end has arrived, whoever handles it.

    A handler raises an exception wherever the program is. Inside a library's callback (pydantic's serializers, for example)
    that becomes an error of the library, and while a flow runs Prefect handles SIGTERM. So the interpreter itself records
    each signal's number (`signal.set_wakeup_fd`).
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._arrived: set[int] = set()

    def is_set(self) -> bool:
        """Tell whether one of the signals that end a run has arrived."""
        with suppress(BlockingIOError):
            self._arrived.update(self._reader.recv(4096))
        return not self._arrived.isdisjoint(_ENDINGS)

    def close(self) -> None:
        """Restore the interpreter's earlier setting."""
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()


@contextmanager
def interrupts() -> Iterator[Stops]:
    """Treat SIGTERM and a lost connection as Ctrl-C, so that jobs of a run that is itself a job end with it.

    If a library made an error of such a signal, the error becomes the interrupt again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    stops = Stops()
    handlers = {number: signal.signal(number, stop) for number in _ENDINGS}
    try:
        yield stops
    except ServerError:
        # It sent the signal itself, to end the run.
        raise
    # Any error can be such a signal in a library's words.
    except Exception:
        if stops.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        stops.close()
