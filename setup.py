"""Puts kernels/ under ldae_fast.kernels and builds csrc/ into it where torch and a compiler are.

LDAE_NATIVE=auto (default) installs without the compiled library when it cannot be built and says so
once, 1 makes that an error, 0 does not try.
"""

import os
import sys
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
]


def native_build() -> dict:
    """The arguments of setup() that build the library; none without torch."""
    if NATIVE == "0":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return without(f"torch is not importable while building ({error}); install torch, then "
                       "pip install --no-build-isolation")  # fmt: skip

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # no compiler, no headers, a compiler that fails: all one
                without(str(error).strip().splitlines()[-1])
                self.extensions.clear()

    library = CppExtension(
        "ldae_fast.kernels.library",
        sorted(str(path) for path in Path("csrc").glob("*.cpp")),
        include_dirs=[str(Path("csrc").absolute())],
        extra_compile_args=COMPILE,
        py_limited_api=True,
    )
    return {
        "ext_modules": [library],
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
