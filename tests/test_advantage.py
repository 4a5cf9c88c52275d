"""Weights of actions and the expectile loss, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steersman.core.errors import DataError
from steersman.learn.advantage import binary, expectile, exponential
from steersman.learn.policies import AWAC, BC, CRR, IQL

ADVANTAGE = torch.tensor([-2.0, 0.0, 1.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_best_answer_to_the_expectile_loss_balances_both_sides(share):
    """The e-expectile m solves e E(x - m)+ = (1 - e) E(m - x)+; at 0.5 that is the mean."""
    target = torch.tensor([0.0, 1.0, 5.0, 20.0], dtype=torch.float64)
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(2000):
        (slope,) = torch.autograd.grad(expectile(value.expand(4), target, share), value)
        value = (value - 0.5 * slope).detach().requires_grad_()
    m = value.item()
    above, below = (np.maximum(side, 0.0).mean() for side in (target.numpy() - m, m - target.numpy()))
    assert share * above == pytest.approx((1 - share) * below, rel=1e-6)
    if share == 0.5:
        assert m == pytest.approx(6.5)
        assert float(expectile(value.detach(), target, 0.5)) == pytest.approx(0.5 * float(((target - 6.5) ** 2).mean()))


def test_exponential_weights_do_not_know_the_unit_of_the_reward():
    weigh = exponential(0.5, math.inf)
    spread = ADVANTAGE.numpy().std()
    assert weigh(ADVANTAGE).numpy() == pytest.approx(np.exp(ADVANTAGE.numpy() / (0.5 * spread)), rel=1e-12)
    assert torch.allclose(weigh(1000 * ADVANTAGE), weigh(ADVANTAGE))


def test_no_weight_is_above_the_largest_and_equal_advantages_weigh_one():
    assert exponential(1e-6, 20.0)(ADVANTAGE).tolist() == [0.0, 1.0, 20.0, 20.0]
    assert exponential(0.5, 20.0)(torch.full((3,), 7.0)).tolist() == [1.0, 1.0, 1.0]


def test_binary_weights_leave_out_what_is_no_better():
    assert binary(ADVANTAGE).tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("weigh", [exponential(1.0, 20.0), binary])
def test_weights_have_no_gradient(weigh):
    assert not weigh(ADVANTAGE.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (IQL, "expectile", 1.0),
        (IQL, "expectile", 0.0),
        (IQL, "temperature", 0.0),
        (AWAC, "temperature", math.inf),
        (AWAC, "largest_weight", 0.5),
        (CRR, "samples", 0),
        (CRR, "n_step", 0),
        (BC, "batch_size", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(kind, setting, value):
    with pytest.raises(DataError, match=f"{setting} is .*must be") as refused:
        kind(**{setting: value})
    assert refused.value.field == setting
