"""The worlds: tabular values against brute force and Monte Carlo; CartPole clients against servers."""

import itertools
import json
import math
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest

from steersman import demo, flow, log
from steersman.core.decision import Decision, One, Outcome
from steersman.core.errors import ConfigError, DataError, Error
from steersman.worlds import cartpole, tabular

BANDITS = {"a": tabular.world_a, "b": tabular.world_b, "c": tabular.world_c}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize("name", BANDITS)
def test_the_value_of_a_bandit_is_what_samples_tell(name):
    world = BANDITS[name]()
    batch = world.sample(100_000, seed=1)
    weight = tabular.rows(batch, world.target)[np.arange(len(batch)), batch.action] / batch.propensity
    for values, want in (
        (batch.reward, world.value(world.behavior)),
        (weight * batch.reward, world.value(world.target)),
        (weight, 1.0),
        (weight**2, 1.0 + world.chi2(world.target)),
    ):
        assert abs(values.mean() - want) < 4 * standard_error(values)


def test_the_parameters_of_the_coverage_study():
    for world, actions in ((tabular.world_a(), 10), (tabular.world_b(), 10), (tabular.world_c(), 80)):
        assert world.mean.shape[1] == actions
        assert world.chi2(world.target) == pytest.approx(5.1, abs=1e-9)
        assert world.chi2(world.behavior) == pytest.approx(0.0, abs=1e-12)
        assert world.value(world.target) > world.value(world.behavior)
    assert tabular.world_b().value(tabular.world_b().target) == pytest.approx(
        tabular.world_a().value(tabular.world_a().target) + 5
    )
    assert tabular.world_b().value(tabular.world_b().behavior) == pytest.approx(5.5, abs=0.2)
    world = tabular.world_c()
    assert world.value(world.behavior) == pytest.approx(0.008, abs=1e-12)
    assert set(world.sample(10_000, seed=0).reward) == {0.0, 1.0}


@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_gives_terminated_single_decisions(name):
    batch = BANDITS[name]().sample(500, seed=3)
    assert batch.terminated.all()
    assert (batch.next == -1).all()
    assert len(np.unique(batch.unit)) == 500
    assert batch.metric_names == ("reward",)
    assert np.array_equal(batch.metrics[:, 0], batch.reward)


def test_the_same_seed_gives_the_same_batch():
    world, mdp = tabular.world_a(), tabular.garnet()
    policy = tabular.softmax(mdp.mean)
    assert world.sample(50, seed=1).digest == world.sample(50, seed=1).digest != world.sample(50, seed=2).digest
    assert mdp.sample(9, policy, seed=1).digest == mdp.sample(9, policy, seed=1).digest
    assert mdp.sample(9, policy, seed=1).digest != mdp.sample(9, policy, seed=2).digest
    assert np.array_equal(tabular.garnet(seed=4).chance, tabular.garnet(seed=4).chance)


@pytest.mark.parametrize(
    "world",
    [
        tabular.garnet(),
        tabular.garnet(5, 2, stop=0.3, horizon=5, discount=0.9, seed=1),
        tabular.garnet(5, 3, stop=0.1, horizon=None, discount=0.95, seed=2),
        tabular.garnet(5, 3, stop=0.0, horizon=7, seed=3),
    ],
    ids=["default", "short", "endless", "rectangular"],
)
def test_the_value_of_an_mdp_is_the_mean_return_of_its_episodes(world):
    policy = tabular.softmax(2 * world.mean)
    batch = world.sample(20_000, policy, seed=5)
    returns = np.bincount(batch.episode, weights=world.discount**batch.step * batch.reward)
    assert abs(returns.mean() - world.value(policy)) < 4 * standard_error(returns)
    lengths = np.bincount(batch.episode)
    assert abs(lengths.mean() - world.length(policy)) < 4 * standard_error(lengths) + 1e-9


