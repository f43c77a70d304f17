"""Notes the signals that ask a run to stop, for it to stop between two steps."""

import signal
from contextlib import contextmanager


@contextmanager
def stop_signals():
    """Yields a list that fills when SIGINT or SIGTERM comes, so that a step is never cut."""
    caught: list[int] = []
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    for number in old:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
