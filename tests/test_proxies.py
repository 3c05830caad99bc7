"""What is measured of a teacher's texts without people."""

import math

import numpy as np
from pytest import approx

from instructrec_jax.metrics.bm25 import BM25
from instructrec_jax.records import Item
from instructrec_jax.teacher.audit import Example
from instructrec_jax.teacher.proxies import proxies, share_above_others
from instructrec_jax.teacher.texts import INTENTIONS

ITEMS = [
    Item(item_id=n, raw_id=str(n), title=title, category=category)
    for n, (title, category) in enumerate(
        [("Brass Lamp", "Light"), ("Copper Kettle", "Kitchen"), ("Brass Whistle", "Music")]
    )
]


def example(text, made_from, target_id):
    return Example(
        number="n",
        kind=INTENTIONS,
        made_from=made_from,
        text=text,
        target=ITEMS[target_id].title,
        target_id=target_id,
    )


def test_proxies_of_invented_texts():
    found = proxies(
        [
            example("I want a brass lamp", "a brass lamp for Ada", 0),
            example("I want a brass lamp", "bright", 1),
        ],
        ITEMS,
    )
    assert found["shares_words_with_source"] == 0.5 == found["duplicates"]
    assert found["shares_words_with_target"] == 0.5 == found["with_another_target"]
    assert (found["distinct_bigrams"], found["mean_words"]) == (0.5, 5.0)
    assert found["target_above_others"] == 0.5  # above both, and below both


def test_bm25_weighs_rare_words_and_short_documents_more():
    documents = [["brass", "lamp"], ["copper", "kettle"], ["brass", "kettle", "music", "old"], []]
    assert share_above_others([["brass", "lamp"]], [0], documents) == 1.0
    assert share_above_others([["brass"]], [2], documents) == approx(2 / 3)  # the longer of two
    assert share_above_others([["copper", "brass"]], [0], documents) == approx(2 / 3)  # rarer first
    assert share_above_others([["nothing"], []], [3, 1], documents) == 0.5  # all are equal


def test_bm25_is_as_by_hand():
    documents = [["brass", "lamp", "brass"], ["kettle"]]
    weights = BM25(documents).weights.toarray()
    rarity, damping = math.log1p(1.5 / 1.5), 1.5 * (0.25 + 0.75 * 3 / 2)
    assert weights[0] == approx([rarity * 2 / (2 + damping), rarity / (1 + damping), 0.0])
    assert weights[1] == approx([0.0, 0.0, rarity / (1 + 1.5 * (0.25 + 0.75 / 2))])


def test_bm25_scores_candidates_as_it_scores_all_documents():
    documents = [["brass", "lamp"], ["copper", "kettle"], ["brass", "kettle"], []]
    queries, candidates = [["brass", "brass", "tin"], ["kettle"]], np.array([[2, 0], [3, 1]])
    index = BM25(documents)
    found = index.candidate_scores(queries, candidates)
    for query, row, own in zip(queries, candidates, found, strict=True):
        assert own == approx(index.scores(query)[row])
    assert index.scores(["brass", "brass"]) == approx(2 * index.scores(["brass"]))


def test_texts_that_speak_of_their_target_are_above_texts_that_do_not():
    near = [example(f"I want {item.title} and light", "x", item.item_id) for item in ITEMS]
    far = [example("I want what others have", "x", item.item_id) for item in ITEMS]
    assert proxies(near, ITEMS)["target_above_others"] == 1.0
    assert proxies(far, ITEMS)["target_above_others"] == 0.5
