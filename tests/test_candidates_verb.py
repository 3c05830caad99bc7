"""`candidates uniform` and `lists`: other candidates of the same items and histories."""

import gzip
import json

import numpy as np
import pytest

from instructrec_jax import manifest
from instructrec_jax.cli import main
from instructrec_jax.data import titles
from instructrec_jax.data.candidate_lists import HEADER, read_lists, write_lists
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, PRODUCT_SEARCH, TEST, VALIDATION
from instructrec_jax.data.prepared import hashes_of, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.stages import candidates
from instructrec_jax.stages.baseline.scores import BaselineSettings
from instructrec_jax.teacher.texts import read_texts_manifest


@pytest.fixture(scope="module")
def data(toy_prepared):
    return read_prepared(toy_prepared)


def listed(data, protocol=LEAVE_ONE_OUT, split=TEST):
    return {e.example_id: e for e in data.evaluation(protocol, split)}


def of(path, *lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def test_a_list_loses_the_users_items_the_target_and_equal_titles_then_gets_the_target(
    toy_prepared, data, tmp_path
):
    history, other = data.histories[0], data.histories[1]
    seen = set(data.seen_items[0].tolist())
    free = [item.item_id for item in data.items if item.item_id not in seen]
    assert len(titles.title_ids([item.title for item in data.items])) == len(data.items)
    raw = [data.items[item].raw_id for item in [*history.item_ids, *free]]
    lines = [f"{history.user_id}\t{' '.join(raw)} nothing", f"stranger\t{raw[0]}"]
    short = f"{other.user_id}\t{data.items[other.item_ids[0]].raw_id}"
    path = of(tmp_path / "lists.tsv", *lines, short)
    made = candidates.lists(
        prepared_dir=toy_prepared, output_dir=tmp_path / "hard", test_file=path, num_candidates=5
    )
    hard = read_prepared(tmp_path / "hard")
    (example,) = listed(hard).values()
    assert example.user_id == history.user_id and example.target_id == history.item_ids[-1]
    assert set(example.candidate_ids) == {example.target_id, *free[:4]}
    assert made.drops["test_targets"] == 1
    assert made.drops["test_items_of_the_user"] == len(history.item_ids) - 1 + 1  # and the other's
    assert made.drops["test_unknown_items"] == made.drops["test_lists_of_unknown_users"] == 1
    assert made.drops["test_examples_with_too_short_a_list"] == 1
    assert made.drops["test_examples_without_a_list"] == len(data.histories) - 2
    for protocol, split in ((LEAVE_ONE_OUT, VALIDATION), (PRODUCT_SEARCH, TEST)):
        assert listed(hard, protocol, split) == listed(data, protocol, split)
    assert hard.items == data.items
    assert np.array_equal(hard.histories.item_ids, data.histories.item_ids)
    assert list(hard.reviews) == list(data.reviews)


def test_the_target_stands_anywhere_and_the_order_depends_on_the_seed_alone(toy_prepared, tmp_path):
    data = read_prepared(toy_prepared)
    every = list(range(len(data.items)))
    write_lists(tmp_path / "all.tsv.gz", data, [(h.user_id, every) for h in data.histories])
    made = []
    for number, seed in enumerate((0, 0, 1)):
        candidates.lists(
            prepared_dir=toy_prepared,
            output_dir=tmp_path / str(number),
            test_file=tmp_path / "all.tsv.gz",
            seed=seed,
        )
        made.append(listed(read_prepared(tmp_path / str(number))))
    assert made[0] == made[1] != made[2]
    indices = {e.candidate_ids.index(e.target_id) for e in made[0].values()}
    assert len(indices) > 5
    for example in made[0].values():
        assert len(set(example.candidate_ids)) == 10


def test_lists_are_read_as_they_were_written(data, tmp_path):
    written = [(history.user_id, [3, 1, 2]) for history in data.histories][:4]
    write_lists(tmp_path / "a.tsv.gz", data, written)
    with gzip.open(tmp_path / "a.tsv.gz", "rt") as lines:
        assert next(lines).rstrip("\n") == HEADER
    lists, dropped = read_lists(tmp_path / "a.tsv.gz", data)
    assert lists == {row: (3, 1, 2) for row in range(4)} and not dropped.total()


def test_mistakes_in_lists_are_said(data, toy_prepared, tmp_path):
    user, item = data.histories[0].user_id, data.items[0].raw_id
    for lines, message in (
        (["u\ti"], "names no user and item of toy"),
        ([user], "has no tab"),
        ([f"{user}\t{item}", f"{user}\t{item}"], "another list"),
    ):
        with pytest.raises(UserError, match=message):
            read_lists(of(tmp_path / "bad.tsv", *lines), data)
    (tmp_path / "bad.tsv").write_text("user\titems\n")
    with pytest.raises(UserError, match="line 1"):
        read_lists(tmp_path / "bad.tsv", data)
    path = of(tmp_path / "short.tsv", f"{user}\t{item}")
    with pytest.raises(UserError, match="lower --num_candidates"):
        candidates.lists(prepared_dir=toy_prepared, output_dir=tmp_path / "x", test_file=path)
    assert not (tmp_path / "x").exists()


def test_uniform_ones_are_those_of_prepare_and_may_leave_out_what_suits_the_query(
    toy_prepared, data, tmp_path
):
    words = ["candidates", "uniform", f"--prepared_dir={toy_prepared}"]
    assert main.main([*words, f"--output_dir={tmp_path / 'same'}"]) == 0
    same = read_prepared(tmp_path / "same")
    for protocol in (LEAVE_ONE_OUT, PRODUCT_SEARCH):
        assert listed(same, protocol) == listed(data, protocol)
    more = [
        f"--output_dir={tmp_path / 'other'}",
        "--search_negatives=other_category",
        "--num_candidates=20",
    ]
    assert main.main([*words, *more]) == 0
    other = read_prepared(tmp_path / "other")
    categories = [item.category for item in data.items]
    for example in listed(other, PRODUCT_SEARCH).values():
        own = [categories[item] for item in example.candidate_ids]
        assert len(own) == 20 and own.count(categories[example.target_id]) == 1
    settings = json.loads((tmp_path / "other" / manifest.FILE_NAME).read_text())["settings"]
    assert settings["candidates"]["search_negatives"] == "other_category"


def test_texts_serve_the_same_items_with_other_candidates(toy_prepared, toy_texts, tmp_path):
    hard = tmp_path / "hard"
    candidates.uniform(prepared_dir=toy_prepared, output_dir=hard, num_candidates=5)
    settings = BaselineSettings(
        prepared_dir=str(hard), output_dir="unused", texts_dir=str(toy_texts)
    )
    assert settings.inputs()["texts"]
    assert hashes_of(hard)[1:] == hashes_of(toy_prepared)
    with pytest.raises(UserError, match="other prepared data"):
        read_texts_manifest(toy_texts, prepared=hashes_of(hard)[:1])


def test_numbers_for_titles_leave_candidates_and_histories_as_they_are(
    toy_prepared, data, tmp_path
):
    words = ["rename", f"--prepared_dir={toy_prepared}", f"--output_dir={tmp_path / 'numbered'}"]
    assert main.main(words) == 0
    numbered = read_prepared(tmp_path / "numbered")
    assert [item.title for item in numbered.items] == [
        f"item_{i:02}" for i in range(len(data.items))
    ]
    assert [item.category for item in numbered.items] == [item.category for item in data.items]
    for name in ("candidates", "histories"):
        own, other = (f / f"{name}.parquet" for f in (toy_prepared, tmp_path / "numbered"))
        assert own.read_bytes() == other.read_bytes()
