"""The registered SeqIO tasks: their shapes, that they leak nothing, and that their forms agree."""

import dataclasses

import numpy as np
import pytest
import seqio
import tensorflow as tf
from seqio_groups import seqio_groups
from test_rendering import as_tensors

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Kind, Slot, slots_of, variants
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import loader, preprocessors, record_store, registry, vocabulary
from instructrec_jax.pipeline.registry import (
    mixing_rate,
)
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.tasks import mixtures

VARIANTS = list(variants(mixtures.TEMPLATES))
FAMILIES = {template.family for template in mixtures.TEMPLATES}
LENGTHS = {"inputs": 400, "targets": 48}
CANDIDATES = tuple(f"Lamp {word}" for word in ("one", "two", "three", "four", "five"))
RECORD = InstructionRecord(
    example_id="u1:3",
    user_id="u1",
    position=3,
    history=("Kite red", "Kite blue", "Kite green"),
    preference=("likes kites",),
    vague_intention=("a present",),
    second_vague_intention=("they want a present",),
    specific_intention="Bazaar, Lamps",
    target_id=1,
    target=CANDIDATES[1],
    candidate_ids=(0, 1, 2, 3, 4),
    candidates=CANDIDATES,
)


def inputs_by_seed(variant, record, seeds, *, is_training, lengths=LENGTHS) -> list[list[int]]:
    words = vocabulary.CorpusVocabulary()
    record = as_tensors(record, is_training=is_training)

    def tokens(seed: tf.Tensor) -> tf.Tensor:
        tensors = preprocessors.arrange(record, lengths, seed, words)
        values = preprocessors.slot_values(variant, tensors, lengths, seed)
        fitted = preprocessors.fit(
            "inputs", variant, "task", tensors, values=values, vocabulary=words, lengths=lengths
        )
        return fitted.tokens

    if len(seeds) > 1:
        tokens = tf.function(tokens, autograph=False)
    return [tokens(tf.constant(seed, tf.int64)).numpy().tolist() for seed in seeds]


def inputs_of(variant, record, *, is_training, seed=(3, 4), lengths=LENGTHS) -> list[int]:
    (found,) = inputs_by_seed(variant, record, [seed], is_training=is_training, lengths=lengths)
    return found


def with_target(index: int) -> InstructionRecord:
    return dataclasses.replace(RECORD, target_id=index, target=CANDIDATES[index])


def rows(task: str, split: str, number: int, lengths=LENGTHS) -> list[dict]:
    found = seqio.get_mixture_or_task(task).get_dataset(lengths, split=split, shuffle=False)
    return list(found.take(number).as_numpy_iterator())


def test_registration_again_changes_nothing(toy):
    tasks, mixes = set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names())
    mixtures.register("toy")
    assert tasks == set(seqio.TaskRegistry.names())
    assert mixes == set(seqio.MixtureRegistry.names())
    for family in (*FAMILIES, "all", "ablation.1_implicit_preference"):
        assert {f"toy.{family}", f"toy.{family}.grouped"} <= mixes
    assert {f"toy.{kind}" for kind in mixtures.KINDS} <= mixes


