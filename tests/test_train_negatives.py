"""Negatives of training records: popular ones, or those that a ranker puts beside the target."""

import dataclasses
from collections import Counter

import columns
import numpy as np
import pytest

from instructrec_jax import files
from instructrec_jax.baselines.cooccurrence import CatalogueScores, Cooccurrence
from instructrec_jax.cli import main
from instructrec_jax.data.columnar import CONFIGS, LEAVE_ONE_OUT, PRODUCT_SEARCH, TRAIN
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.instructions import train_negatives
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.train_negatives import AT_THE_TOP, MATCHED, MISSING, RULES
from instructrec_jax.manifest import read_manifest
from instructrec_jax.metrics import ranking
from instructrec_jax.records import History, Item
from instructrec_jax.stages.build import BuildSettings, Execution, build

NUM_USERS, NUM_ITEMS = 400, 200
COUNTED = f"train_negatives/{LEAVE_ONE_OUT}"


def histories(seed=0) -> list[History]:
    """Users who keep to one of four kinds, each kind with its popular items."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, NUM_ITEMS // 4 + 1)
    rows = []
    for user in range(NUM_USERS):
        own = rng.choice(len(share), size=8, replace=False, p=share / share.sum()) * 4 + user % 4
        other = rng.choice(NUM_ITEMS, size=2, replace=False)
        items = list(dict.fromkeys([*own.tolist(), *other.tolist()]))
        rows.append(History(user_id=f"u{user}", item_ids=tuple(rng.permutation(items).tolist())))
    return rows


def made_of(rows, *, title="T{}") -> PreparedData:
    kept = columns.histories(rows)
    return PreparedData(
        dataset="toy",
        items=[
            Item(item_id=n, raw_id=f"r{n}", title=title.format(n), category="C")
            for n in range(NUM_ITEMS)
        ],
        search_splits=["train"] * NUM_ITEMS,
        histories=kept,
        seen_items=columns.item_sets(sorted(set(row.item_ids)) for row in rows),
        candidates=columns.candidates([], kept),
    )


@pytest.fixture(scope="module")
def data():
    return made_of(histories())


@pytest.fixture(scope="module")
def ranker(data):
    return CatalogueScores.of(data, seed=0)


def records(data, rule, ranker=None, *, numbers=None, counts=None, config=LEAVE_ONE_OUT, number=9):
    settings = RecordSettings(train_negatives=rule, num_train_negatives=number)
    made = RecordBuilder(data, settings, None, ranker=ranker if rule == MATCHED else None)
    numbers = range(made.num_records(config, TRAIN)) if numbers is None else numbers
    return list(made.records(config, TRAIN, numbers, counts))


def scored_by_cooccurrence(data, found):
    """Returns [n] ranks of the targets by the untrained scorer, from 1."""
    ids = np.array([record.candidate_ids for record in found], np.int32)
    scores = Cooccurrence(data, seed=0).score(found, ids)
    targets = [record.candidate_ids.index(record.target_id) for record in found]
    return ranking.ranks_and_ties(scores, targets)[0]


def test_the_ranker_finds_the_target_among_uniform_negatives_and_is_at_chance_among_matched(
    data, ranker
):
    uniform = scored_by_cooccurrence(data, records(data, "uniform"))
    counts: Counter[str] = Counter()
    found = records(data, MATCHED, ranker, counts=counts)
    ranks = scored_by_cooccurrence(data, found)
    assert np.mean(uniform == 1) > 0.4
    near_the_top = counts[f"{COUNTED}/{AT_THE_TOP}"]
    assert 0 < near_the_top < 0.6 * len(found)
    scores = ranker.score([history(data, record) for record in found])
    rank = np.array([allowed(data, r).index(r.target_id) for r in ordered(scores, found)])
    assert near_the_top == np.sum(rank < 9)
    below = ranks[rank >= 9]
    shares = np.bincount(below, minlength=11)[1:] / len(below)
    assert shares == pytest.approx([0.1] * 10, abs=4 * (0.09 / len(below)) ** 0.5)


def history(data, record):
    return data.histories[int(record.user_id[1:])].item_ids[: record.position]


def ordered(scores, found):
    """Yields each record with all items of the catalogue, best first, for its candidates."""
    for own, record in zip(scores, found, strict=True):
        yield dataclasses.replace(record, candidate_ids=tuple(np.argsort(-own).tolist()))


def allowed(data, record):
    """The items that may be candidates, in the order of the record."""
    excluded = set(data.histories[int(record.user_id[1:])].item_ids[:-2]) - {record.target_id}
    return [item for item in record.candidate_ids if item not in excluded]


def test_matched_negatives_are_neighbours_in_the_order_of_all_that_may_be_negatives(data, ranker):
    found = records(data, MATCHED, ranker, numbers=range(300))
    scores = ranker.score([history(data, record) for record in found])
    for record, ranked in zip(found, ordered(scores, found), strict=True):
        places = sorted(map(allowed(data, ranked).index, record.candidate_ids))
        # Items of equal score may stand in another order here.
        assert len(places) == 10 and places[-1] - places[0] <= 14


def test_no_rule_reads_a_held_out_event(data, ranker):
    rng = np.random.default_rng(5)
    changed = []
    for row in data.histories:
        known = row.item_ids[:-2]
        free = rng.permutation(sorted(set(range(NUM_ITEMS)) - set(known)))
        changed.append(dataclasses.replace(row, item_ids=(*known, *free[:2].tolist())))
    other = made_of(changed)
    assert not np.array_equal(other.histories.item_ids, data.histories.item_ids)
    for rule in RULES:
        of_other = CatalogueScores.of(other, seed=0)
        for config in CONFIGS:
            some = {"config": config, "numbers": range(NUM_ITEMS)}
            assert records(data, rule, ranker, **some) == records(other, rule, of_other, **some)
    whole = [dataclasses.replace(row, item_ids=(*row.item_ids, 0, 1)) for row in changed]
    leaking = CatalogueScores.of(made_of(whole), seed=0)  # the test would see it
    some = {"numbers": range(NUM_ITEMS)}
    assert records(data, MATCHED, ranker, **some) != records(other, MATCHED, leaking, **some)


def test_any_range_and_block_gives_what_the_whole_gives(data, ranker, monkeypatch):
    whole = records(data, MATCHED, ranker)
    monkeypatch.setattr(train_negatives, "_ENTRIES", 7 * NUM_ITEMS)
    parts = [
        record
        for numbers in (range(3, 50), range(3), range(50, 64))
        for record in records(data, MATCHED, ranker, numbers=numbers)
    ]
    assert parts == whole[3:50] + whole[:3] + whole[50:64]


def test_scores_of_the_catalogue_are_those_of_the_baseline_and_the_same_bits_in_any_batch(
    data, ranker, tmp_path
):
    found = records(data, "uniform", numbers=range(200))
    asked = [history(data, record) for record in found]
    scores = ranker.score([*asked, ()])
    ids = np.array([record.candidate_ids for record in found], np.int32)
    expected = Cooccurrence(data, seed=0).score(found, ids)
    assert np.take_along_axis(scores[:-1], ids, axis=1) == pytest.approx(expected, abs=1e-4)
    ranker.write(tmp_path / "ranker.npz")
    again = CatalogueScores.read(tmp_path / "ranker.npz")
    alone = np.concatenate([again.score([one]) for one in [*asked, ()]])
    assert np.array_equal(alone, scores)


def test_popular_items_are_negatives_as_often_as_they_were_chosen(data):
    chosen = np.zeros(NUM_ITEMS)
    for row in data.histories:
        chosen[list(row.item_ids[:-2])] += 1
    shown = np.zeros(NUM_ITEMS)
    found = records(data, "popularity", config=PRODUCT_SEARCH, number=1)
    for seed in range(40):
        settings = RecordSettings(train_negatives="popularity", num_train_negatives=1, seed=seed)
        made = RecordBuilder(data, settings, None)
        for record in made.records(PRODUCT_SEARCH, TRAIN, range(NUM_ITEMS)):
            shown[list({*record.candidate_ids} - {record.target_id})] += 1
    assert len(found) == NUM_ITEMS and shown[chosen == 0].sum() == 0
    popular = np.argsort(-chosen)[:20]
    assert shown[popular].sum() / shown.sum() == pytest.approx(
        chosen[popular].sum() / chosen.sum(), rel=0.05
    )
    for record in records(data, "popularity"):
        own = data.histories[int(record.user_id[1:])].item_ids
        assert not (set(record.candidate_ids) - {record.target_id}) & set(own[:-2])


@pytest.mark.parametrize("rule", ["popularity", MATCHED])
def test_what_there_are_too_few_of_is_drawn_uniformly_and_counted(data, ranker, rule):
    for config in CONFIGS:
        counts: Counter[str] = Counter()
        some = {"counts": counts, "config": config, "numbers": range(NUM_ITEMS)}
        found = records(data, rule, ranker, **some, number=250)
        name = f"train_negatives/{config}"
        kinds = [counts[f"{name}/{kind}"] for kind in (rule, "uniform", MISSING)]
        assert sum(kinds) == 250 * len(found) and kinds[2] > 0
        assert sum(kinds[:2]) == sum(len(record.candidates) - 1 for record in found)
        unseen = rule == "popularity" or config == PRODUCT_SEARCH
        assert (kinds[1] > 0) == unseen
    assert not any(name.endswith(AT_THE_TOP) for name in counts)


def test_items_of_equal_title_do_not_stand_together(ranker):
    alike = made_of(histories(), title="T")
    items = [dataclasses.replace(i, title=f"T{i.item_id // 3}") for i in alike.items]
    counts: Counter[str] = Counter()
    for record in records(dataclasses.replace(alike, items=items), MATCHED, ranker, counts=counts):
        assert len(set(record.candidates)) == len(record.candidates) == 10
    assert counts[f"{COUNTED}/{MISSING}"] == 0


def test_build_counts_them_says_them_and_leaves_no_ranker_behind(toy_prepared, tmp_path, capsys):
    words = [f"--input_dir={toy_prepared}", f"--output_dir={tmp_path}", "--vocab_size=600"]
    more = ["--train_negatives=matched", "--records_per_shard=100"]
    assert main.main(["build", "--dataset=toy", *words, *more]) == 0
    made = read_manifest(tmp_path / "toy")
    assert made.settings["train_negatives"] == RULES[MATCHED]
    num_records = made.counts["leave_one_out/train"]
    assert made.counts[f"{COUNTED}/matched"] == 9 * num_records
    assert "negatives of training, matched 4,716" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow
def test_several_processes_match_the_same_negatives(toy_prepared, tmp_path):
    for number in (1, 2):
        build(
            dataset="toy",
            input_dir=toy_prepared,
            output_dir=tmp_path / str(number),
            settings=BuildSettings(vocab_size=600, records_per_shard=100, train_negatives=MATCHED),
            execution=Execution(num_workers=number),
        )
    for config in CONFIGS:
        alone, both = (files.sha256(tmp_path / number / "toy" / config) for number in "12")
        assert alone == both


def test_a_rule_that_is_not_there_is_named(toy_prepared, tmp_path, capsys):
    words = ["build", "--dataset=toy", f"--input_dir={toy_prepared}", f"--output_dir={tmp_path}"]
    assert main.main([*words, "--train_negatives=hardest"]) != 0
    assert "one of 'uniform', 'popularity', 'matched'" in capsys.readouterr().err