def test_q_is_the_mean_return_after_a_state_and_an_action():
    world = tabular.garnet(4, 2, branching=2, stop=0.2, horizon=6, discount=0.9, seed=6)
    policy = tabular.softmax(world.mean)
    batch = world.sample(40_000, policy, seed=7)
    rest = np.array(batch.reward)
    for row in np.flatnonzero(batch.next >= 0)[::-1]:  # later rows first
        rest[row] += world.discount * rest[batch.next[row]]
    error = rest - tabular.rows(batch, world.q(policy))[np.arange(len(batch)), batch.action]
    groups = batch.step * 8 + tabular.states(batch) * 2 + batch.action
    for group in np.unique(groups):
        mine = error[groups == group]
        assert abs(mine.mean()) < 4.5 * standard_error(mine)  # 48 groups


def test_the_value_of_a_tiny_mdp_is_the_sum_over_all_its_paths():
    world = tabular.garnet(2, 2, branching=2, stop=0.25, horizon=3, discount=0.9, seed=8)
    policy = tabular.softmax(world.mean)
    value = 0.0
    for path in itertools.product(range(2), repeat=6):  # state, action, state, action, state, action
        chance, discount = world.starts[path[0]], 1.0
        for step in range(3):
            state, action = path[2 * step : 2 * step + 2]
            chance *= policy[state, action]
            value += chance * discount * world.mean[state, action] / 4 ** (2 - step)  # once for each way to go on
            if step < 2:
                into = world.successor[state, action] == path[2 * step + 2]
                chance *= 0.75 * world.chance[state, action][into].sum()
                discount *= 0.9
    assert world.value(policy) == pytest.approx(value, rel=1e-12)


def test_a_world_without_a_horizon_is_the_limit_of_long_ones():
    endless = tabular.garnet(horizon=None, stop=0.1, discount=0.9)
    policy = tabular.softmax(endless.mean)
    assert endless.value(policy) == pytest.approx(replace(endless, horizon=300).value(policy), rel=1e-12)
    assert endless.length(policy) == pytest.approx(10, rel=1e-12)


def test_the_chain_pays_at_its_end():
    always_right = np.tile([0.0, 1.0], (5, 1))
    assert tabular.chain(5, horizon=10).value(always_right) == 6.0
    assert tabular.chain(5, horizon=4).value(always_right) == 0.0
    assert tabular.chain(5, horizon=6, discount=0.5).value(always_right) == 0.5**4 + 0.5**5
    assert tabular.chain(5, horizon=10).value(1 - always_right) == 0.0


def test_episodes_are_of_unequal_length_and_whole():
    world = tabular.garnet()
    batch = world.sample(2_000, tabular.softmax(world.mean), seed=9)
    lengths = np.bincount(batch.episode)
    assert (lengths.min(), lengths.max()) == (1, 40)
    assert len(lengths) == 2_000
    last = np.cumsum(lengths) - 1
    assert np.array_equal(np.flatnonzero(batch.next == -1), last)
    assert np.array_equal(np.flatnonzero(batch.terminated), last)
    assert np.array_equal(batch.unit, batch.episode)


def test_who_stops_looking_at_the_horizon_truncates():
    world = tabular.garnet(stop=0.05, horizon=10)
    policy = tabular.softmax(world.mean)
    batch, cut = (world.sample(500, policy, seed=1, truncate=truncate) for truncate in (False, True))
    at_horizon = (cut.step == 9) & (cut.next == -1) & ~cut.terminated
    assert at_horizon.any()
    assert not cut.terminated[at_horizon].any()
    assert np.array_equal(cut.terminated | at_horizon, batch.terminated)
    assert np.array_equal(cut.reward, batch.reward)


def test_rows_reads_a_policy_by_state_and_q_by_step():
    world = tabular.chain(3, horizon=4)
    batch = world.sample(1, np.tile([0.0, 1.0], (3, 1)), seed=0)
    assert tabular.states(batch).tolist() == [0, 1, 2, 2]
    assert tabular.rows(batch, np.array([[0, 1], [2, 3], [4, 5]])).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5]]
    policy = np.tile([0.5, 0.5], (3, 1))
    q = world.q(policy)
    assert np.array_equal(tabular.rows(batch, q), q[np.arange(4), [0, 1, 2, 2]])


def test_mixing_spreads_a_share_evenly():
    assert tabular.mixed(np.array([[1.0, 0.0]]), 0.2)[0] == pytest.approx([0.9, 0.1])


