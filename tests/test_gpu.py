"""What only a CUDA device can show: the same integers, losses and steps as on the CPU."""

import pytest
import torch
from conftest import flags, ldae
from ldae_fast.kernels.normal.reference import philox

from ldae_fast import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_philox_gives_the_same_integers():
    ids = torch.arange(1000) << 25
    assert torch.equal(philox(7, 3, ids, 5), philox(7, 3, ids.cuda(), 5).cpu())


def test_normals_agree_to_rounding():
    ids = torch.arange(200)
    close = {"rtol": 0, "atol": 4e-6}
    on_gpu = ops.normal(7, 3, ids.cuda(), 4096).cpu()
    torch.testing.assert_close(on_gpu, ops.normal(7, 3, ids, 4096), **close)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_steps_are_the_cpus(image_folder, precision):
    from test_train import build, curve

    changes = {"optimizer__precision": precision}
    on_cpu = curve(*build(image_folder, **changes), 12)
    on_gpu = curve(*build(image_folder, device="cuda", **changes), 12)
    assert on_gpu == pytest.approx(on_cpu, rel=2e-4 if precision == "float32" else 3e-2)


def test_a_whole_run(image_folder, tmp_path):
    data = ("--data", f"folder:{image_folder}")
    run = ("train", "ldae", *data, "--steps", "20", "--device", "cuda", "--out", tmp_path / "run")
    done = ldae(*run, *flags())
    assert done.returncode == 0, done.stderr
    assert ldae("probe", tmp_path / "run", *data).returncode == 0
