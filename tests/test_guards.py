"""What watches over the steps: skipped updates and spikes, counted alike by a resumed run."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_loop import Toy

from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.training import optimizers
from instructrec_jax.training.guards import Seen
from instructrec_jax.training.metrics_log import FILE_NAME, INCIDENTS, read_metrics
from instructrec_jax.training.state import abstract_state, initial_state, shardings_of
from instructrec_jax.training.step import make_train_step

NAN = float("nan")
SPIKES = {60: {"loss": 40.0}, 61: {"loss": 35.0}, 70: {"loss": 50.0}}
USUAL = {step: {"loss": 2.0 + 0.1 * (step % 7)} for step in range(1, 90)}


def incidents(folder):
    lines = read_metrics(folder / INCIDENTS)
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def without_times(folder):
    lines = read_metrics(folder / FILE_NAME)
    is_time = lambda name: name == "time" or name.startswith("timing/")  # noqa: E731
    return [{name: v for name, v in line.items() if not is_time(name)} for line in lines]


def test_a_skipped_update_is_counted_and_named_and_one_too_many_stops_the_run(tmp_path, caplog):
    wrong = {step: {"loss": NAN} for step in (3, 5, 6)}
    toy = Toy(tmp_path, metrics=wrong, max_skipped=2)
    with caplog.at_level("INFO"), pytest.raises(UserError) as caught:
        toy.run(train_steps=9, log=1, checkpoint=1)
    assert "the loss of step 6 is nan, after 2 skipped updates; training stops" in str(caught.value)
    assert "the loss of step 5 is nan; its update is skipped (2 of at most 2)" in caplog.text
    assert toy.saved == [1, 2, 3, 4, 5]
    assert [(line["step"], line["what"], line["example_ids"]) for line in incidents(tmp_path)] == [
        (3, "update skipped", ["u2:1"]),
        (5, "update skipped", ["u4:1"]),
        (6, "stopped", ["u5:1"]),
    ]
    logged = [(line["step"], line.get("loss"), line["skipped_updates"]) for line in toy.lines]
    assert logged == [(1, 1.0, 0), (2, 1.0, 0), (3, None, 1), (4, 1.0, 1), (5, None, 2)]


def test_a_spike_is_told_once_with_its_examples_and_counted(tmp_path, caplog):
    toy = Toy(tmp_path, metrics={**USUAL, **SPIKES})
    with caplog.at_level("INFO"):
        toy.run(train_steps=89, log=89)
    assert caplog.text.count("far above the usual 2.") == 2
    assert [(line["step"], line["example_numbers"]) for line in incidents(tmp_path)] == [
        (60, [118]),
        (70, [138]),
    ]
    assert toy.lines[-2]["loss_spikes"] == 2
    assert f"skipped updates: 0, loss spikes: 2; {INCIDENTS} names their steps" in caplog.text


@pytest.mark.parametrize("stopped_at", [30, 60, 65, 72])
def test_a_resumed_run_tells_and_counts_what_an_uninterrupted_one_does(tmp_path, stopped_at):
    metrics = {**USUAL, **SPIKES, 66: {"gradient_norm": math.inf}}
    for name, ends in (("whole", [89]), ("cut", [stopped_at, stopped_at, 89])):
        folder, first, seen = tmp_path / name, 0, None
        folder.mkdir()
        for end in ends:
            toy = Toy(folder, first_step=first, metrics=metrics, max_skipped=3, seen=seen)
            toy.run(train_steps=end, log=10)
            # What comes after the checkpoint is lost, as by a kill.
            if end != 89:
                first, seen = end, json.loads(json.dumps(dataclasses.asdict(toy.guards.seen)))
                with (folder / INCIDENTS).open("a") as stream:
                    stream.write('{"step": 88, "what": "stopped"}\n')
    whole, cut = ([line["step"] for line in without_times(tmp_path / n)] for n in ("whole", "cut"))
    assert set(whole) <= set(cut)
    assert incidents(tmp_path / "whole") == incidents(tmp_path / "cut") != []
    last = [without_times(tmp_path / name)[-2] for name in ("whole", "cut")]
    assert last[0] == last[1] and last[0]["skipped_updates"] == 1


def test_losses_that_hardly_differ_or_fall_are_no_spikes():
    seen = Seen()
    falling = [10 * 0.97**step for step in range(200)]
    assert not any(seen.add(loss) for loss in falling)
    assert not any(seen.add(loss) for loss in [0.02, 0.020001] * 200)


def test_a_loss_that_stays_high_becomes_the_usual_one():
    seen = Seen()
    assert not any(seen.add(1.0) for _ in range(60))
    assert [seen.add(2.0) for _ in range(200)] == [True, *[False] * 199]
    assert not seen.is_high and seen.num_spikes == 1


class Line(nnx.Module):
    """A model of one slope."""

    def __init__(self, key):
        self.slope = nnx.Param(jax.random.normal(key, (4,)))


def test_a_skipped_step_leaves_model_and_optimizer_as_they_were():
    mesh = make_mesh(MeshSettings())
    optimizer = optimizers.adamw(learning_rate=optimizers.constant(learning_rate=0.1))

    def objective(model, batch, key):
        loss = jnp.mean((model.slope[...] * batch["x"] - 1.0) ** 2)
        return loss, {}

    abstract = abstract_state(Line, optimizer, mesh)
    settings = {"mesh": mesh, "shardings": shardings_of(abstract), "seed": 0}
    finite, wrong = ({"x": jnp.full((8, 4), value)} for value in (1.0, jnp.nan))
    results = {}
    for skips in (True, False):
        of_step = optimizers.skipping_non_finite(optimizer) if skips else optimizer
        step = make_train_step(objective, of_step, **settings)
        for name, batches in (("with", [finite, wrong, finite]), ("without", [finite, finite])):
            state = initial_state(Line, optimizer, mesh, seed=0)
            for batch in batches:
                state, metrics = step(state, batch)
            results[skips, name] = jax.tree.map(np.asarray, (state, metrics))
    skipped, straight = (results[True, name][0] for name in ("with", "without"))
    assert (skipped.step, straight.step) == (3, 2)
    for left, right in zip(
        jax.tree.leaves((skipped.model, skipped.optimizer_state)),
        jax.tree.leaves((straight.model, straight.optimizer_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(
        jax.tree.leaves(results[True, "without"]),
        jax.tree.leaves(results[False, "without"]),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    assert np.isnan(results[False, "with"][0].model.slope[...]).all()
