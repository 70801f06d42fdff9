"""The runner's order, statistics and rows."""

import json
import math

import pytest
import torch

from tests.benchmarks.runner import compare, summarize
from tests.benchmarks.steps import steps

KEYS = ["name", "ours", "peer", "ratio", "spread", "goal", "holds"]


class Clock:
    """Seconds that pass only when a side is called."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def side(self, letter: str, seconds: float):
        def call() -> None:
            self.now += seconds
            self.calls += letter

        return call


def test_sides_are_called_in_turn_and_timed_per_unit():
    clock = Clock()
    ours, peer = clock.side("A", 0.25), clock.side("B", 0.5)
    result = compare("step", ours, peer, "<= 0.5", repeats=3, rounds=2, per=10, clock=clock)
    assert clock.calls == "AB" + "ABBA" * 3  # one call of each is not timed
    assert (result.ours, result.peer, result.ratio, result.spread) == (25, 50, 0.5, (0.5, 0.5))
    assert result.holds


def test_ratio_is_the_median_over_repeats():
    ours, peer = [1.0, 2.0, 9.0], [1.0, 4.0, 3.0]  # a quotient of medians would be 2 / 3
    result = summarize("x", ours, peer, "<= 1.03")
    assert result.ratio == 1 and result.spread == (0.5, 3) and result.holds
    assert not summarize("x", ours, peer, "<= 0.9").holds


def test_goal_says_which_way_the_ratio_goes():
    result = summarize("x", [1.0], [12.0], ">= 10")
    assert result.ratio == 12 and result.holds
    assert not summarize("x", [1.0], [9.0], ">= 10").holds
    assert math.isclose(summarize("x", [1.0], [12.0], "<= 10").ratio, 1 / 12)


def test_row_has_the_keys_of_the_table():
    row = json.loads(json.dumps(summarize("x", [1.0], [2.0], "<= 1").row()))
    assert list(row) == KEYS
    assert row["holds"] is True and row["spread"] == [0.5, 0.5]


def test_loops_stand_still_between_calls():
    done = [0, 0]

    def loop(which):
        def run(gate):
            while True:
                gate.tick()
                done[which] += 1

        return run

    with steps(3, loop(0), loop(1)) as (first, second):
        first()
        assert done[1] == 0 and done[0] >= 2  # the third step ends as the next call begins
        first()
        second()
        assert done == [6, 3]


def test_error_in_a_loop_reaches_the_caller():
    def loop(gate):
        gate.tick()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), steps(1, loop) as (only,):
        only()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["simclr", "infonce", "clip", "infonce_geo"])
def test_the_bare_loop_computes_the_recipes_loss(recipe, monkeypatch, tmp_path):
    from tests.benchmarks import bare
    from tests.benchmarks.rows import made
    from tests.methods.test_dual import attach

    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    cli = made(recipe)
    model, data = attach(cli.model), cli.datamodule
    data.prepare_data()
    data.setup("fit")
    batch = next(bare.views(data, torch.device("cpu")))
    loss = (bare.simclr if recipe == "simclr" else bare.dual)(model)(batch)
    model.report = lambda loss, *scores, **raw: {"loss": loss}
    torch.testing.assert_close(loss, model.training_step(batch, 0)["loss"], rtol=1e-5, atol=1e-5)
