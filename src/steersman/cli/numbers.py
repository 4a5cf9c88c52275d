"""Numbers on a command line: the range of each is checked before anything is read or started."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type of options: whole numbers from `low` to `high`, both in it; None: there is no end."""
    span = f"from {low} on" if high is None else f"from {low} to {high}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {span}")
        return number

    return read


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type of options: finite numbers from `low` to `high`, both in it."""
    span = "" if low == -math.inf else f" from {low:g} on" if high == math.inf else f" from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (low <= number <= high and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text!r} is no finite number{span}")
        return number

    return read


count = whole(1)
port = whole(0, 65535)
seed = whole(0, 2**63 - 1)
"""What NumPy, torch and JSON all take."""

share = real(0, 1)
finite = real(-math.inf)
