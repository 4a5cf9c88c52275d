"""Steersman: a product learns to make better decisions from its own logs, safely.

The nouns are imported with the package; the verbs when they are first used, so that a client that only needs the
nouns loads neither a database nor a graph runtime.
"""

from __future__ import annotations

import importlib
from typing import Any

from steersman.core.batch import Batch
from steersman.core.decision import Candidate, Decision, Outcome, Problem
from steersman.core.errors import Error
from steersman.core.features import Encoder
from steersman.core.policy import EpsilonGreedy, Policy, Softmax, SquareCB, Thompson, Uniform
from steersman.core.report import Estimate, Report, Verdict
from steersman.core.version import Rollout, Version

__all__ = [
    "Batch",
    "Candidate",
    "Decision",
    "Encoder",
    "EpsilonGreedy",
    "Error",
    "Estimate",
    "Outcome",
    "Policy",
    "Problem",
    "Report",
    "Rollout",
    "Softmax",
    "SquareCB",
    "Thompson",
    "Uniform",
    "Verdict",
    "Version",
]
_VERBS = {
    "load": "steersman.config",
    "init": "steersman.flow",
    "import_log": "steersman.flow",
    "build": "steersman.flow",
    "train": "steersman.flow",
    "simulate": "steersman.flow",
    "judge": "steersman.flow",
    "export": "steersman.flow",
    "publish": "steersman.flow",
    "promote": "steersman.flow",
    "rollback": "steersman.flow",
    "replay": "steersman.flow",
    "status": "steersman.flow",
}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'steersman' has no attribute {name!r}")
