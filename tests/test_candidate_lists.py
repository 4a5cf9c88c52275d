"""Lists as features of candidates through the whole loop: served, logged, built, learned, exported, served again."""

from __future__ import annotations

import random
from pathlib import Path

from product import Client, project, serving
from steersman import engine, flow, log, timeline

TOML = """\
[serve]
poll_s = 0.02

[problem.shelf]
reward = "clicks"
wait_s = 20
horizon = 1
actions = { kind = "one" }

[problem.shelf.candidate]
tags = "list"

[problem.shelf.learn]
explorer = { kind = "epsilon", epsilon = 0.0 }
settings = { steps = 500, hidden = [], learning_rate = 0.02, n_step = 1 }
"""
TAGS = ("red", "green", "blue", "warm", "cold")


def request(rng: random.Random, unit: str) -> dict:
    """A shelf of three items, of which exactly one is warm."""
    offers = [{"id": f"i{rng.randrange(10**6)}", "features": {"tags": rng.sample(TAGS[:3], rng.randrange(3))}}]
    offers.append({"id": "untagged", "features": {"tags": None}})
    offers.append({"id": f"warm{rng.randrange(10**6)}", "features": {"tags": [*rng.sample(TAGS[:3], 1), "warm"]}})
    return {"unit": unit, "candidates": rng.sample(offers, 3)}


def test_a_policy_learns_from_a_list_of_its_candidates_and_serves_what_it_learned(tmp_path: Path) -> None:
    made, rng = project(tmp_path, TOML), random.Random(1)
    with serving(made) as url:
        client = Client(url)
        for u in range(300):
            status, answer = client.post("/v1/decide/shelf", request(rng, f"u{u}"))
            assert status == 200, answer
            clicks = 1.0 if answer["action"].startswith("warm") else 0.0
            client.post("/v1/outcome", {"decision": answer["id"], "metrics": {"clicks": clicks}, "ends": "terminated"})
    built = flow.build(made, "shelf", as_of=flow.now_us() + 60_000_000)
    profile = timeline.profiles_of(Path(built.directory))[0]
    assert (profile.group, profile.name, profile.type) == ("candidate", "tags", "ids")
    assert set(dict(profile.counts)) == {"red", "green", "blue", "warm"}
    flow.train(made, "shelf", seed=0)
    assert flow.judge(made, "shelf").headline.value > 0.9
    _, difference = flow.export(made, "shelf")
    assert difference <= 1e-5
    flow.publish(made, "shelf", force=True)
    flow.promote(made, "shelf")
    with serving(made) as url:
        client = Client(url)
        answers = [client.post("/v1/decide/shelf", request(rng, f"v{u}"))[1] for u in range(50)]
    assert sum(answer["action"].startswith("warm") for answer in answers) >= 45  # a uniform policy: 17 of 50
    flow.compact(made)
    tables = engine.open("duckdb")
    found = log.find(made.log_directory, answers[0]["id"], tables)
    tables.close()
    assert sorted(candidate.features["tags"] is None for candidate in found.candidates) == [False, False, True]
    assert flow.replay(made, answers[0]["id"]).identical
