"""A tiny saliency network as an ONNX file, without a package that writes such files.

The numbers of the fields are those of onnx.proto (github.com/onnx/onnx).
"""

from pathlib import Path

import numpy as np

SIDE = 320
"""Side of the input that saliency networks of the U2-Net kind take."""
_FLOAT = 1


def write_brightness_network(path: Path) -> None:
    """(1, 3, SIDE, SIDE) -> (1, 1, SIDE, SIDE): the mean of the channels, by one convolution."""
    weights = np.full((1, 3, 1, 1), 1 / 3, np.float32)
    convolution = _bytes(1, b"x") + _bytes(1, b"w") + _bytes(2, b"y") + _bytes(4, b"Conv")
    kernel = b"".join(_number(1, side) for side in weights.shape)
    kernel += _number(2, _FLOAT) + _bytes(8, b"w") + _bytes(9, weights.tobytes())
    graph = _bytes(1, convolution) + _bytes(2, b"brightness") + _bytes(5, kernel)
    graph += _bytes(11, _value(b"x", 3)) + _bytes(12, _value(b"y", 1))
    operators = _bytes(1, b"") + _number(2, 13)
    path.write_bytes(_number(1, 7) + _bytes(7, graph) + _bytes(8, operators))


def _value(name: bytes, channels: int) -> bytes:
    sides = b"".join(_bytes(1, _number(1, side)) for side in (1, channels, SIDE, SIDE))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, sides)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
