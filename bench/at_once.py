"""For pytest: says at once why a test failed and what a benchmark's row came to.

A run on a lent GPU may be cut off at any time, and never gets to its summary then.
"""

import os
import sys

LONGEST = 2000  # characters of a failure, the last ones


def pytest_runtest_logreport(report):
    if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started the workers says it
        return
    said = [f"{report.nodeid}: {report.longrepr}"[-LONGEST:]] if report.failed else []
    if report.when == "teardown":
        said += [words for name, words in report.user_properties if name == "row"]
    for words in said:
        print(f"\n{words}", file=sys.__stderr__, flush=True)
