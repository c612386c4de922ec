"""What the gate takes for a collapse, and what not."""

from dataclasses import replace

import pytest

from auxdist.config import GateConfig
from auxdist.labels.gate import collapse
from auxdist.labels.statistics import Changes, Statistics, Totals

GATE = GateConfig()
NAMES = ("cat", "dog")


def labels(background: int, ignore: int, cat: int, dog: int = 0) -> Statistics:
    pixels = background + ignore + cat + dog
    return Statistics(Totals(pixels, background, ignore, (cat, dog)), Changes.none(2))


USUAL = labels(700, 200, 60, 40)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (USUAL, USUAL),
        (USUAL, labels(550, 400, 30, 20)),
        (labels(779, 129, 46, 46), labels(840, 70, 60, 30)),  # a first refresh of the demo
        (labels(50, 900, 30, 20), labels(50, 920, 20, 10)),  # much was ignored from the start
        (labels(950, 20, 20, 10), labels(960, 15, 15, 10)),  # small objects
        (labels(700, 200, 100), labels(600, 200, 200)),  # only one class has pixels at all
        (labels(1000, 0, 0), labels(1000, 0, 0)),
    ],
)
def test_ordinary_refreshes_pass(before: Statistics, after: Statistics) -> None:
    assert collapse(after, before, NAMES, GATE) == []


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            labels(200, 700, 60, 40),
            "ignore takes over: 30.00 % of the pixels have a label, 80.00 % had one before; "
            "labels.gate.max_fall is 0.5",
        ),
        (
            labels(950, 30, 12, 8),
            "background takes over: 95.00 % of the pixels, 70.00 % before; "
            "labels.gate.takeover_share is 0.9",
        ),
        (
            labels(700, 200, 95, 5),
            'class "cat" takes over: 95.00 % of the object pixels, 60.00 % before; '
            "labels.gate.takeover_share is 0.9",
        ),
        (
            labels(850, 150, 0, 0),
            "no pixel is labelled as an object any more; 10.00 % were before",
        ),
    ],
)
def test_collapses_are_named_with_their_figures(after: Statistics, words: str) -> None:
    assert collapse(after, USUAL, NAMES, GATE) == [words]
    assert collapse(after, None, NAMES, GATE) == [], "first labels are compared with nothing"
    assert collapse(after, USUAL, NAMES, GateConfig(enabled=False)) == []


def test_values_that_are_not_finite_never_pass() -> None:
    after = replace(USUAL, not_finite=3)
    expected = ["CAM or saliency of 3 images is not finite (NaN or infinite)"]
    for before in (USUAL, None):
        assert collapse(after, before, NAMES, GATE) == expected


def test_thresholds_move_the_gate() -> None:
    after = labels(450, 450, 60, 40)  # coverage 80 -> 55 %
    assert collapse(after, USUAL, NAMES, GATE) == []
    assert len(collapse(after, USUAL, NAMES, GateConfig(max_fall=0.3))) == 1
    cats = labels(700, 200, 85, 15)
    assert collapse(cats, USUAL, NAMES, GATE) == []
    assert len(collapse(cats, USUAL, NAMES, GateConfig(takeover_share=0.8))) == 1
    assert collapse(labels(0, 1000, 0), USUAL, NAMES, GateConfig(max_fall=1)) == [
        "no pixel is labelled as an object any more; 10.00 % were before"
    ]
