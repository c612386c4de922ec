"""Eight float32 values as one value inside numba functions.

Numba leaves it to LLVM whether a loop over labels becomes vector instructions, and for loops that
gather from many arrays it does not (3 x slower). These few operations state the vectors. LLVM
lowers them to whatever the processor has (AVX, two SSE or NEON registers).

Numba's cache of compiled functions does not see what changes here: whoever changes this file
changes crf_numba.py with it, be it by a blank.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic  # typed by numba as if the caller passed the typing context

WIDTH = 8
"""Values in one Lanes."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)
_EXP_FLOOR = -60.0
_EXP_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


class LanesType(types.Type):
    """The numba type of WIDTH float32 values."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{WIDTH}")


_LANES = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * WIDTH)


def _everywhere(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * WIDTH))


def _call(builder: Any, name: str, values: list[Any], result: Any = _VECTOR) -> Any:
    signature = ir.FunctionType(result, [value.type for value in values])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{WIDTH}f32")
    return builder.call(function, values)


def _address(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, values[0])
    index = context.cast(builder, values[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Lanes of array[index : index + WIDTH], a flat float32 array; unchecked."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature, values))
        loaded.align = 4
        return loaded

    return _LANES(array, index), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """array[index : index + WIDTH] = lanes, a flat float32 array; unchecked."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        stored = builder.store(values[2], _address(context, builder, signature, values))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, index, lanes), generate


@intrinsic
def scaled(typing: Any, factor: Any, lanes: Any) -> Any:
    """Float32 factor * lanes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fmul(_everywhere(builder, values[0]), values[1])

    return _LANES(types.float32, lanes), generate


@intrinsic
def add_scaled(typing: Any, lanes: Any, factor: Any, others: Any) -> Any:
    """Float32 lanes + factor * others."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        factors = _everywhere(builder, values[1])
        return _call(builder, "fmuladd", [factors, values[2], values[0]])

    return _LANES(lanes, types.float32, others), generate


@intrinsic
def add(typing: Any, lanes: Any, others: Any) -> Any:
    """Elementwise lanes + others."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fadd(*values)

    return _LANES(lanes, others), generate


@intrinsic
def larger(typing: Any, lanes: Any, others: Any) -> Any:
    """Elementwise maximum."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return _LANES(lanes, others), generate


@intrinsic
def highest(typing: Any, lanes: Any) -> Any:
    """The largest value."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        result = _call(builder, "vector.reduce.fmax", list(values), _FLOAT)
        result.fastmath.add("nnan")
        return result

    return types.float32(lanes), generate


@intrinsic
def total(typing: Any, lanes: Any) -> Any:
    """The sum of all values, pairwise."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums = values[0]
        for half in (4, 2, 1):
            upper = ir.Constant(_INTEGERS, [(k + half) % WIDTH for k in range(WIDTH)])
            sums = builder.fadd(sums, builder.shuffle_vector(sums, sums, upper))
        return builder.extract_element(sums, ir.Constant(ir.IntType(32), 0))

    return types.float32(lanes), generate


@intrinsic
def exp_below(typing: Any, lanes: Any, top: Any) -> Any:
    """exp(lanes - top) for lanes <= top, to 2e-7 of its value; exactly 0 below exp(-60).

    Zero, because smaller results would end as denormal numbers, which are slow.
    exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 in two parts, and the
    Taylor polynomial of degree 7.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        wanted = builder.fsub(values[0], _everywhere(builder, values[1]))
        negligible = builder.fcmp_ordered("<", wanted, _constant(_EXP_FLOOR))
        x = builder.select(negligible, _constant(_EXP_FLOOR), wanted)
        n = _call(
            builder,
            "floor",
            [_call(builder, "fmuladd", [x, _constant(1.4426950408889634), _constant(0.5)])],
        )
        r = _call(builder, "fmuladd", [n, _constant(-0.693359375), x])
        r = _call(builder, "fmuladd", [n, _constant(2.1219444005469057e-4), r])
        polynomial = _constant(_EXP_TAYLOR[0])
        for coefficient in _EXP_TAYLOR[1:]:
            polynomial = _call(builder, "fmuladd", [polynomial, r, _constant(coefficient)])
        exponent = builder.add(builder.fptosi(n, _INTEGERS), ir.Constant(_INTEGERS, [127] * WIDTH))
        power = builder.bitcast(
            builder.shl(exponent, ir.Constant(_INTEGERS, [23] * WIDTH)), _VECTOR
        )
        return builder.select(negligible, _constant(0.0), builder.fmul(polynomial, power))

    return _LANES(lanes, types.float32), generate
