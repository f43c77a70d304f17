"""The signals that ask to stop: noted, for a run to stop between two steps, or raised."""

import signal
from contextlib import contextmanager


class Interrupted(RuntimeError):
    """A run was asked to stop by a signal of that number; its state is saved."""

    def __init__(self, said: str, number: int):
        super().__init__(said)
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing notes it: it ends what Ctrl-C ends."""


def terminate(number, frame):
    raise Terminated


@contextmanager
def handled(handlers: dict):
    """Gives signals other handlers for a while."""
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals():
    """Yields a list that fills when SIGINT or SIGTERM comes, so that a step is never cut."""
    caught: list[int] = []

    def note(number, frame):
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    with handled({signal.SIGINT: note, signal.SIGTERM: note}):
        yield caught
