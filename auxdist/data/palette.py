"""Colours of classes in label images."""

from __future__ import annotations


def voc_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The VOC devkit's colours of background and classes 1..num_classes.

    The bits of a label go in turn to red, green and blue, from the highest bit of each downwards.
    """
    return tuple(_colour(label) for label in range(num_classes + 1))


def _colour(label: int) -> tuple[int, int, int]:
    red = green = blue = 0
    for bit in range(8):
        triple = label >> 3 * bit
        red |= (triple & 1) << 7 - bit
        green |= (triple >> 1 & 1) << 7 - bit
        blue |= (triple >> 2 & 1) << 7 - bit
    return red, green, blue