def test_mixtures_hold_their_family_and_grouped_ones_what_answers_with_an_item(toy):
    found = {task.name for task in seqio.get_mixture_or_task("toy.sequential").tasks}
    assert found == {f"toy.A{n}" for n in range(1, 18)}
    grouped = {task.name for task in seqio.get_mixture_or_task("toy.all.grouped").tasks}
    naming = [variant for variant in VARIANTS if variant.template.names_an_item]
    assert grouped == {f"toy.{variant.name}.grouped" for variant in naming}
    assert {"toy.A1.grouped", "toy.A7.grouped"} < grouped
    assert len(seqio.get_mixture_or_task("toy.all").tasks) == len(VARIANTS) == 76


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_task_gives_examples_in_each_of_its_forms(toy, variant):
    name = f"toy.{variant.name}"
    (row,) = rows(name, "train", 1)
    assert row["inputs"].dtype == row["targets"].dtype == np.int32
    assert row["inputs"][-1] == row["targets"][-1] == 1
    assert 0 < len(row["inputs"]) <= LENGTHS["inputs"]
    assert 1 < len(row["targets"]) <= LENGTHS["targets"]
    names = seqio.TaskRegistry.names()
    assert (f"{name}.grouped" in names) == variant.template.names_an_item
    assert (f"{name}.rank" in names) == variant.is_evaluated
    if variant.is_evaluated:
        for group in seqio_groups(name, split="test", lengths=LENGTHS)[:128]:
            assert 0 < len(group["inputs"]) <= LENGTHS["inputs"]
            assert len(group["candidates"]) == len(group["candidate_ids"]) == 10


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "variant",
    [v for v in VARIANTS if v.template.task_form is TaskForm.RERANKING],
    ids=lambda v: v.name,
)
def test_the_prompt_does_not_depend_on_the_label(toy, variant, is_training):
    prompts = {
        tuple(inputs_of(variant, with_target(index), is_training=is_training)) for index in range(5)
    }
    assert len(prompts) == 1


def test_the_target_appears_in_a_prompt_only_as_a_candidate(toy):
    words = vocabulary.CorpusVocabulary()
    secret = dataclasses.replace(RECORD, target="Zubrek only", candidates=(
        *CANDIDATES[:1], "Zubrek only", *CANDIDATES[2:]))  # fmt: skip
    for variant in VARIANTS:
        text = words.decode(inputs_of(variant, secret, is_training=False))
        is_shown = Slot.CANDIDATES in variant.template.required_slots
        is_turned = variant.template.names_an_item is False
        if variant.template.task_form is not TaskForm.POINTWISE:
            said = Slot.TARGET in slots_of(variant.template.input_segments)
            assert not said or (is_turned and variant.template.kind is not Kind.PLAIN)
            assert text.count("Zubrek only") == int(is_shown or said), variant.name


def test_training_shuffles_candidates_by_seed_and_evaluation_keeps_their_order(toy):
    (variant,) = (v for v in VARIANTS if v.name == "A7")
    fixed = {tuple(inputs_of(variant, RECORD, is_training=False, seed=(n, 1))) for n in range(5)}
    assert len(fixed) == 1
    fresh = {tuple(inputs_of(variant, RECORD, is_training=True, seed=(n, 1))) for n in range(5)}
    assert len(fresh) > 2


def test_fewer_candidates_keep_the_target_and_draw_the_others(toy):
    seen, words = set(), vocabulary.CorpusVocabulary()
    for number in range(30):
        seed = tf.constant([number, 7], tf.int64)
        record = preprocessors.arrange(
            as_tensors(RECORD, is_training=True), {"candidates": 3}, seed, words
        )
        ids = record["candidate_ids"].numpy().tolist()
        titles = [title.decode() for title in record["candidates"].numpy()]
        assert len(ids) == 3
        assert 1 in ids
        assert titles == [CANDIDATES[i] for i in ids]
        seen.update(ids)
    assert seen == {0, 1, 2, 3, 4}
    fixed = preprocessors.arrange(as_tensors(RECORD), {"candidates": 3}, seed, words)
    assert fixed["candidate_ids"].numpy().tolist() == [0, 1, 2]


def test_the_history_cap_keeps_the_newest(toy):
    (variant,) = (v for v in VARIANTS if v.name == "A1")
    tokens = inputs_of(variant, RECORD, is_training=False, lengths={**LENGTHS, "history": 2})
    text = vocabulary.CorpusVocabulary().decode(tokens)
    assert "Kite blue; Kite green" in text
    assert "Kite red" not in text


