"""Puts kernels/ under ldae_fast.kernels and builds csrc/ into it where torch and a compiler are.

LDAE_NATIVE=auto (default) installs without the compiled library when it cannot be built and says so
once, 1 makes that an error, 0 does not try. The CUDA kernels are built too where torch is a CUDA
build and nvcc is found; where nvcc is missing, or (by auto) fails, the library is built without
them and says so.
TORCH_CUDA_ARCH_LIST names GPUs other than those of ARCHITECTURES.
"""

import os
import sys
import textwrap
from pathlib import Path

from setuptools import find_packages, setup

NATIVE = os.environ.get("LDAE_NATIVE", "auto")
if NATIVE not in ("auto", "0", "1"):
    sys.exit(f"LDAE_NATIVE must be auto, 0 or 1; got {NATIVE!r}")
OPS = ["ldae_fast.kernels." + name for name in find_packages("kernels")]
COMPILE = [
    "-std=c++20",
    "-O3",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # nothing that torch 2.11 does not have
]
ARCHITECTURES = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",  # for what comes after
]


def native_build() -> dict:
    """The arguments of setup() that build the library; none without torch."""
    if NATIVE == "0":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import (
            CUDA_HOME,
            BuildExtension,
            CppExtension,
            CUDAExtension,
        )
    except ImportError as error:
        return without(f"torch is not importable while building ({error}); install torch, then "
                       "pip install --no-build-isolation")  # fmt: skip

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # no compiler, no headers, a compiler that fails: all one
                reason = textwrap.shorten(str(error).strip().splitlines()[-1], 300)
                if not self.cuda() or NATIVE == "1":
                    without(reason)
                    self.extensions.clear()
                    return
                # nvcc of another CUDA than torch's, mostly.
                print(f"warning: building without the CUDA kernels: {reason}", file=sys.stderr)
                vars(self.extensions[0]).update(vars(extension(cuda=False)))
                self.compiler = None
                self.run()

        def cuda(self) -> bool:
            return any(Path(source).suffix == ".cu" for source in self.extensions[0].sources)

        def build_extensions(self) -> None:
            # By setuptools' naming normal.cpp and normal.cu would both become normal.o.
            named = self.compiler.object_filenames

            def apart(sources: list[str], *args, **options) -> list[str]:
                objects = named(sources, *args, **options)
                return [o[:-2] + Path(s).suffix + ".o" for o, s in zip(objects, sources)]

            self.compiler.object_filenames = apart
            super().build_extensions()

    def extension(cuda: bool):
        sources = {str(path) for path in Path("csrc").glob("*.cpp")}
        if cuda:
            sources |= {str(path) for path in Path("csrc").glob("*.cu")}
        else:
            sources -= {str(path) for path in Path("csrc").glob("*_cuda_binding.cpp")}
        named = "TORCH_CUDA_ARCH_LIST" in os.environ
        return (CUDAExtension if cuda else CppExtension)(
            "ldae_fast.kernels.library",
            sorted(sources),
            include_dirs=[str(Path("csrc").absolute())],
            depends=sorted(str(path) for path in Path("csrc").glob("*.*h")),
            extra_compile_args={
                "cxx": [*COMPILE, *(["-DUSE_CUDA"] if cuda else [])],  # declares torch's stream
                "nvcc": ["-O3", "-std=c++17", *([] if named else ARCHITECTURES)],
            },
            py_limited_api=True,
        )

    if torch.version.cuda and not CUDA_HOME:
        print("warning: building without the CUDA kernels: nvcc was not found", file=sys.stderr)
    return {
        "ext_modules": [extension(cuda=bool(torch.version.cuda and CUDA_HOME))],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def without(reason: str) -> dict:
    """Says once that the compiled library is left out, or stops where it was demanded."""
    if NATIVE == "1":
        sys.exit(f"LDAE_NATIVE=1, but the compiled library cannot be built: {reason}")
    print(f"warning: installing without the compiled library: {reason}", file=sys.stderr)
    return {}


setup(
    packages=[*find_packages(include=["ldae_fast", "ldae_fast.*"]), "ldae_fast.kernels", *OPS],
    package_dir={"ldae_fast.kernels": "kernels"},
    **native_build(),
)