def test_names_sort_as_their_numbers():
    for count in (2, 10, 11, 101):
        assert list(tabular.names("a", count)) == sorted(tabular.names("a", count))


@pytest.mark.parametrize(
    "policy", [np.ones((3, 2)), np.array([[1.5, -0.5]] * 3), np.ones((2, 2)) / 2], ids=["sum", "negative", "shape"]
)
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(DataError) as refused:
        tabular.chain(3, horizon=2).value(policy)
    assert refused.value.field == "policy"


def test_worlds_that_can_not_be_are_refused():
    with pytest.raises(DataError, match="out of reach"):
        tabular.bandit(3, 2, chi2=1e9, noise=1.0, seed=0)
    with pytest.raises(DataError, match="no episode would end"):
        tabular.garnet(stop=0.0, horizon=None)
    with pytest.raises(DataError, match=r"means in \[0, 1\]"):
        replace(tabular.world_c(), mean=tabular.world_c().mean + 1)


# CartPole: a server of our own answers as we like, so that it can refuse, hang up, and be asked what it saw.

Answer = tuple[int, object, bool]  # status, body, whether the connection closes


@dataclass
class Seen:
    """What a server saw."""

    decides: list[dict] = field(default_factory=list)
    outcomes: list[dict] = field(default_factory=list)
    connections: int = 0
    bundles: list[int] = field(default_factory=list)


def balance(context: dict) -> str:
    """Push towards the side to which the pole falls: holds it up for 200 steps from every start."""
    return "right" if context["pole_angle"] + context["pole_velocity"] > 0 else "left"


