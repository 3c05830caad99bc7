"""Training runs through the real stage: they stop, go on, begin elsewhere, and are refused."""

import json
import os
import re
import signal
import time
from pathlib import Path

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import tiny_config
from train_toy import MODEL, train_toy

from instructrec_jax.checkpoints import store
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.stages import train as stage
from instructrec_jax.training import optimizers
from instructrec_jax.training.metrics_log import FILE_NAME, TIMING, read_metrics
from instructrec_jax.training.state import abstract_state

pytestmark = pytest.mark.slow  # whole runs

ADAMW = optimizers.adamw(learning_rate=optimizers.constant(learning_rate=1e-3))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Everything a checkpoint holds, as numpy arrays by name."""
    mesh = make_mesh(MeshSettings())
    wanted = abstract_state(MODEL.init, ADAMW, mesh)
    if folder.parent.name == store.BEST:
        wanted = wanted._replace(optimizer_state=None)
    return jax.tree.map(np.asarray, store.named_arrays(store.restore(folder, wanted)))


def assert_same_state(one: Path, other: Path):
    left, right = arrays_of(one), arrays_of(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_same_run(one: Path, other: Path, last: int):
    """Every bit: the last state, the best one, and every metric of every step."""
    assert_same_state(one / store.LATEST / str(last), other / store.LATEST / str(last))
    assert steps_in(one / store.BEST) == steps_in(other / store.BEST)
    best = str(*steps_in(one / store.BEST))
    assert_same_state(one / store.BEST / best, other / store.BEST / best)
    metrics = [read_metrics(folder / FILE_NAME) for folder in (one, other)]
    for line in (*metrics[0], *metrics[1]):
        for name in [name for name in line if name == "time" or name.startswith(TIMING)]:
            del line[name]
    assert metrics[0] == metrics[1]
    assert [line["step"] for line in metrics[0] if "loss" in line] == list(range(1, last + 1))


@pytest.fixture(scope="module")
def straight(toy_records, tmp_path_factory):
    """Returns the folder of an uninterrupted run of six steps, made once for each objective."""
    made = {}

    def run(objective):
        if objective not in made:
            made[objective] = tmp_path_factory.mktemp("straight") / "run"
            train_toy(toy_records, made[objective], 6, objective=objective, config_text="A = 1\n")
        return made[objective]

    return run


@pytest.mark.parametrize("objective", ["packed text", "listwise"])
def test_a_run_cut_in_two_equals_an_uninterrupted_one_bit_for_bit(
    toy_records, straight, objective, tmp_path
):
    train_toy(toy_records, tmp_path, 3, objective=objective)
    assert steps_in(tmp_path / store.LATEST) == [2, 3]
    train_toy(toy_records, tmp_path, 6, objective=objective)
    assert_same_run(tmp_path, straight(objective), 6)


def test_a_run_of_an_earlier_version_is_refused_since_its_order_was_another(toy_records, tmp_path):
    train_toy(toy_records, tmp_path, 2)
    path = tmp_path / store.LATEST / "2" / "_CHECKPOINT_METADATA"
    found = json.loads(path.read_text())
    del found["custom_metadata"]["data_position"]
    path.write_text(json.dumps(found))
    message = "2 does not say which examples come after it: .*INITIAL_CHECKPOINT_PATH="
    with pytest.raises(UserError, match=message):
        train_toy(toy_records, tmp_path, 6)


def test_a_loss_that_is_not_finite_names_the_examples_of_packed_rows(toy_records, tmp_path):
    explodes = optimizers.constant(learning_rate=1e30)
    message = r"of step \d is (nan|inf).*examples of that batch.*: \d+ \(\w+:\d+\), \d+ \(\w+:\d+\)"
    with pytest.raises(UserError, match=message):
        train_toy(toy_records, tmp_path, 6, objective="packed text", learning_rate=explodes)


def test_steps_change_every_array(straight):
    first, last = (arrays_of(straight("listwise") / store.LATEST / step) for step in ("4", "6"))
    assert first["step"] == 4 and last["step"] == 6
    assert [name for name in first if np.array_equal(first[name], last[name])] == []


def test_a_finished_run_is_left_as_it_is(toy_records, straight, caplog):
    folder = straight("listwise")
    before = {path: path.stat().st_mtime_ns for path in (folder / store.LATEST).rglob("*")}
    with caplog.at_level("INFO"):
        train_toy(toy_records, folder, 6)
    assert "nothing left to do" in caplog.text
    after = {path: path.stat().st_mtime_ns for path in (folder / store.LATEST).rglob("*")}
    assert after == before
    assert (folder / "config.gin").read_text() == "A = 1\n"


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_its_checkpoint(toy_records, tmp_path):
    periods = {"log": 1, "evaluate": 3, "checkpoint": 3}
    explodes = optimizers.Schedule(
        lambda step: jnp.where(step < 3, 1e-3, 1e30), {"name": "explodes"}
    )
    message = r"of step \d is (nan|inf).*examples of that batch.*: \d+ \(\w+:\d"
    with pytest.raises(UserError, match=message):
        train_toy(toy_records, tmp_path, 6, periods=periods, learning_rate=explodes)
    assert steps_in(tmp_path / store.LATEST) == [3]
    assert all(np.isfinite(array).all() for array in arrays_of(tmp_path / "checkpoints/3").values())


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.mark.parametrize("moment", ["evaluate", "keep_best", "log"])
def test_the_best_checkpoint_has_the_highest_validation_ndcg_at_5_even_after_a_kill(
    toy_records, tmp_path, monkeypatch, moment
):
    """The kill comes in the evaluation of step 2, or before its result is kept or logged."""
    values = iter([0.2, *([] if moment == "evaluate" else [0.6]), 0.6, 0.4, 0.6])
    is_killing = [True]

    def kill(now, step):
        if is_killing and now == moment and step == 2:
            is_killing.clear()
            raise Killed

    def evaluate(model):
        kill("evaluate", int(max(steps_in(tmp_path / store.LATEST))))
        return {"validation/ndcg@5": next(values)}

    def save(self, step, *arguments, **named):
        if self.folder.name == store.BEST:
            kill("keep_best", step)
        saved(self, step, *arguments, **named)
        self.wait()

    def write(self, step, measured):
        if "loss" not in measured:
            kill("log", step)
        written(self, step, measured)

    saved, written = store.CheckpointStore.save, stage.MetricsLog.write
    monkeypatch.setattr(store.CheckpointStore, "save", save)
    monkeypatch.setattr(stage.MetricsLog, "write", write)
    monkeypatch.setattr(stage, "make_evaluate", lambda *_, **__: evaluate)
    periods = {"evaluate": 1, "log": 1}
    with pytest.raises(Killed):
        train_toy(toy_records, tmp_path, 4, periods=periods)
    assert steps_in(tmp_path / store.LATEST)[-1] == 2, "the kill loses no step"
    train_toy(toy_records, tmp_path, 4, periods=periods)
    assert next(values, None) is None
    lines = read_metrics(tmp_path / FILE_NAME)
    assert [line["step"] for line in lines if "loss" not in line] == [1, 2, 3, 4]
    assert steps_in(tmp_path / store.BEST) == [2]
    assert steps_in(tmp_path / store.LATEST) == [3, 4]
    assert store.resolve_checkpoint(tmp_path).name == "2"
    assert "model.token_embedder.embedding" in arrays_of(tmp_path / store.BEST / "2")


def test_a_run_begins_with_the_parameters_and_the_step_of_an_initial_checkpoint(
    toy_records, straight, tmp_path, monkeypatch, caplog
):
    initial = straight("listwise") / store.LATEST / "6"
    positions = []
    training_batches = stage.loader.ranking_training_batches

    def noting(name, **settings):
        positions.append(settings["position"])
        return training_batches(name, **settings)

    monkeypatch.setattr(stage.loader, "ranking_training_batches", noting)
    start = {"initial_checkpoint_path": str(initial), "learning_rate": 0.0}
    with caplog.at_level("INFO"):
        train_toy(toy_records, tmp_path / "relative", None, **start, train_steps_relative=2)
        assert f"starting from the parameters of {initial}" in caplog.text
        # Without TRAIN_STEPS_RELATIVE the six steps of the initial checkpoint count too.
        train_toy(toy_records, tmp_path / "absolute", 6, **start)
        assert f"nothing left to do: {tmp_path / 'absolute'} is at step 6" in caplog.text
    found = arrays_of(tmp_path / "relative" / store.LATEST / "8")
    for array, value in arrays_of(initial).items():
        if array.startswith("model."):  # at rate 0 nothing but the start decides
            np.testing.assert_array_equal(found[array], value)
    lines = read_metrics(tmp_path / "relative" / FILE_NAME)
    assert [line["step"] for line in lines if "loss" in line] == [7, 8]
    assert positions == [None], "the data begins with its first batch, whatever the step"
    train_toy(toy_records, tmp_path / "relative", None, **start, train_steps_relative=3)
    assert positions == [None, [[2, 0]]]


def test_an_initial_checkpoint_of_other_sizes_is_refused_with_names(
    toy_records, straight, tmp_path
):
    other = tiny_config(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=64)
    with pytest.raises(UserError, match=r"of another size than MODEL: there mlp_dim is 32, not 64"):
        train_toy(
            toy_records,
            tmp_path / "run",
            8,
            model=other,
            initial_checkpoint_path=str(straight("listwise")),
        )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 2e-3}, r"settings\['optimizer'\] was .*0\.001.* and is .*0\.002"),
        ({"seed": 2}, r"settings\['seed'\] was 1 there and is 2 now"),
        ({"batch_size": 16}, "batch_size"),
        ({"objective": "packed text"}, "mixture|objective"),
        ({"num_candidates": 5}, "num_candidates"),
        ({"pack": False}, "pack"),
        ({"model": tiny_config(vocab_size=600, mlp_dim=64)}, "model"),
    ],
)
def test_the_folder_of_another_run_is_refused(toy_records, straight, change, named):
    with pytest.raises(UserError, match=f"holds another run: .*({named})"):
        train_toy(toy_records, straight("listwise"), 8, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": tiny_config(vocab_size=100)},
            r"vocabulary .* has \d+ ids and the model only 100",
        ),
        ({"batch_size": 3}, r"BATCH_SIZE is 3; expected a multiple of data x fsdp = 8"),
        ({"initial_checkpoint_path": "nowhere"}, "no finished checkpoint in nowhere"),
    ],
)
def test_a_mistake_leaves_no_folder_behind_that_would_refuse_the_next_try(
    toy_records, tmp_path, change, message
):
    with pytest.raises(UserError, match=message):
        train_toy(toy_records, tmp_path / "run", 3, **change)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = train_toy("no such folder", tmp_path / "run", 3, dry_run=True)
    assert found.stops == ["data"] and found.rows["checkpoint"] == "none: random weights"
    assert found.rows["work"] == f"3 steps of 8 rows, into {tmp_path / 'run'}"
    assert re.search(
        r"toy\.A7\.grouped: [\d,]+ parameters, mesh data=8, fsdp=1, tensor=1, "
        r"[\d.]+ MiB of state per device \([\d.]+ MiB of parameters, "
        r"[\d.]+ MiB of the optimizer's\); adamw, 3 steps of 8 rows from random weights, into",
        caplog.text,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_examples_and_sees_the_run_that_model_dir_holds(
    toy_records, straight, tmp_path
):
    found = train_toy(toy_records, tmp_path / "run", 3, dry_run=True)
    assert found.would_start and list(tmp_path.iterdir()) == []
    assert re.match(r"found: [\d,]+ examples of toy.A7.grouped in ", found.rows["data"])
    found = train_toy(toy_records, straight("listwise"), 9, dry_run=True)
    assert found.would_start and found.rows["checkpoint"].endswith("step 6, from which it goes on")
    found = train_toy(toy_records, straight("listwise"), 9, dry_run=True, seed=2)
    assert found.stops == ["work"] and "settings['seed'] was 1 there" in found.rows["work"]


def test_a_run_without_a_number_of_steps_is_refused_before_it_begins(tmp_path):
    with pytest.raises(UserError, match="TRAIN_STEPS and TRAIN_STEPS_RELATIVE are both None"):
        train_toy("no such folder", tmp_path / "run", None)
    assert list(tmp_path.iterdir()) == []


def test_steps_that_end_before_the_initial_checkpoint_are_refused(toy_records, straight, tmp_path):
    start = str(straight("listwise") / store.LATEST / "6")
    with pytest.raises(UserError, match=r"TRAIN_STEPS is 5, but .* is at step 6 already"):
        train_toy(toy_records, tmp_path / "run", 5, initial_checkpoint_path=start)
    assert not (tmp_path / "run").exists()


def start_process(records, folder, train_steps):
    """Starts the same run as a process of its own, on as many fake devices as this one."""
    log = folder.parent / f"{folder.name}.log"
    return forked.start("train_toy.py", records, folder, train_steps, log=log)


def wait_for_step(process, folder, step, *, since):
    """Waits until this process, not one before it, has logged the step or a later one."""
    while not any(
        line["step"] >= step and line["time"] >= since for line in read_metrics(folder / FILE_NAME)
    ):
        assert process.exitcode is None, (folder.parent / f"{folder.name}.log").read_text()[-3000:]
        time.sleep(0.01)


def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(toy_records, tmp_path):
    folder, num_steps = tmp_path / "killed", 18
    rng = np.random.default_rng()  # another moment each time the test runs
    # Every third step is evaluated, so that much is left to do when the process is asked to stop.
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 0}
    saved = {}
    for step, ending in ((1, signal.SIGKILL), (2, signal.SIGINT), (3, signal.SIGTERM)):
        since = time.time()
        process = start_process(toy_records, folder, num_steps)
        wait_for_step(process, folder, step, since=since)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, ending)
        process.join()
        assert process.exitcode == codes[ending]
        if ending != signal.SIGKILL:
            saved[ending] = max(steps_in(folder / store.LATEST))
    messages = (tmp_path / "killed.log").read_text()
    for ending, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")):
        stopped = f"stopped on {name} after step {saved[ending]}; the same command goes on"
        assert stopped in messages
    assert "\ninterrupted; the same command goes on from what was saved: " in messages
    last = saved[signal.SIGTERM]
    assert 3 <= last < num_steps, "the run had ended before it was stopped"
    train_toy(toy_records, folder, num_steps)
    train_toy(toy_records, tmp_path / "straight", num_steps, config_text="A = 1\n")
    assert_same_run(folder, tmp_path / "straight", num_steps)
