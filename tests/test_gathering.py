"""Calls that come one in a turn of the loop, put together: whose rows, whose errors, and who waits."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import plain_models as plain
from steersman.core.errors import DataError
from steersman.serve.gathering import ALONE, HOPE, TURNS, Gathering
from steersman.serve.predicting import Models, Serving

Rows = np.ndarray


def attached() -> tuple[Models, Serving, Gathering]:
    models = plain.models_of({"half": {1: plain.half()}})
    loop = asyncio.get_running_loop()
    models.attach(loop.call_soon, loop.call_soon_threadsafe)
    return models, models.find("half"), Gathering(models)


def feeds(value: float, rows: int = 1) -> dict[str, Rows]:
    return {"x": np.full(rows, value, np.float32)}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_calls_of_several_turns_are_one_run_and_get_their_own_rows() -> None:
    async def main() -> None:
        _, serving, gathering = attached()
        waiting = []
        for i in range(TURNS // 2):
            waiting.append(gathering.outputs(serving, feeds(i, rows=i)))
            await turns(1)
        for i, outputs in enumerate(await asyncio.gather(*waiting)):
            np.testing.assert_array_equal(outputs[0], np.full(i, i / 2 + 2, np.float32))
        assert serving.runs == 1

    asyncio.run(main())


def test_a_call_that_the_model_can_not_take_and_one_that_is_given_up_leave_the_others() -> None:
    async def main() -> None:
        _, serving, gathering = attached()
        good = [gathering.outputs(serving, feeds(4)) for _ in range(2)]
        bad = gathering.outputs(serving, {"x": np.zeros((1, 1), np.float32)})
        gone = gathering.outputs(serving, feeds(4))
        gone.cancel()
        with pytest.raises(DataError, match="must be float32"):
            await bad
        assert [float(outputs[0][0]) for outputs in await asyncio.gather(*good)] == [4.0, 4.0]

    asyncio.run(main())


def test_who_is_alone_seldom_waits_and_who_has_company_always_does() -> None:
    async def main() -> None:
        _, serving, gathering = attached()
        waited = 0
        for _ in range(10 * ALONE):
            if gathering.worth():
                waited += 1
                await gathering.outputs(serving, feeds(1))
        assert waited == 10
        waiting = [gathering.outputs(serving, feeds(1)) for _ in range(2)]
        assert gathering.worth()
        await asyncio.gather(*waiting)
        for _ in range(HOPE):  # for a while it is believed that others come again
            assert gathering.worth()
            await gathering.outputs(serving, feeds(1))
        assert [gathering.worth() for _ in range(ALONE)].count(True) == 1

    asyncio.run(main())
