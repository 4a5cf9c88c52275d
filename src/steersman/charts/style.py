"""How all pictures look, and a picture as an SVG that stands alone.

Blue is what is judged, vermilion what it is compared with; their shapes differ too, so that no reader has to tell
colours apart. The colours are those of Okabe and Ito 2008, Color Universal Design.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from steersman.core.errors import MissingExtra

try:
    import altair as alt
    import vl_convert
except ImportError as error:
    raise MissingExtra(error.name or "altair", "console") from None

Chart = alt.LayerChart | alt.FacetChart

NOW, BEFORE, QUIET, THIRD = "#0072B2", "#D55E00", "#767676", "#009E73"
"""Blue, vermilion, grey, bluish green."""

WIDTH, HEIGHT = 330, 190
"""Of the plot within a picture, in pixels; with titles and axes it is some 100 wider and 90 higher."""

CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "background": "white",
    "view": alt.ViewConfig(stroke=None),
    "axis": alt.AxisConfig(
        labelFontSize=11, titleFontSize=11, titleFontWeight="normal", gridColor="#e6e6e6", domainColor="#999999"
    ),
    "legend": alt.LegendConfig(labelFontSize=11),
}


def heading(text: str, said: str) -> alt.TitleParams:
    """A title, and under it what is said, wrapped to the width of a picture."""
    wrapped, line = [], ""
    for word in said.split():
        if len(line) + len(word) > 62:
            wrapped.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return alt.TitleParams(
        text=text, subtitle=[*wrapped, line], anchor="start", fontSize=13, subtitleFontSize=11, subtitleColor="#555555"
    )


def legend() -> alt.Legend:
    """Above the plot, on one line."""
    return alt.Legend(title=None, orient="top", direction="horizontal", offset=4)


def printed(text: str) -> str:
    """A label: not empty, and without what no font has."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text) or '""'


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without numpy's own numbers, which JSON does not know."""
    return [
        {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()} for row in rows
    ]


def svg(chart: Chart) -> str:
    """The picture as SVG text: no script, no font and nothing else from anywhere."""
    return str(vl_convert.vegalite_to_svg(chart.configure(**CONFIG).to_json(validate=False)))