def decided(number: int, request: dict) -> Answer:
    body = {"id": f"d{number}", "action": balance(request["context"]), "propensity": 1.0, "version": 1 + number // 50}
    return 200, body, False


@contextmanager
def server(answer: Callable[[int, dict], Answer] = decided) -> Iterator[tuple[str, Seen]]:
    seen = Seen()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with lock:
                seen.connections += 1

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if self.path == "/v1/outcome":
                    seen.outcomes += request
                    seen.bundles.append(len(request))
                    status, body, close = 200, {"accepted": len(request)}, False
                else:
                    assert self.path == "/v1/decide/cart%20pole"
                    seen.decides.append(request)
                    status, body, close = answer(len(seen.decides) - 1, request)
            if status == 0:
                self.close_connection = True
                return
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            if close:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *request: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a client that gave up hangs up
                super().handle_error(*request)

    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", seen
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def left(number: int, request: dict) -> Answer:
    return 200, {"id": f"d{number}", "action": "left", "propensity": 0.5, "version": 1}, False


def test_the_names_of_fields_and_actions_are_those_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    world = gymnasium.make("CartPole-v1").unwrapped
    world.reset(seed=0)
    world.state = np.zeros(4)
    pushed, *_ = world.step(cartpole.ACTIONS.index("left"))
    found = dict(zip(cartpole.FIELDS, pushed, strict=True))
    assert found["cart_velocity"] < 0 < found["pole_velocity"]  # the cart goes left, the pole falls right
    world.state = np.array([0.0, 1.0, 0.0, 0.0])
    moved = dict(zip(cartpole.FIELDS, world.step(1)[0], strict=True))
    assert moved["cart_position"] > 0 and moved["pole_angle"] == 0
    world.state = np.array([0.0, 0.0, 0.0, 1.0])
    assert dict(zip(cartpole.FIELDS, world.step(1)[0], strict=True))["pole_angle"] > 0


def test_every_step_has_its_outcome_and_every_episode_one_end():
    with server(left) as (url, seen):
        played = cartpole.play(url, "cart pole", episodes=20, clients=6, prefix="x")
    steps, ends = defaultdict(list), defaultdict(list)
    unit_of = {f"d{number}": request["unit"] for number, request in enumerate(seen.decides)}
    for request in seen.decides:
        steps[request["unit"]].append(request["step"])
        assert tuple(request["context"]) == cartpole.FIELDS
    for outcome in seen.outcomes:
        assert outcome["metrics"] == {"upright": 1.0}
        ends[unit_of[outcome["decision"]]].append(outcome.get("ends"))
    assert set(steps) == set(ends) == {f"x-{i}" for i in range(20)}
    assert sorted(outcome["decision"] for outcome in seen.outcomes) == sorted(unit_of)
    for unit, numbers in steps.items():
        assert numbers == list(range(len(numbers)))
        assert ends[unit] == [None] * (len(numbers) - 1) + ["terminated"]  # the terminal step has its metric too
    by_episode = [len(steps[f"x-{i}"]) for i in range(20)]
    assert list(played.steps) == by_episode
    assert list(played.returns) == [float(count) for count in by_episode]
    assert played.versions == ((1,),) * 20
    assert played.failures == 0
    assert 8 <= min(by_episode) <= max(by_episode) <= 11  # always left falls over in about 9 steps


def test_episodes_are_cut_at_200_steps_and_say_which_versions_decided():
    with server() as (url, seen):
        played = cartpole.play(url, "cart pole", episodes=1, clients=4)
    assert played.returns == (200.0,)
    assert [outcome["ends"] for outcome in seen.outcomes if "ends" in outcome] == ["truncated"]
    assert played.versions == ((1, 2, 3, 4),)
    assert max(seen.bundles) <= cartpole.OUTCOMES_A_REQUEST


def test_outcomes_say_when_they_happened_in_the_order_of_their_steps():
    with server(left) as (url, seen):
        cartpole.play(url, "cart pole", episodes=1, clients=1)
    instants = [outcome["at"] for outcome in seen.outcomes]
    assert instants == sorted(instants)
    assert all(1.7e15 < at < 4e15 for at in instants)  # microseconds since 1970


def starts(seed: int, clients: int, answer: Callable[[int, dict], Answer]) -> dict[str, dict]:
    with server(answer) as (url, seen):
        cartpole.play(url, "cart pole", episodes=8, clients=clients, seed=seed)
    return {request["unit"]: request["context"] for request in seen.decides if request["step"] == 0}


def test_an_episode_starts_the_same_whatever_the_policy_and_the_number_of_clients():
    def right(number: int, request: dict) -> Answer:
        return 200, {"id": f"d{number}", "action": "right", "version": 1}, False

    first = starts(1, 1, left)
    assert starts(1, 3, left) == first == starts(1, 8, right)
    assert len({str(context) for context in first.values()}) == 8
    assert not set(map(str, starts(2, 3, left).values())) & set(map(str, first.values()))


def test_with_enough_decisions_running_episodes_end_and_no_other_begins():
    with server(left) as (url, seen):
        played = cartpole.play(url, "cart pole", decisions=100, clients=5)
    assert 100 <= sum(played.steps) == len(seen.decides) < 100 + 5 * 11
    assert len(seen.outcomes) == len(seen.decides)
    assert sum("ends" in outcome for outcome in seen.outcomes) == len(played.steps)


def test_the_first_of_two_limits_counts():
    with server(left) as (url, _):
        assert len(cartpole.play(url, "cart pole", decisions=10**6, episodes=3).steps) == 3
        assert sum(cartpole.play(url, "cart pole", decisions=1, episodes=50, clients=1).steps) <= 11
        assert cartpole.play(url, "cart pole", episodes=0).steps == ()


def test_each_client_keeps_its_connection():
    with server(left) as (url, seen):
        cartpole.play(url, "cart pole", episodes=12, clients=3)
    assert seen.connections == 3


def test_a_server_that_closes_after_its_answer_is_called_again():
    def closing(number: int, request: dict) -> Answer:
        return (*left(number, request)[:2], True)

    with server(closing) as (url, seen):
        played = cartpole.play(url, "cart pole", episodes=2, clients=2)
    assert (len(played.steps), played.failures) == (2, 0)
    assert seen.connections > 2


def refusing(which: Callable[[int], bool], status: int, body: object) -> Callable[[int, dict], Answer]:
    return lambda number, request: (status, body, False) if which(number) else left(number, request)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": "no field x", "hint": "send x", "field": "context.x"}, "400: no field x .send x."),
        (503, {"error": "draining", "hint": "", "field": ""}, "503: draining"),
        (500, b"<html>oops</html>", "500: <html>oops"),
        (200, {"id": "d", "version": 1}, "missing required field `action`"),
        (200, {"id": "d", "version": 1, "action": "up"}, "the policy answered 'up'"),
        (0, b"", "closed the connection"),
    ],
    ids=["refused", "draining", "not JSON", "half an answer", "unknown action", "hung up"],
)
def test_a_failure_is_raised_with_the_words_of_the_server(status, body, message):
    with server(refusing(lambda number: number == 30, status, body)) as (url, _), pytest.raises(Error, match=message):
        cartpole.play(url, "cart pole", episodes=20, clients=4)


