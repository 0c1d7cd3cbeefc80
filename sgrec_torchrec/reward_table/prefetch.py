"""A hint to the processor: read this cache line, it is needed soon."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import config
from numba.core import cgutils, types
from numba.extending import intrinsic

_FOR_READING, _KEEP_IN_ALL_LEVELS, _DATA_CACHE = 0, 3, 1


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Start to load ``array[index]`` (one-dimensional); waits for nothing.

    Never faults: an index out of range, or a page that is not mapped yet, is ignored.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        byte_pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        declare: Any = cgutils.get_or_insert_function
        function = declare(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word]),
            "llvm.prefetch.p0",
        )
        hints = [
            ir.Constant(word, hint)
            for hint in (_FOR_READING, _KEEP_IN_ALL_LEVELS, _DATA_CACHE)
        ]
        builder.call(function, [builder.bitcast(place, byte_pointer), *hints])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _nothing(array: Any, index: Any) -> None:
    """What a hint is in plain Python."""


prefetch: Any = _nothing if vars(config)["DISABLE_JIT"] else intrinsic(_prefetch)
"""``prefetch(array, index)``; with NUMBA_DISABLE_JIT=1 it does nothing."""
