"""The token budget: in Python and in TensorFlow alike, against a brute-force search, and refusals.

What scores, generates and inspects is the one in Python, what trains the one in TensorFlow.
"""

import dataclasses

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from seqio_groups import seqio_groups
from test_language import RECORD, TITLES
from test_rendering import as_tensors

from instructrec_jax import tokenizer
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Slot, plain_title, variants
from instructrec_jax.instructions.render import render, render_record, slot_values
from instructrec_jax.instructions.token_budget import MisfitError, TokenRenderer, arrange
from instructrec_jax.pipeline import preprocessors, training_examples, vocabulary
from instructrec_jax.pipeline.rendering import BudgetedRenderer, Fitted
from instructrec_jax.records import InstructionRecord
from instructrec_jax.tasks import mixtures

VARIANTS = {variant.name: variant for variant in variants(mixtures.TEMPLATES)}
HISTORIES = st.lists(st.one_of(TITLES, st.sampled_from(["Lamp one", "Kite " * 9])), max_size=6)

PLAIN_TEXTS = st.text(alphabet="abk{}[];, ", min_size=1, max_size=12).filter(plain_title)


@pytest.fixture(scope="module", autouse=True)
def small_vocabulary(toy_records):
    vocabulary.use_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")
    yield
    vocabulary.use_vocabulary(None)


def tokens_of(variant, record: InstructionRecord, history: list[str]) -> list[int]:
    values = {**slot_values(variant, record), Slot.HISTORY: "; ".join(history)}
    text = render(variant.template.input_segments, values)
    return [*vocabulary.CorpusVocabulary().encode(text), 1]


def longest_that_fits(variant, record: InstructionRecord, budget: int):
    """Tries every rendering that is allowed, the longest first."""
    titles = [plain_title(title) for title in record.history]
    for dropped in range(max(len(titles), 1)):
        tokens = tokens_of(variant, record, titles[dropped:])
        if len(tokens) <= budget:
            return tokens, dropped
    words = titles[-1].split(" ") if titles else []
    for number in range(len(words) - 1, 0, -1):
        tokens = tokens_of(variant, record, [" ".join(words[:number])])
        if len(tokens) <= budget:
            return tokens, len(titles) - 1
    return None


def fitted(variant, record: InstructionRecord, budget: int):
    found = fit_side("inputs", variant, record, budget)
    return found.tokens.numpy().tolist(), int(found.num_history_dropped)


def fit_side(feature: str, variant, record: InstructionRecord, budget: int) -> Fitted:
    """Fits the instruction or the answer of a record."""
    lengths, seed = {feature: budget}, tf.constant([1, 2], tf.int64)
    words = vocabulary.CorpusVocabulary()
    tensors = preprocessors.arrange(as_tensors(record), {}, seed, words)
    return preprocessors.fit(
        feature,
        variant,
        "toy.task",
        tensors,
        values=preprocessors.slot_values(variant, tensors, lengths, seed),
        vocabulary=words,
        lengths=lengths,
    )


@settings(max_examples=150)
@given(HISTORIES, st.integers(20, 130), st.sampled_from(["A1", "A7", "A9", "C12.specific"]))
def test_it_finds_the_longest_rendering_that_fits(history, budget, name):
    record = dataclasses.replace(RECORD, history=tuple(history))
    expected = longest_that_fits(VARIANTS[name], record, budget)
    if expected is None:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"example u1:2.*raise it"):
            fitted(VARIANTS[name], record, budget)
    else:
        assert fitted(VARIANTS[name], record, budget) == expected


