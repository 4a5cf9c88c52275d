"""Evolution strategies: a search over parameters by the rewards of perturbed copies. NumPy only, no gradients."""

from __future__ import annotations

from steersman.learn.evolution.cma import CMA, SepCMA
from steersman.learn.evolution.gain import Gain, gain
from steersman.learn.evolution.search import Account, Search, Settings, Told, ask, begin, tell
from steersman.learn.evolution.solvers import ARS, PGPE, SNES, OpenES, Solver
from steersman.learn.evolution.steps import SGD, Adam, ClipUp
from steersman.learn.evolution.stored import load, save

__all__ = [
    "ARS",
    "CMA",
    "PGPE",
    "SGD",
    "SNES",
    "Account",
    "Adam",
    "ClipUp",
    "Gain",
    "OpenES",
    "Search",
    "SepCMA",
    "Settings",
    "Solver",
    "Told",
    "ask",
    "begin",
    "gain",
    "load",
    "save",
    "tell",
]
