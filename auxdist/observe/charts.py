"""The charts of the report, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LABELS_COLOUR = "#b35806"
VAL_COLOUR = "#2166ac"
_INK, _GRID = "#333333", "#dddddd"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Curve:
    """Values over training steps; its name is shown where a panel has several."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


def miou_chart(
    labels: Sequence[float | None], val: Sequence[float | None], cam: float | None
) -> str:
    """mIoU (fractions) of pseudo labels and of validation, by round; `cam` is a dashed line."""
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 3.0, 4.6)
        for name, values, colour in (
            ("pseudo labels", labels, LABELS_COLOUR),
            ("validation", val, VAL_COLOUR),
        ):
            points = [(i, 100 * v) for i, v in enumerate(values) if v is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name
                )
        if cam is not None:
            axes.axhline(
                100 * cam, color=LABELS_COLOUR, linestyle="--", linewidth=1, label="CAM only"
            )
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                ncols=3, loc="lower left", bbox_to_anchor=(-0.1, 1), frameon=False, fontsize=8
            )
        axes.set(xlabel="round", ylabel="mIoU %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "miou")


def curves_chart(titles: Sequence[str], panels: Sequence[Sequence[Curve]], salt: str) -> str:
    """Curves over steps, one panel for each title, side by side; y starts at 0."""
    with mpl.rc_context(_STYLE):
        figure, all_axes = _figure(len(titles), 2.6, 4.4)
        for axes, title, curves in zip(all_axes, titles, panels, strict=True):
            colours = _shades(len(curves))
            for curve, colour in zip(curves, colours, strict=True):
                axes.plot(curve.steps, curve.values, color=colour, linewidth=1.2, label=curve.name)
            if len(curves) > 1:
                axes.legend(frameon=False, fontsize=8)
            axes.set(title=title, xlabel="step")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        return _svg(figure, salt)


def shares_chart(names: Sequence[str], shares: Sequence[dict[str, float]]) -> str:
    """Stacked bars of fractions that add up to 1, one bar for each name."""
    colours = {"object": LABELS_COLOUR, "background": "#c7c7c7", "ignored": "#f0f0f0"}
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 0.45 + 0.3 * len(names), 6.2)
        axes.grid(visible=False)
        axes.invert_yaxis()
        left = [0.0] * len(names)
        for kind, colour in colours.items():
            widths = [100 * share[kind] for share in shares]
            bars = axes.barh(names, widths, left=left, color=colour, edgecolor="white", label=kind)
            texts = [f"{width:.0f} %" if width > 6 else "" for width in widths]
            ink = "white" if kind == "object" else _INK
            axes.bar_label(bars, texts, label_type="center", fontsize=8, color=ink)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        axes.set_xlim(0, 100)
        axes.xaxis.set_visible(False)
        for side in axes.spines.values():
            side.set_visible(False)
        return _svg(figure, "shares")


def _figure(panels: int, height: float, width: float) -> tuple[Figure, list[Axes]]:
    """`panels` axes side by side, each of that size in inches."""
    figure = Figure(figsize=(panels * width, height), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _shades(number: int) -> list[str]:
    """From light to dark, so that later rounds stand out."""
    shades = mpl.colormaps["Blues"]
    if number == 1:
        return [VAL_COLOUR]
    values = [0.4 + 0.6 * i / (number - 1) for i in range(number)]
    return [mpl.colors.to_hex(shades(value)) for value in values]


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an <svg> element. `salt` keeps ids of several in one page apart."""
    with mpl.rc_context({"svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