@settings(max_examples=150)
@given(
    HISTORIES,
    st.lists(PLAIN_TEXTS, min_size=2, max_size=4, unique_by=plain_title),
    PLAIN_TEXTS,
    st.integers(20, 160),
    st.sampled_from(sorted(VARIANTS)),
)
def test_whatever_is_asked_the_budget_is_kept_and_only_history_goes(
    history, candidates, query, budget, name
):
    """What stands around the history, candidates and query included, is there to the letter."""
    variant = VARIANTS[name]
    texts = (query,)
    record = dataclasses.replace(
        RECORD,
        history=tuple(history),
        candidates=tuple(candidates),
        candidate_ids=tuple(range(len(candidates))),
        target=candidates[0],
        target_id=0,
        preference=texts,
        vague_intention=texts,
        second_vague_intention=texts,
        specific_intention=query,
    )
    try:
        tokens, dropped = fitted(variant, record, budget)
    except tf.errors.InvalidArgumentError:
        least = tokens_of(variant, record, [plain_title(t).split(" ")[0] for t in history[-1:]])
        assert len(least) > budget or Slot.CANDIDATE in variant.template.required_slots
        return
    assert len(tokens) <= budget
    assert dropped <= max(len(history) - 1, 0)
    if Slot.CANDIDATE in variant.template.required_slots:
        return  # which candidate is asked about is a draw
    words = vocabulary.CorpusVocabulary()
    values = {**slot_values(variant, record), Slot.HISTORY: "HISTORY"}
    around = render(variant.template.input_segments, values).split("HISTORY")
    text = words.decode(tokens)
    before, after = (words.decode(words.encode(part)).strip() for part in (around[0], around[-1]))
    assert text.startswith(before)
    assert text.endswith(after)


def test_the_oldest_items_go_first_and_the_candidates_stay():
    history = tuple(f"Lamp number {number}" for number in range(12))
    record = dataclasses.replace(RECORD, history=history)
    whole = len(tokens_of(VARIANTS["A7"], record, list(history)))
    tokens, dropped = fitted(VARIANTS["A7"], record, whole - 1)
    text = vocabulary.CorpusVocabulary().decode(tokens)
    assert dropped == 1
    assert "number 0;" not in text
    assert "number 1; " in text
    assert "Pong, Deluxe; Tetris" in text
    assert text.endswith("name the best.")


def test_a_long_title_is_cut_by_whole_words_from_its_end():
    title = " ".join(f"word{number}" for number in range(40))
    record = dataclasses.replace(RECORD, history=("Old one", title))
    tokens, dropped = fitted(VARIANTS["A7"], record, 110)
    text = vocabulary.CorpusVocabulary().decode(tokens)
    shown = text.removeprefix("Past choices in order: ").split(". Options")[0]
    assert dropped == 1
    assert title.startswith(shown + " ")
    assert len(tokens) <= 110


def test_without_lengths_nothing_is_dropped():
    record = dataclasses.replace(RECORD, history=("Lamp",) * 300)
    renderer = BudgetedRenderer(
        variant=VARIANTS["A1"],
        vocabulary=vocabulary.CorpusVocabulary(),
        max_tokens=None,
        task="t",
    )
    history = tf.constant(record.history)
    found = renderer.fit({}, history, tf.constant("id"))
    assert int(found.num_history_dropped) == int(found.num_words_cut) == 0
    assert len(found.tokens) > 600


def test_a_prompt_without_history_that_is_too_long_names_example_and_tokens():
    needed = len(tokens_of(VARIANTS["B7.specific"], RECORD, []))
    assert fitted(VARIANTS["B7.specific"], RECORD, needed)[1] == 0
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        fitted(VARIANTS["B7.specific"], RECORD, needed - 1)
    for part in ("toy.task", "u1:2", f"needs {needed} tokens", f"inputs is {needed - 1};"):
        assert part in str(caught.value)


@settings(max_examples=60)
@given(
    st.lists(TITLES, min_size=1, max_size=7),
    st.text(alphabet="ab ", min_size=1, max_size=60),
    st.sampled_from(["A3", "A14", "C5.vague", "C7.vague", "C8.vague", "C9.vague"]),
    st.integers(30, 80),
)
def test_an_answer_keeps_its_budget_and_its_item(history, text, name, budget):
    """Its history loses the oldest titles, then the teacher's text its last words."""
    taught = "x" + text
    record = dataclasses.replace(
        RECORD, history=tuple(history), preference=(taught,), vague_intention=(taught,)
    )
    variant = VARIANTS[name]
    whole = [*vocabulary.CorpusVocabulary().encode(render_record(variant, record)[1]), 1]
    try:
        found = fit_side("targets", variant, record, budget)
    except tf.errors.InvalidArgumentError as error:
        assert "the answer needs" in str(error)
        assert len(whole) > budget
        return
    tokens = found.tokens.numpy().tolist()
    assert len(tokens) <= budget
    if len(whole) <= budget:
        assert tokens == whole
        assert int(found.num_words_cut) == int(found.num_history_dropped) == 0
    if Slot.TARGET in variant.template.required_slots and name in ("A3", "C8.vague", "C9.vague"):
        assert vocabulary.CorpusVocabulary().decode(tokens).endswith("Tetris")


