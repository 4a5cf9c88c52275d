"""Open Bandit Pipeline, asked from another environment: a JSON command a line in, a JSON answer a line out.

It runs in an environment of its own, which has neither this project nor its versions of anything. Arrays go by files
(npz, never pickled). Times are CPU seconds of this process; the models and the protocols are those of the examples
that the pipeline's authors ship.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from obp import dataset as data
from obp import ope
from obp.dataset.synthetic import sample_random_uniform_coefficients
from obp.policy import IPWLearner
from obp.utils import sigmoid
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

Array = np.ndarray
SEED = 12345
LIMITS = [10, 50, 100, 500, 1000, 5000, 10000, np.inf]
MIXES = [0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0]
LOGS: dict[str, dict[str, Any]] = {}
"""Name -> what a log's columns, target and model are."""


def logistic(strength: float = 100.0) -> LogisticRegression:
    return LogisticRegression(max_iter=10000, C=strength, random_state=SEED)


def ten() -> list[Any]:
    """Fresh ones: a tuned estimator keeps the strength that it found first."""
    return [
        ope.DirectMethod(),
        ope.InverseProbabilityWeighting(),
        ope.SelfNormalizedInverseProbabilityWeighting(),
        ope.DoublyRobust(),
        ope.SelfNormalizedDoublyRobust(),
        ope.InverseProbabilityWeightingTuning(lambdas=list(LIMITS), estimator_name="ipw-tuned"),
        ope.SwitchDoublyRobustTuning(lambdas=list(LIMITS)),
        ope.DoublyRobustWithShrinkageTuning(lambdas=list(LIMITS)),
        ope.SubGaussianInverseProbabilityWeightingTuning(lambdas=list(MIXES)),
        ope.SubGaussianDoublyRobustTuning(lambdas=list(MIXES)),
    ]


def fixed(strengths: list[float], mixes: list[float]) -> list[Any]:
    """Those with a definition that another program can have too."""
    plain = ten()[:5]
    for strength in strengths:
        for kind, name in (
            (ope.InverseProbabilityWeighting, "ipw"),
            (ope.SwitchDoublyRobust, "switch-dr"),
            (ope.DoublyRobustWithShrinkage, "dr-os"),
        ):
            plain.append(kind(lambda_=strength, estimator_name=f"{name} {strength:g}"))
    for mix in mixes:
        for kind, name in (
            (ope.SubGaussianInverseProbabilityWeighting, "sg-ipw"),
            (ope.SubGaussianDoublyRobust, "sg-dr"),
        ):
            plain.append(kind(lambda_=mix, estimator_name=f"{name} {mix:g}"))
    return plain


@contextmanager
def timed(answer: dict[str, Any]) -> Iterator[None]:
    cpu = time.process_time()
    yield
    answer["cpu_s"] = time.process_time() - cpu


def load(name: str, behavior: str, campaign: str, out: str) -> dict[str, Any]:
    """Read a log of the Open Bandit data, the small release that lies in the package; its columns go to `out`."""
    found = data.OpenBanditDataset(behavior_policy=behavior, campaign=campaign)
    feedback = found.obtain_batch_bandit_feedback()
    LOGS[name] = {"feedback": feedback, "len_list": found.len_list}
    columns = {key: feedback[key] for key in ("action", "position", "reward", "pscore")}
    np.savez(out, order=found.data.index.to_numpy(), context=feedback["context"].astype(np.float64), **columns)
    return {"rows": int(feedback["n_rounds"])}


def model(name: str, table: str, out: str) -> dict[str, Any]:
    """The target, by position, [3, K]; and their regression model, three folds, whose answers go to `out`."""
    log = LOGS[name]
    feedback = log["feedback"]
    answer: dict[str, Any] = {}
    log["target"] = np.tile(np.load(table)["table"].T[None], (feedback["n_rounds"], 1, 1))
    with timed(answer):
        regression = ope.RegressionModel(
            n_actions=feedback["n_actions"], len_list=log["len_list"], base_model=logistic(),
            action_context=feedback["action_context"],
        )  # fmt: skip
        log["q"] = regression.fit_predict(
            context=feedback["context"], action=feedback["action"], reward=feedback["reward"],
            position=feedback["position"], n_folds=3, random_state=SEED,
        )  # fmt: skip
    np.savez(out, q=log["q"])
    return answer


def evaluation(name: str, estimators: list[Any]) -> ope.OffPolicyEvaluation:
    return ope.OffPolicyEvaluation(bandit_feedback=LOGS[name]["feedback"], ope_estimators=estimators)


def definitions(name: str, strengths: list[float], mixes: list[float]) -> dict[str, Any]:
    log = LOGS[name]
    values = evaluation(name, fixed(strengths, mixes)).estimate_policy_values(log["target"], log["q"])
    return {"values": {key: float(value) for key, value in values.items()}}


def points(name: str) -> dict[str, Any]:
    """Ten values, the strengths tuned."""
    log = LOGS[name]
    answer: dict[str, Any] = {}
    with timed(answer):
        values = evaluation(name, ten()).estimate_policy_values(log["target"], log["q"])
    return answer | {"values": {key: float(value) for key, value in values.items()}}


def intervals(name: str, draws: int) -> dict[str, Any]:
    """Ten intervals; the time is without the tuning, which these estimators did before."""
    log = LOGS[name]
    answer: dict[str, Any] = {}
    tuned = evaluation(name, ten())
    tuned.estimate_policy_values(log["target"], log["q"])
    with timed(answer):
        found = tuned.estimate_intervals(log["target"], log["q"], n_bootstrap_samples=draws, random_state=SEED)
    ends = {key: [float(number) for number in ends.values()] for key, ends in found.items()}
    return answer | {"intervals": ends}