def test_pointwise_labels_are_balanced_and_true(toy):
    words = vocabulary.CorpusVocabulary()
    (variant,) = (v for v in VARIANTS if v.name == "A12")
    record = as_tensors(RECORD, is_training=True)

    @tf.function(autograph=False)
    def drawn(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = preprocessors.slot_values(
            variant, preprocessors.arrange(record, {}, seed, words), {}, seed
        )
        return values[Slot.ANSWER], values[Slot.CANDIDATE]

    answers = []
    for number in range(200):
        answer, candidate = drawn(tf.constant([number, 11], tf.int64))
        answers.append(answer.numpy().decode())
        is_target = candidate.numpy().decode() == RECORD.target
        assert is_target == (answers[-1] == "Yes")
    assert 70 < answers.count("Yes") < 130
    first, again = (rows("toy.A12", "test", 8) for _ in range(2))
    assert [words.decode(r["inputs"].tolist()) for r in first] == [
        words.decode(r["inputs"].tolist()) for r in again
    ]


def test_rank_and_grouped_forms_hold_the_same_tokens(toy):
    groups = rows("toy.C11.specific.grouped", "test", 4)
    flat = rows("toy.C11.specific.rank", "test", 40)
    assert [tuple(row["idx"]) for row in flat] == [(n, c) for n in range(4) for c in range(10)]
    for row in flat:
        group, place = groups[row["idx"][0]], row["idx"][1]
        candidate = group["candidates"][place]
        assert row["inputs"].tolist() == group["inputs"].tolist()
        assert row["targets"].tolist() == candidate[candidate > 0].tolist()
        assert row["is_correct"] == (place == group["target_index"])
        assert row["candidate_id"] == group["candidate_ids"][place]
        assert row["candidate_num_chars"] == group["candidate_num_chars"][place]


def test_seqio_evaluates_the_rank_form_with_our_metrics(toy):
    task = seqio.get_mixture_or_task("toy.B8.specific.rank")
    rows_ = [
        row for row in task.get_dataset(LENGTHS, split="test", shuffle=False).as_numpy_iterator()
    ]
    labels = [task.postprocess_fn(None, example=row, is_target=True) for row in rows_]
    (metric,) = task.score_metric_fns
    oracle = [1.0 if is_correct else 0.0 for _, _, is_correct in labels]
    assert metric(labels, oracle)["hr@1"] == 1.0
    assert metric(labels, [0.0] * len(labels))["hr@5"] == 0.0


def test_templates_show_the_users_in_orders_of_their_own(toy):
    """With one seed for all, a batch would hold the same few users in every template."""
    orders = []
    for name in ("toy.A1", "toy.A4"):
        lengths = {"candidates": 10}
        stream = loader.training_examples(name, feature_lengths=lengths, seed=5)
        orders.append([next(stream)["example_id"] for _ in range(20)])
    assert orders[0] != orders[1]


def test_an_unknown_task_is_answered_with_the_nearest_names(toy):
    with pytest.raises(UserError, match=r"unknown task or mixture 'toy\.A77'.*toy\.A7"):
        registry.get("toy.A77")


def test_an_unknown_module_is_named():
    with pytest.raises(UserError, match=r"task module 'instructrec_jax\.tasks\.mixtuers'"):
        registry.import_task_module("instructrec_jax.tasks.mixtuers", "toy")


def test_a_module_that_misses_something_itself_says_what(tmp_path, monkeypatch):
    (tmp_path / "broken_tasks.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        registry.import_task_module("broken_tasks", "toy")


def test_a_mixture_leaves_out_what_the_records_have_no_text_for(toy_prepared, tmp_path):
    settings = BuildSettings(vocab_size=600, max_train_positions=1)
    build(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    registry.import_task_module("instructrec_jax.tasks.mixtures", "toy")
    record_store.use_data_dir(tmp_path)
    vocabulary.use_vocabulary(tmp_path / "toy" / "vocabulary" / "sentencepiece.model")
    mixture = seqio.get_mixture_or_task("toy.personalized_search")
    fillable = {task.name for task in mixture.tasks if "train" in task.splits}
    assert fillable == {
        f"toy.{name}.specific" for name in ("C4", "C5", "C8", "C10", "C11", "C12", "C13")
    }
    evaluated = registry.evaluated_tasks([mixture.name], split="validation")
    assert set(evaluated) == {
        f"toy.{name}.specific.grouped" for name in ("C10", "C11", "C12", "C13")
    }
    lengths = {"inputs": 400, "targets": 60}
    stream = loader.training_batches(
        "toy.personalized_search", feature_lengths=lengths, batch_size=4, seed=0, pack=False
    )
    assert next(stream)["encoder_input_tokens"].shape == (4, 400)
    with pytest.raises(UserError, match=r"toy\.chain_of_thought has no train examples"):
        next(
            loader.training_batches(
                "toy.chain_of_thought", feature_lengths=lengths, batch_size=4, seed=0, pack=False
            )
        )


def test_rates_are_numbers_of_examples_up_to_a_bound(toy):
    counts = read_manifest(toy / "toy").counts
    task = seqio.get_mixture_or_task("toy.A1")
    assert mixing_rate(task) == counts["leave_one_out/train"]
    assert mixing_rate(task, maximum=100) == 100
    vague = seqio.get_mixture_or_task("toy.C10.vague")
    assert 0 < mixing_rate(vague) < counts["leave_one_out/train"]
    assert seqio.get_mixture_or_task("toy.all").get_rate(vague) == mixing_rate(vague)


@pytest.mark.parametrize("dataset", ["to ys", "../records/toys", ""])
def test_a_name_that_is_none_of_a_dataset_is_refused(dataset):
    with pytest.raises(UserError, match="is no name of a dataset"):
        registry.import_task_module("instructrec_jax.tasks.mixtures", dataset)


def test_the_preference_clause_is_drawn_in_training_and_fixed_in_evaluation(toy):
    (variant,) = (v for v in VARIANTS if v.name == "A7")
    words = vocabulary.CorpusVocabulary()

    def share_stated(lengths, *, is_training):
        seeds = [(number, 1) for number in range(60)]
        found = inputs_by_seed(variant, RECORD, seeds, is_training=is_training, lengths=lengths)
        return sum("likes kites" in words.decode(tokens) for tokens in found) / len(found)

    assert 0.3 < share_stated(LENGTHS, is_training=True) < 0.7
    assert share_stated(LENGTHS, is_training=False) == 0
    for number in (0, 1):
        for is_training in (True, False):
            lengths = {**LENGTHS, "preference": number}
            assert share_stated(lengths, is_training=is_training) == number


def test_training_draws_one_of_several_texts_and_evaluation_takes_the_first(toy):
    record = dataclasses.replace(RECORD, vague_intention=("a present", "a surprise"))
    (variant,) = (v for v in VARIANTS if v.name == "C2.vague")
    words = vocabulary.CorpusVocabulary()
    for is_training, expected in ((True, {"present", "surprise"}), (False, {"present"})):
        said = set()
        for n in range(20):
            text = words.decode(inputs_of(variant, record, is_training=is_training, seed=(n, 5)))
            said |= {word for word in ("present", "surprise") if f"a {word}" in text}
        assert said == expected


def test_the_pairwise_extension_is_off_until_its_module_is_named(toy):
    assert "toy.X1" not in seqio.TaskRegistry.names()
    registry.import_task_module("instructrec_jax.tasks.pairwise", "toy")
    words = vocabulary.CorpusVocabulary()
    orders = set()
    for row in rows("toy.X1", "train", 12):
        asked = words.decode(row["inputs"].tolist()).split("Which comes next: ")[1]
        target = words.decode(row["targets"].tolist())
        first, second = asked.removesuffix("?").split(" or ")
        assert target in (first, second)
        assert first != second
        orders.add(target == first)
    assert orders == {True, False}


def test_a_template_that_contradicts_itself_is_named_with_its_file(tmp_path, monkeypatch):
    (tmp_path / "odd_tasks.py").write_text(
        "from instructrec_jax.instructions.language import Template\n"
        "from instructrec_jax.records import TaskForm\n"
        "ODD = Template(template_id='Z1', inputs='{histroy}', targets='{target}',\n"
        "               task_form=TaskForm.MATCHING)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"odd_tasks\.py line 3: template Z1: unknown slot"):
        registry.import_task_module("odd_tasks", "toy")
