"""The CUDA kernels on a machine without a GPU: compiled for sm_90a, and run by a CPU.

nvcc compiles each `.cu` alone and its report is read; g++ compiles the same file with emulated.h,
which runs a block's threads as threads of the CPU, and the results are held to the definition.
"""

import ctypes
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from ldae_fast.kernels.patch_pca_noise import cases
from ldae_fast.kernels.patch_pca_noise.cuda import fold

from ldae_fast import ops

SOURCES = Path(__file__).parent.parent / "csrc"
FILES = sorted(SOURCES.glob("*.cu"))
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

pytestmark = pytest.mark.skipif(not NVCC or not FILES, reason="nvcc is not installed")

SPILLING = """
__global__ void spilling(float* x) {
  float many[300];
  for (int i = 0; i < 300; ++i) many[i] = x[i * 7];
  for (int i = 0; i < 300; ++i) x[i] = many[(i * 13) % 300] * many[299 - i];
}
"""


def cuda_include() -> str:
    done = subprocess.run([NVCC, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"TOP=(\S+)", done.stderr)[1]
    return str(next(Path(top).rglob("cuda_runtime.h")).parent)


def compile_cu(source: Path, folder: Path) -> str:
    """ptxas' report on a source for sm_90a, then its PTX."""
    words = [NVCC, "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v",
             "--keep", "--keep-dir", folder, "-c", source, "-o", folder / "out.o"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ptx = "".join(p.read_text() for p in folder.glob("*.ptx"))
    return done.stderr + done.stdout + ptx


@pytest.mark.parametrize("source", FILES, ids=lambda f: f.stem)
def test_compiles_for_hopper(source, tmp_path):
    began = time.monotonic()
    report = compile_cu(source, tmp_path)
    assert time.monotonic() - began < 20
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    assert spills
    assert sum(spills) == 0
    assert re.search(r"st\.global\.v4\.(b32|u32|f32)|st\.global\.v2\.(b64|u64)", report)
    read = (source, *(SOURCES / name for name in ("normals.cuh", "noise_cuda.h", "philox.h")))
    assert not any("#include <torch" in f.read_text() for f in read)


def test_spills_are_seen(tmp_path):
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    report = compile_cu(source, tmp_path)
    assert int(re.search(r"(\d+) bytes stack frame", report)[1]) > 0


@pytest.mark.parametrize("name", ["normal", "patch_pca_noise"])
def test_bindings_compile(name):
    """As far as the compiler's front end: a CPU build of torch has nothing to link them with."""
    from torch.utils.cpp_extension import include_paths

    setup = (SOURCES.parent / "setup.py").read_text()
    words = ["g++", "-std=c++20", "-fsyntax-only", f"-I{SOURCES}", *re.findall(r'"(-D.+?)"', setup)]
    words += [f"-I{p}" for p in (*include_paths(), cuda_include())]
    done = subprocess.run(
        [*words, SOURCES / f"{name}_cuda_binding.cpp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The kernels, compiled for this CPU."""
    folder = tmp_path_factory.mktemp("emulated")
    words = ["g++", "-std=c++20", "-O2", "-w", "-shared", "-fPIC", "-pthread", f"-I{SOURCES}",
             f"-I{cuda_include()}", "-include", Path(__file__).parent / "emulated.h"]  # fmt: skip
    parts = []
    for f in FILES:
        part = folder / f"{f.stem}.so"
        done = subprocess.run(
            [*words, "-x", "c++", f, "-o", part], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        parts.append(ctypes.CDLL(str(part), mode=os.RTLD_LOCAL))
    return dict(zip((f.stem for f in FILES), parts))


def words_of(*fields) -> ctypes.Array:
    """Fields of 8 bytes each, tensors as their addresses, None as 0."""
    values = [f.data_ptr() if isinstance(f, torch.Tensor) else int(f or 0) % 2**64 for f in fields]
    return (ctypes.c_uint64 * len(values))(*values)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("elements", [0, 5, 8, 1000, 2048])
def test_normals(emulated, dtype, elements):
    ids = torch.tensor([3, 2**40 + 1, 0])
    seed, step = 2**63 + 17, 2**32 - 1
    out = torch.full((3, elements), torch.nan, dtype=dtype)
    call = words_of(seed, step, ids, 3, elements, KINDS[dtype], out)
    assert emulated["normal"].ldae_normal_cuda(call, None) == 0
    wanted = ops.normal(seed, step, ids, elements, dtype=torch.float64, impl="reference")
    close = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("case", [name for name in cases.SHAPES if name != "empty"])
def test_patch_pca_noise(emulated, case, dtype):
    (images, basis, center, scale, gamma, sigma, ids), o = cases.inputs(case, dtype)
    truth = ops.patch_pca_noise(
        images, *(t.double() for t in (basis, center, scale, gamma, sigma)), ids,
        **o | {"dtype": torch.float64}, impl="reference",
    )  # fmt: skip
    theirs = ops.patch_pca_noise(
        images, basis, center, scale, gamma, sigma, ids, **o, impl="reference"
    )
    uint8 = images.dtype == torch.uint8
    images = images.contiguous()
    rows, columns = images.shape[1:3] if uint8 else images.shape[2:4]
    height, width = (o["size"],) * 2 if "size" in o else (rows, columns)
    view = o["view"]
    weight, bias, back, middle = fold(basis, center, scale, view, uint8)
    made = {n: torch.full(truth[n].shape, torch.nan, dtype=dtype) for n in truth}
    flip = o["flip"].to(torch.uint8) if "flip" in o else None
    call = words_of(
        images if uint8 else None, None if uint8 else images, flip, o.get("crop"),
        weight, bias, back, middle, gamma, sigma, ids,
        *(made[n] for n in ("clean_latents", "noisy_latents", "noisy_patches", "noise")),
        o["seed"], o["step"], images.shape[0], rows, columns, height, width, len(view.mean),
        view.patch, basis.shape[0], KINDS[dtype],
    )  # fmt: skip
    assert emulated["patch_pca_noise"].ldae_patch_pca_noise_cuda(call, None) == 0
    for name, wanted in truth.items():
        mine, torchs = ((v[name].double() - wanted).abs().max() for v in (made, theirs))
        floor = torch.finfo(dtype).eps * max(1.0, float(wanted.abs().max())) / 2
        assert mine <= 2 * max(float(torchs), floor), (name, float(mine), float(torchs))


def test_refuses_where_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="normal: impl 'cuda' cannot run here: it runs on a CUDA"):
        ops.normal(0, 0, torch.arange(2), 4, impl="cuda")
