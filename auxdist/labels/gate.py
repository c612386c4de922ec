"""Whether refreshed labels are fit to be learned from, by figures that need no ground truth."""

from __future__ import annotations

from collections.abc import Iterator

from auxdist.config import GateConfig
from auxdist.labels.statistics import Statistics, Totals


def collapse(
    after: Statistics, before: Statistics | None, names: tuple[str, ...], gate: GateConfig
) -> list[str]:
    """What is wrong with labels, one line each; empty where they are fit.

    `before` are the figures of the labels that they would replace, None where there are none;
    `names` those of the classes. The same figures give the same lines, whoever asks.
    """
    if not gate.enabled:
        return []
    found = list(_not_finite(after))
    if before is not None and before.totals.pixels and after.totals.pixels:
        found += _coverage(after.totals, before.totals, gate)
        found += _takeovers(after.totals, before.totals, names, gate)
        found += _vanished(after.totals, before.totals)
    return found


def _not_finite(after: Statistics) -> Iterator[str]:
    if after.not_finite:
        yield f"CAM or saliency of {after.not_finite} images is not finite (NaN or infinite)"


def _coverage(after: Totals, before: Totals, gate: GateConfig) -> Iterator[str]:
    if after.coverage < (1 - gate.max_fall) * before.coverage:
        yield (
            f"ignore takes over: {_percent(after.coverage)} of the pixels have a label, "
            f"{_percent(before.coverage)} had one before; labels.gate.max_fall is {gate.max_fall:g}"
        )


def _takeovers(
    after: Totals, before: Totals, names: tuple[str, ...], gate: GateConfig
) -> Iterator[str]:
    """Background among all pixels, and each class among those of objects."""
    shares = [
        (
            "background",
            "the pixels",
            after.background,
            after.pixels,
            before.background,
            before.pixels,
        )
    ]
    shares += [
        (f'class "{name}"', "the object pixels", now, after.objects, then, before.objects)
        for name, now, then in zip(names, after.classes, before.classes, strict=True)
    ]
    for name, whole, now, all_now, then, all_then in shares:
        if not all_now or not all_then:
            continue
        share, old = now / all_now, then / all_then
        if share > gate.takeover_share and 1 - share < (1 - gate.max_fall) * (1 - old):
            yield (
                f"{name} takes over: {_percent(share)} of {whole}, {_percent(old)} before; "
                f"labels.gate.takeover_share is {gate.takeover_share:g}"
            )


def _vanished(after: Totals, before: Totals) -> Iterator[str]:
    if before.objects and not after.objects:
        share = before.objects / before.pixels
        yield f"no pixel is labelled as an object any more; {_percent(share)} were before"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
