"""Ctrl-C and SIGTERM end a command as an error does: what was begun is taken back, and a line says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from steersman.core.errors import Error

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(KeyboardInterrupt):
    """A signal asks the command to end."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


class Stopped(Error):
    """The command ended by a signal: the exit code is that of a process that the signal killed."""

    def __init__(self, number: int, hint: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}", hint=hint)
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Signals raise Stop, once: the second of them kills, whatever the tidying up still has to do."""
    if threading.current_thread() is not threading.main_thread():  # it hears no signals
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    ours = [number for number in SIGNALS if before[number] in usual]  # who started us may ignore one, as nohup does

    heard = list[int]()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        heard.append(number)
        for other in ours:
            signal.signal(other, signal.SIG_DFL)
        raise Stop(number)

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    except Exception as error:  # DuckDB makes a RuntimeError of what a signal raises in the middle of a query
        if heard:
            raise Stop(heard[0]) from error
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])
