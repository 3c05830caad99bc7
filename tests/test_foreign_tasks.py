"""SeqIO tasks from elsewhere: they join a mixture by name, or are refused by name."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import loader, registry, vocabulary
from instructrec_jax.pipeline.registry import pair_features, register_mixture

LENGTHS = {"inputs": 400, "targets": 48}


def add_greeting(output_features):
    """Registers a task from elsewhere."""
    seqio.TaskRegistry.add(
        "greeting",
        seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(
                {"inputs": "Say hello.", "targets": "hello"}
            ),
            splits=["train"],
            num_input_examples={"train": 1},
        ),
        output_features=output_features,
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    )


def features_of(vocabulary_):
    return {name: seqio.Feature(vocabulary_) for name in ("inputs", "targets")}


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_seqio_tasks_of_an_equal_vocabulary_join_a_mixture_by_name(toy, is_ours, is_first):
    theirs = seqio.SentencePieceVocabulary(
        str(toy / "toy" / "vocabulary" / "sentencepiece.model"), extra_ids=0
    )
    add_greeting(pair_features() if is_ours else features_of(theirs))
    members = [("greeting", 1.0), ("toy.A1", 1.0)]
    register_mixture("toy.with_greeting", members if is_first else members[::-1])
    lengths = {"inputs": 400, "targets": 40}
    stream = loader.training_batches(
        "toy.with_greeting", feature_lengths=lengths, batch_size=32, seed=0, pack=False
    )
    words = vocabulary.CorpusVocabulary()
    answers = [words.decode(row.tolist()) for row in next(stream)["decoder_target_tokens"]]
    assert 6 < answers.count("hello") < 26


@pytest.mark.parametrize("kind", ["bytes", "other extra ids", "no such file"])
def test_a_task_of_another_vocabulary_is_refused_by_name(toy, kind):
    path = str(toy / "toy" / "vocabulary" / "sentencepiece.model")
    theirs = {
        "bytes": seqio.ByteVocabulary,
        "other extra ids": lambda: seqio.SentencePieceVocabulary(path, extra_ids=100),
        "no such file": lambda: seqio.SentencePieceVocabulary(path + ".none", extra_ids=0),
    }[kind]()
    add_greeting(features_of(theirs))
    register_mixture("toy.with_greeting", ["greeting", "toy.A1"])
    message = r"task 'greeting' has the vocabulary .*output_features=pair_features\(\)"
    for read in (loader.examples, loader.training_batches):
        with pytest.raises(UserError, match=message):
            options = {"split": "train"} if read is loader.examples else TRAINING
            next(read("toy.with_greeting", **options))


TRAINING = {"feature_lengths": LENGTHS, "batch_size": 2, "seed": 0, "pack": False}


def test_a_task_of_other_features_or_none_at_all_is_refused_by_name(toy):
    add_greeting({"targets": seqio.Feature(vocabulary.CorpusVocabulary())})
    message = r"task 'greeting' has the output features targets; .*output_features=pair_features"
    with pytest.raises(UserError, match=message):
        register_mixture("toy.with_greeting", ["toy.A1", "greeting"])
    with pytest.raises(UserError, match=message):
        registry.get("greeting")
    with pytest.raises(UserError, match=r"unknown task of mixture 'toy\.mine' 'toy\.A77'.*toy\.A7"):
        register_mixture("toy.mine", ["toy.A77"])


def test_a_cache_that_is_asked_for_and_missing_names_the_macro(toy):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"inputs": "a"}),
        splits=["train"],
    )
    seqio.TaskRegistry.add(
        "cacheable",
        source,
        output_features=pair_features(),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
    )
    options = {"feature_lengths": LENGTHS, "batch_size": 2, "seed": 0, "pack": False}
    with pytest.raises(UserError, match="USE_CACHED_TASKS is True, but 'cacheable' does not exist"):
        loader.training_batches("cacheable", use_cached=True, **options)
    # Ours render while they are read: no cache is looked for.
    batches = [next(loader.training_batches("toy.A1", use_cached=c, **options)) for c in (0, 1)]
    for name, array in batches[0].items():
        np.testing.assert_array_equal(array, batches[1][name])
