"""The frame of every HTML page: nothing in it comes from elsewhere, so that it opens without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from steersman.core.report import Estimate, Verdict

_CLASSES = {"pass": "pass", "fail": "fail", "not identified": "unknown"}


def frame(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: as text.
        body: as HTML: whatever came from outside is escaped in it.
    """
    said = escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{said}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<h1>{said}</h1>{body}</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML.

    Args:
        kind: `wrap`: cells may have several lines.
    """
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in rows)
    return f'<table class="{kind}"><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{body}</table>'


def figure(picture: str, said: str) -> str:
    """A picture, and under it what to look for, as text."""
    return f"<figure>{picture}<figcaption>{escape(said)}</figcaption></figure>"


def interval(one: Estimate) -> str:
    """A number with its interval.

    >>> interval(Estimate(estimator="dr", value=0.142, low=0.131, high=0.153, level=0.95, n=40, ess=9.8))
    '0.142 [0.131, 0.153]'
    """
    return f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]{f' at least {one.level:.4g}' if one.at_least else ''}"


def status(one: Verdict) -> str:
    """The status of a verdict, in its colour."""
    return f'<span class="{_CLASSES[one.status]}">{one.status}</span>'


def day(at: int) -> str:
    """An instant, microseconds UTC, for people."""
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


_STYLE = """
body{font:15px/1.45 Helvetica,Arial,sans-serif;color:#222;margin:0}main{max-width:1060px;margin:auto;padding:1em}
h1{margin-bottom:.2em}h2{border-top:1px solid #ddd;padding-top:.8em;margin-top:1.6em}small,.quiet{color:#666}
table{border-collapse:collapse;font-size:13px}th,td{text-align:left;padding:.25em .8em .25em 0;white-space:nowrap;
border-bottom:1px solid #eee}pre{background:#f6f6f6;padding:.8em;white-space:pre-wrap}figure{margin:.4em 1em .4em 0}
figure svg{max-width:100%;height:auto}
dl{display:grid;grid-template-columns:6em 1fr;margin:0}dt{color:#666}dd{margin:0;overflow-wrap:anywhere}
section div{display:flex;flex-wrap:wrap}.strong{font-weight:bold;color:#a33d00}.moderate{font-weight:bold}
.pass{color:#00694d;font-weight:bold}.fail{color:#a33d00;font-weight:bold}.unknown{color:#7a5c00;font-weight:bold}
.wrap td{white-space:normal;vertical-align:top}.wrap td:first-child{white-space:nowrap}
.answer{font-size:19px;margin:.4em 0}figcaption{max-width:48em;color:#444;margin:.1em 0 1em}
""".replace("\n", "")