def test_a_long_text_in_an_answer_loses_its_last_words():
    taste = " ".join(f"word{number}" for number in range(40))
    record = dataclasses.replace(RECORD, preference=(taste,))
    found = fit_side("targets", VARIANTS["A3"], record, 60)
    text = vocabulary.CorpusVocabulary().decode(found.tokens.numpy().tolist())
    assert text.startswith("The preference: word0 word1 ")
    assert text.endswith(". So the recommendation: Tetris")
    assert 0 < int(found.num_words_cut) < 40


ODD_TITLES = st.one_of(
    TITLES,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    st.text(alphabet="aé \u0308\u0301\u200b\u200e\u3164½…ﬁ漢", min_size=1, max_size=9),
    st.integers(1, 40).map(lambda n: " ".join(f"w{i}" for i in range(n))),
)
TEXTS = st.lists(ODD_TITLES, max_size=2)
ODD_RECORDS = st.builds(
    lambda history, candidates, target, preference, texts, specific, context: dataclasses.replace(
        RECORD,
        example_id="u:1",
        history=tuple(history),
        candidates=tuple(candidates),
        candidate_ids=tuple(range(5, 5 + len(candidates))),
        target=candidates[target % len(candidates)],
        target_id=5 + target % len(candidates),
        preference=tuple(preference),
        vague_intention=tuple(texts),
        second_vague_intention=tuple(texts[:1]),
        specific_intention=specific,
        context=context,
    ),
    st.lists(ODD_TITLES, max_size=6),
    st.lists(ODD_TITLES, min_size=1, max_size=5),
    st.integers(0, 5),
    *(TEXTS, TEXTS, ODD_TITLES, ODD_TITLES),
)
SEED = tf.constant([1, 2], tf.int64)
LENGTHS = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.integers(8, 160),
        "targets": st.integers(4, 60),
        "history": st.integers(1, 4),
        "candidates": st.integers(1, 4),
        "preference": st.integers(0, 1),
        "title": st.integers(1, 9),
    },
)


def by_seqio(form, name: str, record: InstructionRecord, lengths):
    """What the preprocessor of a task makes of a record, or the message that refuses it."""
    how = {"vocabulary": vocabulary.CorpusVocabulary(), "lengths": lengths, "seed": SEED}
    try:
        return form(as_tensors(record), VARIANTS[name], "toy.task", **how)
    except tf.errors.InvalidArgumentError as error:
        return str(training_examples.user_error(error))


@pytest.fixture(scope="module")
def words(toy_records):
    return tokenizer.load_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")


def renderer(name: str, lengths, words) -> TokenRenderer:
    return TokenRenderer(
        variant=VARIANTS[name], vocabulary=words, feature_lengths=lengths, task="toy.task"
    )


@settings(max_examples=60)
@given(ODD_RECORDS, LENGTHS, st.sampled_from(["A7", "B7.specific", "C10.vague", "A1", "A16"]))
def test_a_ranking_request_has_the_tokens_and_errors_that_seqio_gives_it(
    words, record, lengths, name
):
    expected = by_seqio(preprocessors.group, name, record, lengths)
    mine = renderer(name, lengths, words)
    try:
        arranged, num_titles_cut = arrange(record, lengths, words)
        candidates = mine.candidates(arranged)
        found = mine.instruction(arranged)
    except MisfitError as error:
        is_empty = error.reason == "no_tokens" and "has no tokens" in str(error)
        both_misfit = isinstance(expected, str) and "a candidate needs" in expected + str(error)
        assert str(error) == expected or is_empty or both_misfit
        return
    assert found.tokens.tolist() == expected["inputs"].numpy().tolist()
    assert found.num_history_dropped == expected["num_history_dropped"]
    assert found.num_words_cut == expected["num_words_cut"]
    assert num_titles_cut == expected["num_titles_cut"]
    assert list(arranged.candidate_ids) == expected["candidate_ids"].numpy().tolist()
    rows = [row[row > 0].tolist() for row in expected["candidates"].numpy()]
    assert [tokens.tolist() for tokens in candidates] == rows


