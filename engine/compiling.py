"""numba's compiler as qtui uses it: kept on disk, IEEE arithmetic, no interpreter lock.

A function that is compiled here does in float32 what it says, operation by operation: no division
becomes a product, no product is fused with a sum, no sum is taken in another order. Importing this
module imports numba; a function is compiled at its first call, or read from
``~/.cache/qtui/kernels``. numba compiles a kept function anew when its own file changes, not when
this one does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.extending import intrinsic

from engine.store.paths import kernel_folder

F = TypeVar("F", bound=Callable[..., Any])

_NO_NANS = ("nnan", "nsz")


def _writable_folder() -> str:
    """The folder of compiled code; empty if nothing can be kept there."""
    try:
        folder = kernel_folder()
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


_FOLDER = numba.config.CACHE_DIR or _writable_folder()
KEPT = bool(_FOLDER)
"""Whether compiled code is kept on disk."""


def compiled(*, reordered: bool = False, entry: bool = False) -> Callable[[F], F]:
    """numba's ``njit``.

    Args:
        reordered: sums may be taken in any order.
        entry: Python calls it; others only call each other, and are not kept on their own.
    """
    flags = {"reassoc", "nsz", "contract"} if reordered else False

    def declare(function: F) -> F:
        # numba looks at its setting when a function is declared; other packages keep theirs.
        theirs = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _FOLDER
        try:
            found: F = numba.njit(
                nogil=True,
                error_model="numpy",
                fastmath=flags,
                _nrt=False,
                # Without a way in from Python or C where none is needed.
                no_cpython_wrapper=not entry,
                no_cfunc_wrapper=True,
                cache=KEPT and entry,
            )(function)
        finally:
            numba.config.CACHE_DIR = theirs
        return found

    return declare


def _chosen(operator: str) -> Any:
    """The smaller or greater of two numbers, neither of them NaN, as a loop can be vectorised."""

    @intrinsic  # type: ignore[untyped-decorator]
    def choose(context: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first, second = args
            better = builder.fcmp_ordered(operator, first, second, flags=_NO_NANS)
            return builder.select(better, first, second, flags=_NO_NANS)

        return a(a, a), code

    return choose


def _of_llvm(name: str) -> Any:
    """An instruction of LLVM with one argument."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(context: Any, a: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = builder.module.declare_intrinsic(name, [args[0].type])
            return builder.call(function, args)

        return a(a), code

    return call


least, greatest = _chosen("<"), _chosen(">")
rint, floor, fabs, sqrt = map(_of_llvm, ("llvm.rint", "llvm.floor", "llvm.fabs", "llvm.sqrt"))
"""``rint`` rounds ties to even."""
