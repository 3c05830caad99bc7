"""Instruction records: which positions, what each may say, and nothing of the target before it."""

import columns
import numpy as np
import pytest

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.instructions import builder
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.records import Annotation, CandidateList, History, Item

ITEMS = [
    Item(item_id=n, raw_id=f"r{n}", title=f"T{n}", category="" if n == 3 else f"C{n}")
    for n in range(8)
]
SPLITS = ("train", "test", "train", "", "validation", "train", "train", "train")
HISTORIES = [
    History(
        user_id="a",
        item_ids=(0, 1, 2, 3, 4),
        times=(0, 1, 2, 3, 4),
        review_rows=(0, 1, 2, 3, 4),
    ),
    History(
        user_id="b",
        item_ids=(5, 4, 3, 2, 1, 0),
        times=(10, 11, 12, 1_418_000_000, 14, 15),
        review_rows=(5, 6, 7, 8, 9, -1),
    ),
]
EVALUATION = [
    CandidateList(
        example_id="b:5", protocol="leave_one_out", split="test", user_id="b", position=5,
        target_id=0, candidate_ids=(6, 0, 7),
    ),
    CandidateList(
        example_id="item:1", protocol="product_search", split="test", user_id="",
        position=-1, target_id=1, candidate_ids=(1, 2),
    ),
]  # fmt: skip


class Recorder:
    """Texts that tell what they were written on."""

    def preference(self, user, position):
        titles = (ITEMS[item].title for item in HISTORIES[user].item_ids[:position])
        texts = (" ".join(titles), "second") if position else ()
        return Annotation(texts=texts, version="recorder-1")

    def intentions(self, user, position):
        history = HISTORIES[user]
        row = history.review_rows[position]
        if row < 0 or row == 7:
            return Annotation(version="recorder-1" if row == 7 else "")
        raw_id = ITEMS[history.item_ids[position]].raw_id
        return Annotation(
            texts=(f"review {row} {raw_id}",),
            second_texts=(f"they review {row}",),
            version="recorder-1",
        )


def make(texts=None, **settings) -> RecordBuilder:
    histories = columns.histories(HISTORIES)
    data = PreparedData(
        dataset="toy",
        items=ITEMS,
        search_splits=SPLITS,
        histories=histories,
        seen_items=columns.item_sets([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]),
        candidates=columns.candidates(EVALUATION, histories),
    )
    return RecordBuilder(data, RecordSettings(**settings), texts)


def all_records(made: RecordBuilder, config: str, split: str) -> dict:
    numbers = range(made.num_records(config, split))
    return {r.example_id: r for r in made.records(config, split, numbers)}


def positions_of(lengths, **options) -> list:
    options = {"max_positions": None, "seed": 0, **options}
    return builder.training_positions(np.array(lengths), **options).tolist()


def test_training_targets_lie_between_the_first_item_and_the_last_two():
    assert sorted(positions_of([5, 6, 3])) == [[0, 1], [0, 2], [1, 1], [1, 2], [1, 3]]
    assert sorted(positions_of([3, 2, 1])) == []


def test_the_most_recent_targets_are_kept_when_their_number_is_limited():
    assert sorted(positions_of([5, 6], max_positions=1)) == [[0, 2], [1, 3]]