@settings(max_examples=120)
@given(
    ODD_RECORDS, LENGTHS, st.sampled_from(["A3", "A14", "C5.vague", "C9.vague", "A2", "C10.vague"])
)
def test_an_instruction_and_its_answer_have_the_tokens_and_errors_that_seqio_gives_them(
    words, record, lengths, name
):
    expected = by_seqio(preprocessors.pair, name, record, lengths)
    mine = renderer(name, lengths, words)
    try:
        arranged, num_titles_cut = arrange(record, lengths, words)
        inputs, targets = mine.instruction(arranged), mine.answer(arranged)
    except MisfitError as error:
        assert str(error) == expected or "the answer needs" in str(expected)
        return
    assert inputs.tokens.tolist() == expected["inputs"].numpy().tolist()
    assert targets.tokens.tolist() == expected["targets"].numpy().tolist()
    assert inputs.num_history_dropped == expected["num_history_dropped"]
    assert inputs.num_words_cut + targets.num_words_cut == expected["num_words_cut"]
    assert num_titles_cut == expected["num_titles_cut"]


def test_a_run_that_shows_fewer_candidates_keeps_the_first_and_the_target(words):
    ids, titles = (4, 5, 6, 7), ("a", "b", "c", "d")
    record = dataclasses.replace(RECORD, candidate_ids=ids, candidates=titles, target_id=7)
    assert arrange(record, {"candidates": 2}, words).record.candidates == ("a", "d")
    assert arrange(record, {"candidates": 9}, words).record == record
    unknown = dataclasses.replace(record, target_id=-1)
    assert arrange(unknown, {"candidates": 2}, words).record.candidate_ids == (4, 5)


LONG = "Atlas of the northern coast in forty folded sheets with a table of tides"


def test_a_title_is_cut_alike_in_history_candidates_and_answer(words):
    record = dataclasses.replace(
        RECORD, history=(LONG,), candidates=("Pong", LONG), candidate_ids=(1, 2), target=LONG
    )
    arranged, num_titles_cut = arrange(record, {"title": 12}, words)
    (short,) = arranged.history
    assert arranged.candidates == ("Pong", short)
    assert arranged.target == short
    assert num_titles_cut == 2
    assert LONG.startswith(short + " ")
    assert len(words.encode(short)) <= 12 < len(words.encode(LONG[: len(short) + 8]))


def test_one_long_word_loses_its_last_characters(words):
    word = "Zq" * 40
    record = dataclasses.replace(RECORD, history=(word,))
    (short,) = arrange(record, {"title": 6}, words).record.history
    assert word.startswith(short)
    assert 0 < len(words.encode(short)) <= 6


def test_without_a_length_of_its_own_a_title_may_be_as_long_as_an_answer(words):
    record = dataclasses.replace(RECORD, candidates=("Pong", LONG), candidate_ids=(1, 2))
    arranged, _ = arrange(record, {"targets": 9}, words)
    assert max(map(len, renderer("A7", {"targets": 9}, words).candidates(arranged))) <= 9
    assert arrange(record, {}, words).record.candidates == ("Pong", LONG)


def test_candidates_that_the_cut_makes_equal_are_refused(words):
    titles, lengths = (LONG, LONG + ", second edition"), {"title": 8, "inputs": 500}
    record = dataclasses.replace(RECORD, candidates=titles, candidate_ids=(1, 2))
    with pytest.raises(MisfitError, match=r"example u1:2: two candidates read \"Atlas") as caught:
        arrange(record, lengths, words)
    assert caught.value.reason == "same_title"
    assert by_seqio(preprocessors.pair, "A7", record, lengths) == str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ("Pong", "\u200e")}, r"example u1:2: candidate '\\u200e' has no tokens"),
        ({"candidates": ("Pong", "")}, "candidate '' has no tokens"),
    ],
)
def test_a_candidate_without_tokens_is_refused(words, changes, message):
    with pytest.raises(MisfitError, match=message) as caught:
        renderer("A7", {}, words).candidates(dataclasses.replace(RECORD, **changes))
    assert caught.value.reason == "no_tokens"


def test_a_misfit_reaches_the_user_as_one_message(toy):
    with pytest.raises(UserError, match=r"^task toy\.A7, example \w+:\d+: the instruction without"):
        seqio_groups("toy.A7", split="test", lengths={"inputs": 60, "targets": 40})
