"""Pictures: one function a picture, from nouns to an Altair chart; and a chart as an SVG that stands alone."""

from steersman.charts.fields import after, before, importance, shares_of
from steersman.charts.reports import calibration, curve, estimates, intervals, shares, validation, weights
from steersman.charts.style import Chart, svg

__all__ = [
    "Chart",
    "after",
    "before",
    "calibration",
    "curve",
    "estimates",
    "importance",
    "intervals",
    "shares",
    "shares_of",
    "svg",
    "validation",
    "weights",
]
