"""Problem, Candidate, Decision, Outcome: the wire and the log; every other schema derives from them."""

from __future__ import annotations

from steersman.core.decision.draws import check_seed, uniform_draw, uniform_draws
from steersman.core.decision.logged import (
    END_OF_TIME,
    NO_TEXT,
    ROUNDING,
    Candidate,
    Decision,
    Ends,
    Outcome,
    Value,
    candidate_ids,
    check_fields,
)
from steersman.core.decision.names import FIELD, MAX_ID, NAME, check_id
from steersman.core.decision.problem import (
    Actions,
    FieldType,
    Numbers,
    One,
    Problem,
    Ranked,
    Rule,
    check_rules,
)
from steersman.core.decision.wire import decoder, json_schemas

__all__ = [
    "END_OF_TIME",
    "FIELD",
    "MAX_ID",
    "NAME",
    "NO_TEXT",
    "ROUNDING",
    "Actions",
    "Candidate",
    "Decision",
    "Ends",
    "FieldType",
    "Numbers",
    "One",
    "Outcome",
    "Problem",
    "Ranked",
    "Rule",
    "Value",
    "candidate_ids",
    "check_fields",
    "check_id",
    "check_rules",
    "check_seed",
    "decoder",
    "json_schemas",
    "uniform_draw",
    "uniform_draws",
]
