"""Requests to stop: Ctrl-C (SIGINT), a cluster's or make's SIGTERM, the SIGHUP of a terminal that was closed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator

from soco_lib import BookError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Exit status of a run that was asked to stop and saved a checkpoint: the shell's number for SIGTERM.
STOPPED = 128 + signal.SIGTERM
#: What a run says that saved and ended.
AFTER = "told to stop after step {}, of which a checkpoint is saved: run again to go on"


class Stopped(BookError):
    """Work was asked to stop, and what was done of it is saved; the message says how to go on."""

    status = STOPPED

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: nothing has gone wrong, so no traceback."""
        return [f"Stopped: {self}"]


class Interrupted(KeyboardInterrupt):
    """Work ended at once upon a request, where nothing is lost by it; the message says how to go on. Like its base no
    Exception: what catches those of bad images, say, lets it pass.
    """


class StopRequests(list):
    """The signals that asked this process to stop, in the order in which they came."""

    at_once = False  # whether Ctrl-C was pressed again: nothing more is saved

    def __call__(self, number: int, frame=None) -> None:
        """The signals' handler."""
        if number == signal.SIGHUP:
            _leave_terminal()
        self.at_once = self.at_once or (number == signal.SIGINT and bool(self))
        self.append(number)

    @property
    def status(self) -> int:
        """Exit status of a command that was stopped: the shell's number for the first signal."""
        return 128 + self[0]

    def stopped(self, message: str) -> Stopped:
        """The error to raise, with this exit status."""
        error = Stopped(message)
        error.status = self.status
        return error


class _Urgent(StopRequests):
    harmless = ""  # see `harmless`

    def __call__(self, number: int, frame=None) -> None:
        super().__call__(number)
        if self.at_once:
            raise KeyboardInterrupt
        if self.harmless:
            raise Interrupted(self.harmless)


@contextlib.contextmanager
def requests(urgent: bool = False, into: StopRequests | None = None) -> Iterator[StopRequests]:
    """Within, the signals that ask to stop end nothing: they are appended to what this yields, `into` if given.

    urgent: a second Ctrl-C raises KeyboardInterrupt. An ignored SIGHUP (nohup) stays so; in another
    thread than the main one, which gets no signals, nothing changes.
    """
    asked = into if into is not None else _Urgent() if urgent else StopRequests()
    before = {}
    if threading.current_thread() is threading.main_thread():
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = {number: signal.signal(number, asked) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def harmless(asked: StopRequests, message: str, save: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, nothing is lost by a request: it raises Interrupted(message) at once, as does one that was made before.

    asked: of requests(urgent=True); with any other nothing changes. save: called then, when no request can disturb it.
    """
    urgent, before = isinstance(asked, _Urgent), getattr(asked, "harmless", "")
    try:
        if urgent:
            asked.harmless = message
            if asked:
                raise Interrupted(message)
        yield
    except Interrupted:
        asked.harmless = ""
        save()
        raise
    finally:
        if urgent:
            asked.harmless = before


def keep(asked: StopRequests) -> None:
    """From here on requests are but kept in `asked`, for who looks and saves first; ends what `harmless` began."""
    if isinstance(asked, _Urgent):
        asked.harmless = ""


@contextlib.contextmanager
def children_ignore() -> Iterator[None]:
    """Processes started within never receive a request to stop, which a terminal and a cluster send to all: a loader's
    workers still deliver what the last update or an evaluation needs. This process gets it after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_terminal() -> None:
    """Output goes nowhere from here on, unless to a file: to write to a closed terminal or its pipes is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
    os.close(nowhere)
