"""The fused ops: one folder an op, each with its definition in reference.py.

Import the functions from `ldae_fast.ops`. Nothing in here imports the engine, so another trainer
can use the ops alone.
"""

if __name__ != "ldae_fast.kernels":
    raise ImportError(
        f"this folder is the package 'ldae_fast.kernels', not '{__name__}': install ldae_fast and "
        "import ldae_fast.kernels ('kernels' is the name of another project)"
    )
