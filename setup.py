"""Puts the op library, which lives at the top level as kernels/, under ldae_fast.kernels."""

from setuptools import find_packages, setup

OPS = ["ldae_fast.kernels." + name for name in find_packages("kernels")]

setup(
    packages=[*find_packages(include=["ldae_fast", "ldae_fast.*"]), "ldae_fast.kernels", *OPS],
    package_dir={"ldae_fast.kernels": "kernels"},
)