def errors(
    feedback: dict[str, Any], target: Array, q: Array, truth: float, more: list[Any] | None = None, **asked: Any
) -> dict[str, float]:
    """Relative error of each estimator, signs and all."""
    found = ope.OffPolicyEvaluation(bandit_feedback=feedback, ope_estimators=ten()[:5] + (more or []))
    values = found.estimate_policy_values(target, q, **asked)
    return {name: float(value) / truth - 1.0 for name, value in values.items()}


def digits(run: int, out: str) -> dict[str, Any]:
    """One run of the protocol of examples/multiclass: digits as a bandit, alpha_b 0.4, alpha_e 0.9."""
    pixels, digit = load_digits(return_X_y=True)
    found = data.MultiClassToBanditReduction(X=pixels, y=digit, base_classifier_b=logistic(), alpha_b=0.4)
    found.split_train_eval(eval_size=0.7, random_state=run)
    feedback = found.obtain_batch_bandit_feedback(random_state=run)
    forest = RandomForestClassifier(n_estimators=30, max_depth=5, min_samples_leaf=10, random_state=SEED)
    target = found.obtain_action_dist_by_eval_policy(base_classifier_e=forest, alpha_e=0.9)
    truth = found.calc_ground_truth_policy_value(action_dist=target)
    trees = GradientBoostingClassifier(
        n_estimators=30, learning_rate=0.01, max_depth=5, min_samples_leaf=10, random_state=SEED
    )
    q = fitted(feedback, ope.RegressionModel(n_actions=found.n_actions, base_model=trees))
    save(out, feedback, target, truth)
    return {"errors": errors(feedback, target, q, truth)}


def standardised_logistic(context: Array, action_context: Array, random_state: int) -> Array:
    """Their logistic reward function with logits of mean 0 and deviation 1: of this the printed figures are.

    Release 0.5.7 subtracts mean / deviation from the logits instead; on that generator their own errors are twice the
    printed ones.
    """
    logits = data.linear_reward_function(
        context=context, action_context=action_context, random_state=random_state, z_score=False,
        coef_function=sample_random_uniform_coefficients,
    )  # fmt: skip
    return sigmoid((logits - logits.mean()) / logits.std())


def synthetic(run: int, out: str) -> dict[str, Any]:
    """One run of the protocol of examples/synthetic: 10,000 rounds, 30 actions, 5 numbers, beta -3."""
    found = data.SyntheticBanditDataset(
        n_actions=30, dim_context=5, reward_function=standardised_logistic, beta=-3, random_state=run
    )
    learner = IPWLearner(n_actions=30, base_classifier=logistic())
    train, feedback = (found.obtain_batch_bandit_feedback(n_rounds=10000) for _ in range(2))
    learner.fit(**{key: train[key] for key in ("context", "action", "reward", "pscore")})
    target = learner.predict_proba(context=feedback["context"])
    truth = found.calc_ground_truth_policy_value(expected_reward=feedback["expected_reward"], action_dist=target)
    asked = {"n_actions": 30, "action_context": found.action_context}
    q = fitted(feedback, ope.RegressionModel(base_model=logistic(), **asked))
    save(out, feedback, target, truth)
    return {"errors": errors(feedback, target, q, truth) | learned(feedback, target, truth, asked)}


def learned(feedback: dict[str, Any], target: Array, truth: float, asked: dict[str, Any]) -> dict[str, float]:
    """The estimators that learn something of their own: MRDR's model, balanced weights."""
    robust = fitted(feedback, ope.RegressionModel(base_model=logistic(), fitting_method="mrdr", **asked), target)
    classifier = ope.ImportanceWeightEstimator(n_actions=30, base_model=logistic(), fitting_method="sample")
    weights = classifier.fit_predict(
        context=feedback["context"], action=feedback["action"], action_dist=target, n_folds=2, random_state=SEED
    )
    balanced = [ope.BalancedInverseProbabilityWeighting(lambda_=np.inf)]
    more = errors(feedback, target, robust, truth, balanced, estimated_importance_weights=weights)
    return {"mrdr": more["dr"], "b-ipw": more["b-ipw"]}


def embedded(log: str) -> dict[str, Any]:
    """MIPS on a log of candidates with a feature, made by the other side."""
    with np.load(log) as arrays:
        n, actions = arrays["target"].shape
        weight = ope.MarginalizedInverseProbabilityWeighting(n_actions=actions)
        answer: dict[str, Any] = {}
        with timed(answer):
            answer["value"] = float(
                weight.estimate_policy_value(
                    context=arrays["context"], reward=arrays["reward"], action=arrays["action"],
                    action_embed=arrays["embed"], pi_b=arrays["behavior"][:, :, None],
                    action_dist=arrays["target"][:, :, None], position=np.zeros(n, dtype=int),
                )
            )  # fmt: skip
    return answer


def fitted(feedback: dict[str, Any], regression: ope.RegressionModel, target: Array | None = None) -> Array:
    return regression.fit_predict(
        context=feedback["context"], action=feedback["action"], reward=feedback["reward"], pscore=feedback["pscore"],
        action_dist=target, n_folds=3, random_state=SEED,
    )  # fmt: skip


def save(out: str, feedback: dict[str, Any], target: Array, truth: float) -> None:
    columns = {key: feedback[key] for key in ("context", "action", "reward", "pscore")}
    np.savez(out, target=target[:, :, 0], truth=truth, **columns)


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    command.__name__: command
    for command in (load, model, definitions, points, intervals, digits, synthetic, embedded)
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")  # of what their pinned versions knew and ours say otherwise
    for line in sys.stdin:
        asked = json.loads(line)
        answer = COMMANDS[asked.pop("do")](**asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
