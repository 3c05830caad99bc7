"""`baseline sasrec`, `sasrec_softmax`, `bert4rec`: rows, losses, runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.baselines.bert4rec import Bert4Rec, Cloze
from instructrec_jax.baselines.item_sequences import ItemSequences
from instructrec_jax.baselines.item_transformer import ItemTransformer, TransformerSizes
from instructrec_jax.baselines.sasrec import BinaryLoss, SasRec, SasRecModel, SoftmaxLoss
from instructrec_jax.cli import main
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.baseline import trained
from instructrec_jax.stages.baseline.scores import BaselineSettings
from instructrec_jax.stages.report import report
from instructrec_jax.training import optimizers
from instructrec_jax.training.loop import Periods
from instructrec_jax.training.metrics_log import read_metrics

SIZES = TransformerSizes(emb_dim=16, num_heads=2, mlp_dim=16, num_layers=1, dropout_rate=0.1)
SYSTEMS = {
    "sasrec": (SasRec(sizes=SIZES), BinaryLoss()),
    "sasrec_softmax": (SasRec(sizes=SIZES), SoftmaxLoss()),
    "bert4rec": (Bert4Rec(sizes=SIZES), Cloze()),
}


def body(num_items=9, length=5):
    return ItemTransformer(SIZES, jax.random.key(0), num_items=num_items, length=length)


def test_rows_hold_the_last_items_and_never_a_held_out_one(toy_prepared):
    data = read_prepared(toy_prepared)
    rows = ItemSequences(data, training_length=4, scored_length=6)
    batch = rows.training_batch(np.arange(rows.num_rows))["tokens"]
    known = [h.item_ids for h in data.histories if len(h.item_ids) >= 4]
    for row, items in zip(batch, known, strict=True):
        expected = [item + 1 for item in items[:-2]][-4:]
        assert row.tolist() == [0] * (4 - len(expected)) + expected


def test_scored_rows_end_before_the_target(toy_prepared):
    data = read_prepared(toy_prepared)
    rows = ItemSequences(data, training_length=4, scored_length=3)
    examples = data.evaluation(LEAVE_ONE_OUT, TEST)
    ids = np.array([example.candidate_ids for example in examples], np.int32)
    batch = rows.scoring_batch(examples, ids)
    for row, history in zip(batch["tokens"], data.histories, strict=True):
        assert row.tolist() == [item + 1 for item in history.item_ids[-4:-1]]
    assert np.array_equal(batch["candidate_tokens"], ids + 1)
    with pytest.raises(UserError, match="product search lacks"):
        rows.scoring_batch(data.evaluation("product_search", TEST)[:1], ids[:1])


def test_padding_and_later_items_change_nothing_that_was_read():
    tokens = jnp.array([[0, 0, 3, 4, 5], [0, 0, 3, 4, 8]])
    hidden = np.asarray(body()(tokens, is_causal=True))
    assert hidden[0, 2:4] == pytest.approx(hidden[1, 2:4], abs=1e-6)
    assert not np.allclose(hidden[0, 4], hidden[1, 4])
    both = body()(tokens, is_causal=False)
    assert not np.allclose(both[0, 2], both[1, 2])


def test_only_items_have_logits_and_their_softmax_sums_to_one():
    logits = body().logits(jax.random.normal(jax.random.key(1), (2, 3, 16)))
    probability = np.asarray(jax.nn.softmax(logits, axis=-1))
    assert probability[..., 1:10].sum(axis=-1) == pytest.approx(np.ones((2, 3)))
    assert not probability[..., [0, *range(10, probability.shape[-1])]].any()


def test_the_binary_loss_counts_no_negative_that_the_row_holds():
    model = SasRecModel(body(num_items=3, length=3))
    batch = {"tokens": jnp.array([[0, 1, 2, 3]])}  # every negative is the row's own
    loss, metrics = BinaryLoss()(model, batch, jax.random.key(0))
    hidden = model.body(batch["tokens"][:, :-1], is_causal=True, dropout_key=None)
    assert metrics["above_negative"] == 0.0
    assert float(loss) == pytest.approx(float(jnp.log(2.0)), abs=0.1), "near its start"
    assert hidden.shape == (1, 3, 16)


def test_masks_fall_on_items_alone_and_the_last_one_is_among_them():
    tokens = jnp.tile(jnp.array([[0, 0, 0, 1, 2, 3, 4, 5]]), (64, 1))
    places, is_masked = Cloze(mask_share=0.4, last_share=0.5).masked_places(
        tokens, jax.random.key(0)
    )
    assert places.shape == (64, 4)  # of eight places, 0.4
    number = np.asarray(is_masked.sum(axis=1))
    assert set(number.tolist()) == {1, 2}  # the last one alone, or 0.4 of five items
    masked = [set(np.asarray(p)[m].tolist()) for p, m in zip(places, is_masked, strict=True)]
    assert all(own <= {3, 4, 5, 6, 7} for own in masked)
    assert all(own == {7} for own, n in zip(masked, number, strict=True) if n == 1)
    assert set().union(*masked) == {3, 4, 5, 6, 7}


def test_batches_depend_on_the_step_alone_and_show_each_row_once_an_epoch(toy_prepared):
    rows = SYSTEMS["sasrec"][0].open(read_prepared(toy_prepared))

    class Numbers:
        num_rows = 10

        def training_batch(self, numbers):
            return {"rows": numbers}

    found = trained.batches(Numbers(), 4, seed=0, step=0)
    shown = np.concatenate([next(found)["rows"] for _ in range(5)])
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10].tolist() != shown[10:].tolist()
    later = trained.batches(rows, 4, seed=0, step=7)
    first = trained.batches(rows, 4, seed=0, step=0)
    for _ in range(7):
        next(first)
    assert np.array_equal(next(first)["tokens"], next(later)["tokens"])


def run(prepared, folder, name="sasrec_softmax", *, steps=8, patience=9, evaluate=4, **changes):
    system, objective = SYSTEMS[name]
    rate = optimizers.constant(learning_rate=1e-2)
    learning = trained.Learning(
        name=name,
        system=system,
        objective=objective,
        optimizer=optimizers.adamw(learning_rate=rate),
        batch_size=16,
        patience=patience,
        **changes,
    )
    trained.train_and_score(
        learning=learning,
        asked=BaselineSettings(prepared_dir=str(prepared), output_dir=str(folder)),
        periods=Periods(train_steps=steps, log=4, evaluate=evaluate, checkpoint=4),
    )


def measured(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [(line["step"], line[trained.HEADLINE]) for line in lines if trained.HEADLINE in line]


@pytest.fixture(scope="module")
def whole(toy_prepared, tmp_path_factory):
    """Returns the folder of a run of eight steps on copies, made once for each system."""
    made = {}

    def trained_once(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / name
            run(toy_prepared, made[name], name)
        return made[name]

    return trained_once


@pytest.mark.parametrize("name", [*SYSTEMS])
def test_each_is_trained_scores_both_splits_and_stands_in_a_report(
    toy_prepared, whole, tmp_path, name
):
    assert [step for step, _ in measured(whole(name))] == [4, 8]
    scores = read_scores(whole(name) / "test")
    assert scores.metadata["system"] == name and "candidates" in scores.metadata
    assert np.isfinite(np.concatenate(scores.log_likelihood)).all()
    found = report(
        dataset="toy",
        prepared_dir=toy_prepared,
        scores={name: [whole(name)]},
        output_dir=tmp_path / "report",
    )
    assert name in found["scenarios"]["sequential"]["test"]


def test_a_stopped_run_goes_on_to_the_same_scores(toy_prepared, whole, tmp_path, monkeypatch):
    batches = trained.batches

    def killed(*args, **settings):
        for number, batch in enumerate(batches(*args, **settings)):
            if number == 6:
                raise RuntimeError("killed")
            yield batch

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(trained, "batches", killed)
        run(toy_prepared, tmp_path / "parts")
    run(toy_prepared, tmp_path / "parts")
    straight = whole("sasrec_softmax")
    assert measured(straight) == measured(tmp_path / "parts")
    for split in ("validation", "test"):
        one, other = (read_scores(folder / split) for folder in (straight, tmp_path / "parts"))
        assert np.array_equal(one.log_likelihood, other.log_likelihood)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_sharded_run_learns_what_one_on_copies_learns(toy_prepared, whole, tmp_path, name):
    run(toy_prepared, tmp_path / "split", name, mesh=MeshSettings(fsdp=2, tensor=2))
    folders = (whole(name), tmp_path / "split")
    one, other = (read_metrics(folder / "metrics.jsonl") for folder in folders)
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    scores = [read_scores(folder / "test").log_likelihood for folder in folders]
    assert np.concatenate(scores[0]) == pytest.approx(np.concatenate(scores[1]), abs=1e-3)


def test_training_ends_where_it_no_longer_improves(toy_prepared, tmp_path, monkeypatch):
    values = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    real = ranking.evaluate
    monkeypatch.setattr(ranking, "evaluate", lambda ranks: {**real(ranks), "ndcg@5": next(values)})
    run(toy_prepared, tmp_path / "a", steps=40, patience=2)
    assert [step for step, _ in measured(tmp_path / "a")] == [4, 8, 12, 16]
    assert [path.name for path in (tmp_path / "a" / "best").iterdir()] == ["8"]
    assert read_scores(tmp_path / "a" / "test").metadata["checkpoint_step"] == 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "test").iterdir()}
    run(toy_prepared, tmp_path / "a", steps=60, patience=2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "test").iterdir()}


def test_the_verb_takes_its_gin_file_and_changes_of_it(toy_prepared, tmp_path):
    words = ["baseline", "sasrec", f"--prepared_dir={toy_prepared}"]
    tiny = ["--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=8", "--gin.EVAL_PERIOD=2"]
    sizes = ["emb_dim=8", "mlp_dim=8", "num_layers=1"]
    tiny += [f"--gin.item_transformer.TransformerSizes.{size}" for size in sizes]
    folder = tmp_path / "sasrec"
    assert main.main([*words, f"--output_dir={folder}", *tiny]) == 0
    assert "emb_dim = 8" in (folder / "config.gin").read_text()
    assert len(read_scores(folder / "validation").example_id) == 60
    other = [*words, f"--output_dir={folder}", *tiny, "--gin.BATCH_SIZE=16"]
    assert main.main(other) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "BATCH_SIZE is 12"),
        ({"patience": 0}, "patience"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(toy_prepared, tmp_path, changes, message):
    settings = {"batch_size": 16, "patience": 1, **changes}
    system, objective = SYSTEMS["sasrec"]
    rate = optimizers.constant(learning_rate=1e-2)
    with pytest.raises(UserError, match=message):
        trained.train_and_score(
            learning=trained.Learning(
                name="sasrec",
                system=system,
                objective=objective,
                optimizer=optimizers.adamw(learning_rate=rate),
                **settings,
            ),
            asked=BaselineSettings(
                prepared_dir=str(toy_prepared), output_dir=str(tmp_path / "new")
            ),
            periods=Periods(train_steps=2),
        )
    assert not (tmp_path / "new").exists()


def test_heads_divide_the_width():
    with pytest.raises(UserError, match="divisor of emb_dim"):
        dataclasses.replace(SIZES, num_heads=3)
