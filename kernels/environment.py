"""The variables LDAE_NATIVE, LDAE_ISA and LDAE_IMPL, each checked when it is read."""

import os
import pkgutil

OPS = tuple(sorted(m.name for m in pkgutil.iter_modules([os.path.dirname(__file__)]) if m.ispkg))
ISAS = ("best", "generic", "avx2", "avx512", "avx512bf16")


class VariableError(ValueError):
    """A variable that is set to what it cannot be, as one sentence."""


def check() -> None:
    """VariableError for the first variable that is set to what it cannot be."""
    native()
    isa()
    forced(OPS[0])


def one_of(name: str, values: tuple[str, ...]) -> str:
    value = os.environ.get(name, "") or values[0]
    if value not in values:
        raise VariableError(f"{name} must be one of {', '.join(values)}; got {value!r}")
    return value


def native() -> str:
    """auto takes the compiled library where it is there, 0 leaves it out, 1 insists on it."""
    return one_of("LDAE_NATIVE", ("auto", "0", "1"))


def isa() -> str:
    """The instruction set of the compiled ops; best is the machine's best. csrc/vec.h reads it."""
    return one_of("LDAE_ISA", ISAS)


def forced(op: str) -> str:
    """The implementation of `op` that LDAE_IMPL asks for, '' for none."""
    setting = os.environ.get("LDAE_IMPL", "")
    if setting in ("", "reference"):
        return setting
    pairs = [pair.partition("=") for pair in setting.split(",")]
    if not all(name and impl for name, _, impl in pairs):
        raise VariableError(f"LDAE_IMPL must be reference, or op=impl by comma; got {setting!r}")
    strange = [name for name, _, _ in pairs if name not in OPS]
    if strange:
        raise VariableError(
            f"LDAE_IMPL: there is no op {strange[0]!r}; the ops are {', '.join(OPS)}"
        )
    return {name: impl for name, _, impl in pairs}.get(op, "")
