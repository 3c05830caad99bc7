"""The TensorFlow renderer says the same, byte by byte, as the one in plain Python."""

import dataclasses

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_language import RECORD, TITLES

from instructrec_jax.instructions import language
from instructrec_jax.instructions.language import Slot, variants
from instructrec_jax.instructions.render import (
    NUM_ANSWER_TITLES,
    Draw,
    join_titles,
    render,
    render_record,
)
from instructrec_jax.pipeline import preprocessors, rendering, vocabulary
from instructrec_jax.records import InstructionRecord
from instructrec_jax.tasks import mixtures

VARIANTS = list(variants(mixtures.TEMPLATES))
RECORDS = st.builds(
    lambda history, candidates, target, query: dataclasses.replace(
        RECORD,
        preference=(query, "likes maps"),
        vague_intention=(query,),
        second_vague_intention=() if len(query) % 2 else (query,),
        context=query,
        history=tuple(history),
        candidates=tuple(candidates),
        candidate_ids=tuple(range(len(candidates))),
        target=candidates[target % len(candidates)],
        target_id=target % len(candidates),
        specific_intention=query,
    ),
    st.lists(TITLES, max_size=4),
    st.lists(TITLES, min_size=1, max_size=4),
    st.integers(0, 3),
    TITLES,
)


def as_tensors(record: InstructionRecord, *, is_training: bool = False) -> preprocessors.Record:
    """Returns the record as the source gives it to preprocessors."""
    tensors = {}
    for name, value in dataclasses.asdict(record).items():
        dtype = tf.int32 if name in ("position", "target_id", "candidate_ids") else tf.string
        tensors[name] = tf.constant(
            value, dtype, shape=(len(value),) if type(value) is tuple else ()
        )
    return {**tensors, "is_training": tf.constant(is_training)}


@settings(max_examples=100)
@given(st.lists(TITLES, max_size=5))
def test_titles_and_lists_are_spelt_alike(titles):
    tensor = tf.constant(titles, tf.string, shape=(len(titles),))
    plain = [title.decode() for title in rendering.plain_title(tensor).numpy()]
    assert plain == [language.plain_title(title) for title in titles]
    assert rendering.join_titles(rendering.plain_title(tensor)).numpy().decode() == join_titles(
        titles
    )


@settings(max_examples=25)
@given(RECORDS)
def test_every_template_is_rendered_alike(record):
    seed = tf.constant([1, 2], tf.int64)
    tensors = preprocessors.arrange(as_tensors(record), {}, seed, vocabulary.CorpusVocabulary())
    places = range(len(record.candidates))
    for variant in VARIANTS:
        values = preprocessors.slot_values(variant, tensors, {}, tf.constant([1, 2], tf.int64))
        template = variant.template
        shown, answered = tensors["history"], tensors["history"][-NUM_ANSWER_TITLES:]
        found = tuple(
            rendering.render(segments, {**values, Slot.HISTORY: rendering.join_titles(history)})
            .numpy()
            .decode()
            for segments, history in (
                (template.input_segments, shown),
                (template.target_segments, answered),
            )
        )
        is_pointwise = Slot.CANDIDATE in template.required_slots
        draws = [Draw(candidate=place) for place in (places if is_pointwise else [0])]
        assert found in [render_record(variant, record, draw) for draw in draws]


@pytest.mark.parametrize("preference", ["", "likes maps"])
def test_clauses_appear_alike(preference):
    (variant,) = (v for v in VARIANTS if v.name == "A9")
    values = {Slot.PREFERENCE: preference, Slot.HISTORY: "a; b", Slot.CANDIDATES: "c; d"}
    segments = variant.template.input_segments
    tensors = {slot: tf.constant(text) for slot, text in values.items()}
    found = rendering.render(segments, tensors).numpy().decode()
    assert found == render(segments, values)
    assert ("likes maps" in found) == bool(preference)
