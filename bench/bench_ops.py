"""Every op x implementation x benchmark case x direction, against eager, torch.compile and peers.

pytest bench/bench_ops.py --benchmark-json=F [--ops normal,attention] [--modes fwd] [--dtype D]
"""

import contenders
import interleave
import pytest

rows = contenders.rows
pytestmark = pytest.mark.benchmark(timer=interleave.CLOCK, group="ops")


def test_op(row, measured):
    measured(row)