def test_the_order_is_random_and_depends_on_the_seed_alone():
    first, again, other = (positions_of([5] * 50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first != sorted(first)


def test_a_training_record_shows_only_what_came_before():
    record = all_records(make(), "leave_one_out", "train")["b:3"]
    assert record.history == ("T5", "T4", "T3")
    assert (record.target_id, record.target) == (2, "T2")
    others = set(record.candidates) - {"T2"}
    assert others == {"T0", "T1", "T6", "T7"}, "none of the user's training items"
    assert record.specific_intention == "C2"
    assert (record.preference, record.vague_intention, record.teacher) == ((), (), "")


def test_pairs_held_out_for_product_search_are_never_trained_on():
    records = all_records(make(), "leave_one_out", "train")
    intentions = {name: record.specific_intention for name, record in records.items()}
    # Targets 1 (held out for test), 2 (train), 4 (held out for validation), 3 (no category).
    assert intentions == {"a:1": "", "a:2": "C2", "b:1": "", "b:2": "", "b:3": "C2"}
    searched = all_records(make(), "product_search", "train")
    assert {record.target_id for record in searched.values()} == {0, 2, 5, 6, 7}


def test_held_out_items_are_training_negatives_as_often_as_others():
    """Else "least often a training negative" or "not trained on" would rank the answers first."""
    items = [Item(item_id=n, raw_id=f"r{n}", title=f"T{n}", category="C") for n in range(30)]
    histories = columns.histories(
        [
            History(user_id=f"u{user}", item_ids=tuple(range(user % 8, user % 8 + 22)))
            for user in range(400)
        ]
    )
    data = PreparedData(
        dataset="toy",
        items=items,
        search_splits=["test" if n % 5 == 0 else "train" for n in range(30)],
        histories=histories,
        seen_items=columns.item_sets(sorted(h.item_ids) for h in histories),
        candidates=columns.candidates([], histories),
    )
    made = RecordBuilder(data, RecordSettings(num_train_negatives=3, max_train_positions=3), None)
    held_out = others = number = 0
    for record in all_records(made, "leave_one_out", "train").values():
        sequence = histories[int(record.user_id[1:])].item_ids
        negatives = set(record.candidate_ids) - {record.target_id}
        assert not negatives & set(sequence[:-2]), "training items are no negatives of their user"
        held_out += len(negatives & set(sequence[-2:]))
        others += len(negatives - set(sequence))
        number += 1
    assert held_out / (2 * number) == pytest.approx(others / (8 * number), rel=0.1)
    counts = np.zeros(30)
    for seed in range(60):
        made = RecordBuilder(data, RecordSettings(num_train_negatives=9, seed=seed), None)
        for record in all_records(made, "product_search", "train").values():
            counts[list(set(record.candidate_ids) - {record.target_id})] += 1
    assert counts[::5].mean() == pytest.approx(counts.mean(), rel=0.1)


def test_evaluation_takes_the_frozen_candidates_and_their_order():
    (user,) = all_records(make(), "leave_one_out", "test").values()
    (item,) = all_records(make(), "product_search", "test").values()
    assert user.history == ("T5", "T4", "T3", "T2", "T1")
    assert user.candidates == ("T6", "T0", "T7")
    assert (item.history, item.specific_intention) == ((), "C1")
    assert not all_records(make(), "leave_one_out", "validation")


def test_the_texts_are_those_on_the_history_and_on_the_review_of_the_target():
    records = all_records(make(Recorder()), "leave_one_out", "train")
    assert records["b:3"].preference == ("T5 T4 T3", "second")
    assert records["b:3"].vague_intention == ("review 8 r2",)
    assert records["b:3"].second_vague_intention == ("they review 8",)
    assert records["b:3"].teacher == "recorder-1"
    assert records["b:2"].vague_intention == ()


def test_an_event_without_review_has_no_vague_intention():
    (record,) = all_records(make(Recorder()), "leave_one_out", "test").values()
    assert record.vague_intention == record.second_vague_intention == ()
    assert record.preference


def test_the_texts_of_a_search_come_from_events_of_its_own_split():
    """A text that is trained on is never a held-out query."""
    made = make(Recorder())
    trained = all_records(made, "product_search", "train")
    assert trained["item:2"].vague_intention in (
        ("review 2 r2", "review 8 r2"),
        ("review 8 r2", "review 2 r2"),
    )
    assert set(trained["item:2"].preference) == {"T0 T1", "T5 T4 T3"}
    assert trained["item:0"].vague_intention == ("review 0 r0",), "not the test event of b"
    assert trained["item:7"].vague_intention == (), "nobody chose it"
    (held_out,) = all_records(made, "product_search", "test").values()
    assert held_out.vague_intention == (), "item 1 is nobody's last item"


def test_the_texts_of_a_search_do_not_quote_its_title():
    class Fan(Recorder):
        def preference(self, user, position):
            return Annotation(texts=("T2 again and again", "the same"), version="fan-1")

    record = all_records(make(Fan()), "product_search", "train")["item:2"]
    assert record.preference == ("the same",)


def test_any_range_gives_what_the_whole_gives():
    made = make(Recorder())
    whole = list(all_records(made, "leave_one_out", "train").values())
    parts = [
        record
        for numbers in (range(3, 5), range(3))
        for record in make(Recorder()).records("leave_one_out", "train", numbers)
    ]
    assert parts == whole[3:] + whole[:3]


def test_a_time_that_no_calendar_holds_is_named(monkeypatch):
    maker = make(states_time=True)
    times = np.full(len(maker._data.histories.item_ids), 10**14)
    monkeypatch.setattr(maker._data.histories, "times", times)
    with pytest.raises(
        UserError, match=r"user '[ab]' has the time 100000000000000, expected seconds"
    ):
        all_records(maker, "leave_one_out", "train")


@pytest.mark.parametrize(("states_time", "context"), [(True, "December 2014"), (False, "")])
def test_the_context_is_the_month_of_the_target_where_asked_for(states_time, context):
    records = all_records(make(states_time=states_time), "leave_one_out", "train")
    assert records["b:3"].context == context
