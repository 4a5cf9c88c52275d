"""Join decisions with outcomes, order episodes, cut Batches. No peeking ahead.

What enters: the decisions of the window [since, until) whose wait is over at `as_of` (at + wait_s <= as_of), of
several with one id the first. What happened after `as_of` does not exist, so a build can be repeated for ever.

What counts for a decision: the outcomes with its id that happened at most `wait_s` after it, be they stamped before
it or not, each outcome id once. The values of a metric are combined by the rule of the problem: added up unless it
says otherwise. A metric that did not come takes the default of the problem, or is NaN. Nothing later touches a row's
context, candidates, metrics or reward.

An `ends` within the wait closes the episode as it says, `terminated` before `truncated`. An `ends` that came late
closes the episode too, but as truncated: to link the unit's next decision to it would be a lie, and to call it
terminated would use what nobody knew in time. So `next` and `discount` are the only arrays that know of it.

The order inside a unit: by `step` if every decision of the unit has one and no two share it. If steps repeat, they
count within episodes that follow each other: then `at` orders, and a decision whose step or `at` does not grow starts
a new episode. Without steps `at` orders, then the id. Rows lie in that order, so the next step is always the next row.

The same decisions and outcomes give the same bits, however they are split into files and in whatever order they lie:
rows have a total order, the values of a metric are added from the smallest on, `first` and `last` go by `at` and then
by the outcome's id, and the statistics of the encoder are sums of whole numbers, which are exact in any order.
"""

from steersman.timeline.build import build
from steersman.timeline.built import Built, Counts, Files, RawRows
from steersman.timeline.episodes import parts
from steersman.timeline.settings import Settings
from steersman.timeline.shards import add_up, build_shards
from steersman.timeline.store import digest_of, encoder_of, load, parts_of, profiles_of, save, summary_of

__all__ = [
    "Built",
    "Counts",
    "Files",
    "RawRows",
    "Settings",
    "add_up",
    "build",
    "build_shards",
    "digest_of",
    "encoder_of",
    "load",
    "parts",
    "parts_of",
    "profiles_of",
    "save",
    "summary_of",
]
