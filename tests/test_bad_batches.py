"""What may come back from a log that no search may learn from: refused with the reason, and nothing is published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from product import Client, serving
from steersman import flow, log
from steersman.config import Project
from steersman.core.decision import Decision, Outcome
from steersman.core.errors import DataError
from steersman.flow import online, perturbing
from steersman.flow.logs import opened
from steersman.learn import evolution as es
from steersman.models.warehouse import Warehouse
from test_online import copied, decisions, play, played, product  # noqa: F401  (a fixture)


def found(made: Project, ids: list[str]) -> list[Decision]:
    with opened(made) as tables:
        return [log.find(made.log_directory, one, tables) for one in ids]


def written(made: Project, nouns: list[Decision | Outcome]) -> None:
    with log.Pen(made.log_directory) as pen:
        for noun in nouns:
            kind = log.DECISION if isinstance(noun, Decision) else log.OUTCOME
            pen.append([(kind, msgspec.json.encode(noun))], lambda error: None)


def unpublished(made: Project) -> bool:
    return Warehouse(made.warehouse_url).numbers("side") == (1, 2, 3) and flow.champion(made, "side") == 3


def test_a_log_with_the_sign_of_its_keys_swapped_is_refused(tmp_path: Path) -> None:
    """A log that has every decision of a copy under the key of the mirrored one."""
    made = product(tmp_path, es.Settings(sigma=1.0))  # so that mirrored copies decide differently every third time
    with serving(made) as url:
        play(url, 40, "u")
    flow.compact(made)
    of_copies = [one for one, (_, key) in decisions(made).items() if key is not None]
    before = found(made, of_copies)
    shutil.rmtree(made.log_directory)
    swapped = [replace(one, noise=one.noise ^ 1) for one in before if one.noise is not None]
    outcomes = [
        Outcome(id=f"o{i}", decision=one.id, at=one.at + 1, metrics={"right": float(i)}, ends="terminated")
        for i, one in enumerate(swapped)
    ]
    written(made, [*swapped, *outcomes])
    with pytest.raises(DataError, match="come out otherwise when they are made again from their keys"):
        online.update(made, "side")
    assert unpublished(made)


def test_a_log_of_another_run_is_refused(played: Any, tmp_path: Path) -> None:  # noqa: F811
    made = copied(played, tmp_path / "p")
    search, served = perturbing.read(made, "side", 3)
    crowd = perturbing.place(made, "side", 3)
    shutil.copytree(crowd, tmp_path / "aside")
    es.save(es.begin(search.settings, search.mean), crowd / perturbing.SEARCH)  # the same parameters, other noise
    with pytest.raises(DataError, match="its copies were of"):
        online.update(made, "side")
    assert unpublished(made)
    shutil.copy(tmp_path / "aside" / perturbing.SEARCH, crowd / perturbing.SEARCH)
    made_again = online.update(made, "side")
    assert made_again.version == 4 and served.made is None


def test_a_log_that_came_twice_gives_the_same_bits(played: Any, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    once, twice = copied(played, tmp_path / "once"), copied(played, tmp_path / "twice")
    monkeypatch.setattr(online, "now_us", lambda: 2 * 10**15)
    every = found(twice, list(decisions(twice)))
    written(twice, [*every])
    for made in (once, twice):
        assert online.update(made, "side").version == 4
    searches = [(made.root / "es" / "side" / "4" / "search").read_bytes() for made in (once, twice)]
    assert searches[0] == searches[1]


def test_a_reward_that_is_no_number_is_refused_at_the_door(played: Any, tmp_path: Path) -> None:  # noqa: F811
    made = copied(played, tmp_path / "p")
    with serving(made) as url:
        client = Client(url)
        answer = client.post("/v1/decide/side", {"unit": "odd", "context": {"x": 1.0}})[1]
        for odd in (float("nan"), float("inf")):
            status, told = client.post("/v1/outcome", {"decision": answer["id"], "metrics": {"right": odd}})
            assert status == 400 and told["error"]
    assert np.isfinite(online.update(made, "side").account.ess)
