"""The package built where there is no compiler, and what its wheel holds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PARTS = ("setup.py", "pyproject.toml", "README.md", "csrc", "kernels", "ldae_fast")


def build_wheel(folder: Path, **environment) -> subprocess.CompletedProcess:
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        ignore = {"ignore": shutil.ignore_patterns("*.so")} if copy is shutil.copytree else {}
        copy(ROOT / part, folder / part, **ignore)
    return subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel"], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"CXX": "/bin/false", "CC": "/bin/false"} | environment, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("native", ["auto", "0"])
def test_without_a_compiler_it_installs_and_says_so_once(tmp_path, native):
    done = build_wheel(tmp_path, LDAE_NATIVE=native)
    assert done.returncode == 0, done.stderr
    said = done.stderr.count("warning: installing without the compiled library")
    assert said == (native == "auto")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("ldae_fast/kernels/attention/reference.py") for n in names)
    assert not [n for n in names if n.startswith("kernels/") or n.endswith(".so")]


def test_a_demanded_library_is_never_left_out(tmp_path):
    done = build_wheel(tmp_path, LDAE_NATIVE="1")
    assert done.returncode != 0
    assert "LDAE_NATIVE=1, but the compiled library cannot be built" in done.stderr
    assert not (tmp_path / "dist").exists()


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
@pytest.mark.parametrize("native", ["auto", "1"])
def test_an_nvcc_that_fails_costs_the_cuda_kernels_alone_and_nothing_that_is_demanded(
    tmp_path, native
):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    nvcc.chmod(0o755)
    package = tmp_path / "package"
    package.mkdir()
    done = build_wheel(package, LDAE_NATIVE=native, CUDA_HOME=str(tmp_path / "cuda"),
                       CXX="g++", CC="gcc")  # fmt: skip
    assert (done.returncode == 0) == (native == "auto"), done.stderr
    said = done.stderr.count("warning: building without the CUDA kernels: ")
    assert said == (native == "auto")
    assert "installing without" not in done.stderr
    if native == "auto":
        (wheel,) = (package / "dist").glob("*.whl")
        assert "ldae_fast/kernels/library.abi3.so" in zipfile.ZipFile(wheel).namelist()


def test_kernels_answers_to_one_name_only():
    """The top-level folder must not pass for another project's `kernels`."""
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert "install ldae_fast and import ldae_fast.kernels" in done.stderr
