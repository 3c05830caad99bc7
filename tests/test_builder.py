"""Instruction records: which positions, what each may say, and nothing of the target before it."""

from instructrec_jax.instructions import builder
from instructrec_jax.records import CandidateList, History, Item

ITEMS = [
    Item(item_id=n, raw_id=f"r{n}", title=f"T{n}", category="" if n == 3 else f"C{n}")
    for n in range(8)
]
SPLITS = ("train", "test", "train", "", "validation", "train", "train", "train")
CATALOGUE = builder.Catalogue(items=ITEMS, search_splits=SPLITS)
HISTORIES = [
    History(user_id="a", item_ids=(0, 1, 2, 3, 4)),
    History(user_id="b", item_ids=(5, 4, 3, 2, 1, 0)),
]


def draw(example_id: str, target: int, user: int) -> tuple[int, ...]:
    return (7, target)


def test_training_targets_lie_between_the_first_item_and_the_last_two():
    positions = builder.training_positions(HISTORIES, max_positions=None, seed=0)
    assert sorted(map(tuple, positions.tolist())) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]


def test_the_most_recent_targets_are_kept_when_their_number_is_limited():
    positions = builder.training_positions(HISTORIES, max_positions=1, seed=0)
    assert sorted(map(tuple, positions.tolist())) == [(0, 2), (1, 3)]


def test_the_order_is_random_and_depends_on_the_seed_alone():
    histories = [History(user_id=str(n), item_ids=(0, 1, 2, 3, 4)) for n in range(50)]
    first, again, other = (
        builder.training_positions(histories, max_positions=None, seed=seed).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first != sorted(first)


def test_a_training_record_shows_only_what_came_before():
    (record,) = builder.leave_one_out_training(CATALOGUE, HISTORIES, [(1, 3)], draw=draw)
    assert record.example_id == "b:3"
    assert record.history == ("T5", "T4", "T3")
    assert (record.target_id, record.target) == (2, "T2")
    assert record.candidates == ("T7", "T2")
    assert record.specific_intention == "C2"


def test_pairs_held_out_for_product_search_are_never_trained_on():
    pairs = [(0, 1), (1, 1), (0, 2)]  # targets 1 (test), 4 (validation), 2 (train)
    records = builder.leave_one_out_training(CATALOGUE, HISTORIES, pairs, draw=draw)
    assert [record.specific_intention for record in records] == ["", "", "C2"]
    searched = builder.product_search_training(CATALOGUE, draw=draw, seed=0)
    assert {record.target_id for record in searched} == {0, 2, 5, 6, 7}


def test_evaluation_takes_the_frozen_candidates_and_their_order():
    rows = [
        CandidateList(
            example_id="b:5", protocol="leave_one_out", split="test", user_id="b", position=5,
            target_id=0, candidate_ids=(6, 0, 7),
        ),
        CandidateList(
            example_id="item:1", protocol="product_search", split="test", user_id="",
            position=-1, target_id=1, candidate_ids=(1, 2),
        ),
    ]  # fmt: skip
    user, item = builder.evaluation_records(CATALOGUE, HISTORIES, rows)
    assert user.history == ("T5", "T4", "T3", "T2", "T1")
    assert user.candidates == ("T6", "T0", "T7")
    assert item.history == ()
    assert item.specific_intention == "C1"
