"""Triton's interpreter without what it does over and over."""

from __future__ import annotations

from typing import Any


def hasten() -> None:
    """Make a process that interprets kernels less slow: to less than half the time, with the same results.

    With every function that a kernel calls, Triton 3.9 looks through its whole language for what has to be replaced,
    which it has done when the kernel began. And it repeats each sum and product of 32 bits in 64, to see whether it
    overflows; what the small shapes of tests cannot reach, the conformance cases `far` do, by their results.

    Changes Triton in this process, once. A version that lacks what is named here stays as it is.
    """
    from triton import language
    from triton.runtime import interpreter

    function: Any = getattr(interpreter, "InterpretedFunction", None)
    builder: Any = getattr(interpreter, "interpreter_builder", None)
    replace: Any = getattr(interpreter, "_patch_lang", None)
    options = getattr(builder, "options", None)
    if replace is None or not hasattr(function, "rewrite") or not hasattr(options, "sanitize_overflow"):
        return

    def call(self: Any, *args: Any, **arguments: Any) -> Any:
        seen = self.fn.__globals__.values()
        if any(one is module and is_builtin(module.load) for module in modules for one in seen):
            replace(self.fn)
        return self.rewrite()(*args, **arguments)

    # Kernels see the language, and the functions of its own library what lies below.
    modules, is_builtin = (language, language.core), language.core.is_builtin
    function.__call__ = call
    object.__setattr__(options, "sanitize_overflow", False)
