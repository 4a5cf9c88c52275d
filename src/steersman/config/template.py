"""The steersman.toml that a new project begins with."""

from __future__ import annotations

from steersman.core.decision import Numbers


def template(name: str, box: Numbers | None = None) -> str:
    """The text of a commented steersman.toml that runs: one problem, with two named actions or with numbers."""
    text = _TEMPLATE
    if box is not None:
        bounds = f"low = {list(box.low)}, high = {list(box.high)}"
        numbers = {"actions": f'actions = {{ kind = "numbers", {bounds} }}   # one low and one high bound a number'}
        numbers |= {"learner": 'learner = "sac"', "explorer": 'explorer = { kind = "squashed", floor = 0.1 }'}
        for line in text.splitlines():
            key = line.removeprefix("# ").partition(" = ")[0]
            if key in ("actions", "learner", "explorer", "shaping"):
                text = text.replace(line + "\n", f"{numbers[key]}\n" if key in numbers else "")
    return text.replace("NAME", name)


_TEMPLATE = """\
# Steersman project. Every key below with a value is in force; a line that starts with "# key" shows a default.

[log]
# directory = "log"
# durability = "commit"      # an answer waits until its decision is on the disk; "buffered": until the kernel has it
# segment_mb = 64

[warehouse]
# url = "warehouse"          # a path, or an object storage URL that fsspec knows (s3://..., gs://...)

[serve]
# host = "127.0.0.1"
# port = 8080                # 0 takes a free port and prints it
# grpc_port = 8500           # speak gRPC there, too: pip install "steersman[grpc]"
# workers = 1                # processes that share the port
# max_body_bytes = 1048576
# poll_s = 0.25              # how often a server looks whether an alias moved
# watch_s = 10.0             # how often the guardrails of perturbed copies are looked at
# access_log = false         # a JSON line on stderr for every answer
# "steersman key NAME" makes an API key, and the table that lets it in

[models]
# url = "models"             # plain ONNX models, as models/NAME/1/model.onnx: served beside the policies
# [model.NAME]               # a TOML table of its own for one that is not served by its highest version:
# latest = 1                 # so many of its highest versions; 0: all
# labels = { stable = 3 }

[engine]
# url = "duckdb"
# memory_limit = "4GB"       # beyond it, it spills to disk
# url = "spark://host:7077"  # the same on a Spark: pip install "steersman[spark]"

[problem.NAME]
reward = "clicks"            # an expression over the metrics of the outcomes; there is no default
wait_s = 600                 # an outcome counts if it comes within this many seconds of its decision
default_outcome = { clicks = 0.0 }   # what a decision without any outcome is worth
# combine = { clicks = "max" }   # of several outcomes: first, last, sum (if not named), mean, median, min, max
# discount = 1.0             # of the reward one step later, in (0, 1]
# horizon = 200              # an episode is over after this many steps
# horizon_s = 3600.0         # and after this many seconds
# shaping = { now = -0.01 }  # what is added to the reward for the action itself
actions = { kind = "one", names = ["now", "tonight"] }   # leave names out if each request brings its candidates

[problem.NAME.context]       # field = type; a field not listed here is refused. No fields: anything goes
hour = "number"
device = "text"

[problem.NAME.build]
# assertions = ["propensity >= 0.01"]    # SQL that must hold of every decision, or a build stops and shows which
# max_length_quantile = 0.99 # longer episodes are left out
# within_s = 86400           # decisions later than this after the start of their episode are left out
# lead_s = 86400             # how long before a window one looks for where its episodes began
# shards = 1                 # parts of whole units, one per training process
# context = { hour = "enumerated" }      # instead of the type that is identified from the data

[problem.NAME.learn]
learner = "dqn"
explorer = { kind = "epsilon", epsilon = 0.1 }   # or { kind = "softmax", temperature = 1.0, floor = 0.02 }
# settings = { n_step = 5, discount = 0.99 }   # of the learner
# holdout = 0.3              # share of the units that training never sees and evaluation judges on
validation = 0.1             # share of the units by which training chooses between its nets; 0 if left out
# keep = "best"              # the net that does best on these; "last": the last one
# checkpoint_steps = 1000    # between two checkpoints, from which steersman train --resume goes on
# precision = "f32"          # "bf16": faster on some hardware

[problem.NAME.tune]          # what steersman tune tries
# settings = { learning_rate = { low = 1e-4, high = 1e-2, log = true }, n_step = { low = 1, high = 10 } }

[problem.NAME.simulate]      # instead of a log: what steersman simulate learns in
# world = "cartpole"         # or acrobot, pendulum, offers
# episodes = 4               # side by side while it learns
# judged = 100               # new ones of the policy, and as many at random: the build that it is judged on
# settings = { random = 10000, rounds = 15 }   # how playing and learning take turns

[problem.NAME.evaluate]
# level = 0.95
# interval = "delta"         # of the printed estimates; "t", "bootstrap"; "bernstein": at every number of decisions;
#                            # "sequence": however often one looks
# reward_range = [0.0, 1.0]  # lowest and highest reward of a decision, for bound = "hard" and interval = "bernstein"
# max_weight = 20.0          # 1 / the smallest propensity that can be, for interval = "bernstein"

[problem.NAME.gates]
# margin = 0.0               # the lower bound of the lift over the baseline must be above this
# bound = "anytime"          # holds however often one looks; "fixed": one planned look; "hard": whatever the weights
# tuned = 4000               # units at which that bound is tightest
# max_fall = { revenue = 0.01 }        # how much lower a metric may be
# max_rise = { complaints = 0.002 }    # how much higher
# min_ess = 200              # effective units that the estimate must rest on
# max_unlogged = 0.05        # share of the target's decisions on actions never logged in comparable contexts
# max_reward_drift = 0.5     # of what no model foresaw, between the halves of the window, in its standard deviations
# max_context_drift = 2.0    # of any column of the contexts; 2 asks nothing
# max_policy_drift = 1.0     # of propensities and shares of actions; 1 asks nothing
# max_action_drift = 0.3     # share of the decisions with other actions than the champion's; not asked by default
# max_psi = 0.25             # of every field, against the data of the champion; not asked by default
# max_ks = 0.2               # the same by the largest difference of the distribution functions

# [problem.NAME.guardrails.complaints]   # a metric that perturbed copies (steersman es) may not harm: they stop
# range = [0.0, 1.0]         # lowest and highest value that it can have for a decision
# highest = 0.05             # of its mean over the units that met a copy; or lowest
# rise = 0.01                # above the mean where the version itself decides; or fall
# level = 0.95               # of being right that it is broken, however often one looks
"""
