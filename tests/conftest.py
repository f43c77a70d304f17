"""Shared by the tests: a small folder of real image files, and the `ldae` command as a process."""

import ctypes
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported
# For the processes that `-n` starts: glibc's malloc then keeps no pieces of its own aside, which it
# would hand out as they are where test_contract.py asks for NaN.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")

from ldae_fast.cli import main
from ldae_fast.config import Config
from ldae_fast.ops import ImageView
from ldae_fast.report.metrics import read_metrics
from ldae_fast.tokenizers import channel_statistics, fit_tokenizer
from ldae_fast.tokenizers.conv_net import ConvAutoencoder
from ldae_fast.tokenizers.conv_vae import measure
from ldae_fast.train.checkpoint import list_checkpoints, read_checkpoint

torch.set_num_threads(1)  # the tests' tensors are small, and two test processes may share a machine


def unless_torchs(impl: str, dtype: torch.dtype, case: str) -> tuple:
    """Marks of a comparison with plain torch's error, for an implementation of attention.

    torch's own fused kernel, on a CPU without AVX-512, is 2.5 to 3.6 times as far from float64 as
    torch's products and softmax in two small cases in float32 (seen with 2.11 and 2.13). "auto"
    takes the products there. Its kernel for float32 on a GPU is 2.2 to 2.9 times as far (2.11 on
    an H200).
    """
    old = torch.backends.cpu.get_cpu_capability() != "AVX512"
    on_cpu = old and impl in ("sdpa", "sdpa-flash") and case in ("one", "odd")
    on_gpu = torch.cuda.is_available() and impl in ("sdpa", "sdpa-efficient")
    fused = dtype == torch.float32 and (on_gpu or on_cpu)
    return (pytest.mark.xfail(reason="torch's own SDPA on this device"),) if fused else ()


TINY = {
    "model.patch": "8",
    "model.width": "32",
    "model.depth": "1",
    "model.decoder_depth": "1",
    "model.heads": "2",
    "tokenizer.d": "8",
    "optimizer.batch": "16",
    "optimizer.precision": "float32",
    "evaluate.epochs": "3",
    "report.knn_images": "40",
}


def flags(**changes) -> list[str]:
    """TINY as command line settings, with changes written as group__name=value."""
    settings = TINY | {k.replace("__", "."): str(v) for k, v in changes.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def quick_tokenizer(config: Config, images: torch.Tensor):
    """A recipe's tokenizer of uint8 (N, H, W, 3): fitted, or of a network that learnt nothing."""
    c, patch = config.tokenizer, config.model.patch
    if c.kind != "conv-vae":
        return fit_tokenizer(c.kind, images, patch=patch, d=c.d, scale=c.scale, count=10**6, seed=0)
    torch.manual_seed(0)
    net = ConvAutoencoder(c.channels, c.d, patch)
    view = ImageView(patch, *channel_statistics(images))
    return measure(net, images, view, c.scale, {"perceptual": ""})


def write_images(folder: Path, classes: int = 3, each: int = 30, side: int = 32) -> Path:
    """Class folders of PNGs: gradients whose direction is the class, with noise, seeded."""
    dice = np.random.default_rng(0)
    ramp = np.linspace(40, 210, side)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(each):
            turned = np.rot90(np.tile(ramp, (side, 1)), label)[..., None] * dice.uniform(0.6, 1, 3)
            noisy = turned + dice.normal(0, 12, (side, side, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / f"class{label}" / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def final_state(run: Path) -> dict:
    """The tensors of a run's newest checkpoint, by file and name."""
    return read_checkpoint(list_checkpoints(run / "checkpoints")[0])[0]


def assert_same_state(a: Path, b: Path) -> None:
    """The newest checkpoints of two runs hold the same tensors, bit for bit."""
    ours, theirs = final_state(a), final_state(b)
    assert ours.keys() == theirs.keys()
    assert ours.keys() >= {"model", "ema", "optimizer"}
    for stem in ours:
        assert ours[stem].keys() == theirs[stem].keys()
        for name, tensor in ours[stem].items():
            assert torch.equal(tensor, theirs[stem][name]), (stem, name)


@contextmanager
def stopped_after(lines: int, out: Path):
    """Sends this process a real SIGTERM once the run in `out` has logged some lines."""

    def stop():
        log = out / "metrics.jsonl"
        while not log.exists() or len(read_metrics(log)) < lines:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=stop, daemon=True)
    killer.start()
    yield
    killer.join()


def fail_once(monkeypatch, owner, name: str, at: int) -> None:
    """Call number `at` of a method, from 0, asks torch for more memory than there can be."""
    method, calls = getattr(owner, name), itertools.count()

    def failing(*args, **options):
        if next(calls) == at:
            torch.empty(2**60, dtype=torch.uint8)
        return method(*args, **options)

    monkeypatch.setattr(owner, name, failing)


@contextmanager
def heeding_permissions():
    """Takes from this thread what lets root read and write against the permissions of files."""
    libc, own = ctypes.CDLL(None), (ctypes.c_uint32 * 6)()
    version_3 = (ctypes.c_uint32 * 2)(0x20080522)
    libc.capget(version_3, own)
    effective = own[0]
    own[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(version_3, own):
        pytest.skip("the system lets no thread give up its capabilities")
    try:
        yield
    finally:
        own[0] = effective
        libc.capset(version_3, own)


def ldae(*words, timeout: float = 120, **environment) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "ldae_fast.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def ldae_here(*words) -> subprocess.CompletedProcess:
    """Runs it in this process, which saves the seconds in which another would load torch."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