def test_the_hint_and_the_field_of_a_refusal_are_kept():
    body = {"error": "no", "hint": "send x", "field": "context.x"}
    with server(refusing(lambda number: True, 400, body)) as (url, _), pytest.raises(Error) as refused:
        cartpole.play(url, "cart pole", episodes=1)
    assert (refused.value.hint, refused.value.field) == ("send x", "context.x")


@pytest.mark.parametrize("status", [400, 0])
def test_failures_may_be_tolerated_and_are_counted(status):
    with server(refusing(lambda number: number in (3, 40), status, {"error": "no"})) as (url, seen):
        played = cartpole.play(url, "cart pole", episodes=20, clients=4, max_failures=2)
    assert played.failures == 2
    assert len(played.steps) == 18
    assert len({request["unit"] for request in seen.decides}) == 20


def test_nobody_there_is_an_error_with_a_hint():
    with server() as (url, _):
        pass
    with pytest.raises(Error, match="refused") as refused:
        cartpole.play(url, "cart pole", episodes=1)
    assert "running" in refused.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:80", "https://127.0.0.1", "", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError, match="not the URL"):
        cartpole.play(url, "cartpole", episodes=1)


def test_a_play_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="when to stop"):
        cartpole.play("http://127.0.0.1:1", "cartpole")


@pytest.mark.parametrize("limit", [{"episodes": 15}, {"decisions": 100}])
def test_progress_grows_to_its_total(limit):
    told: list[tuple[int, int, float]] = []
    with server(left) as (url, _):
        cartpole.play(
            url, "cart pole", clients=4, progress=lambda *now: told.append((*now[:2], now[2]["return"])), **limit
        )
    done, total, returns = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1] == next(iter(limit.values()))
    assert all(8 <= value <= 11 for value in returns)


def test_the_real_server_logs_what_the_clients_saw(tmp_path: Path):
    project = demo.fresh(tmp_path / "project", demo.CARTPOLE_TOML)
    problem = project.policy("cartpole").problem
    assert (tuple(problem.context), problem.actions) == (cartpole.FIELDS, One(cartpole.ACTIONS))
    assert (problem.metrics, problem.horizon) == ((cartpole.METRIC,), cartpole.STEPS)
    flow.publish_uniform(project, "cartpole")
    with demo.server(project) as url:
        played = cartpole.play(url, "cartpole", episodes=40, clients=8, prefix="real")
    assert played.versions == ((1,),) * 40
    assert 15 < np.mean(played.returns) < 32  # random: 22.3, and 40 episodes have a standard error of 1.9
    records = list(log.read(project.log_directory))
    decisions = [msgspec.json.decode(r.body, type=Decision) for r in records if r.kind == log.DECISION]
    outcomes = [msgspec.json.decode(r.body, type=Outcome) for r in records if r.kind == log.OUTCOME]
    assert len(decisions) == len(outcomes) == sum(played.steps)
    assert {decision.id for decision in decisions} == {outcome.decision for outcome in outcomes}
    steps = defaultdict(list)
    for decision in decisions:
        steps[decision.unit].append(decision.step)
        assert decision.propensity == 0.5
    assert [sorted(steps[f"real-{i}"]) for i in range(40)] == [list(range(count)) for count in played.steps]
    at = {decision.id: decision.at for decision in decisions}
    assert all(0 <= outcome.at - at[outcome.decision] < 1e6 * problem.wait_s for outcome in outcomes)
