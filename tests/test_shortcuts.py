"""`lint` measures rules that read no text: by id, place, title order, and what training shows."""

import dataclasses

import numpy as np
from lint_toy import LEAVE_ONE_OUT, numbered, write_dataset

from instructrec_jax.pipeline import record_store
from instructrec_jax.stages.lint.shortcuts import find_shortcuts, shortcut_findings

NUM_USERS, NUM_ITEMS = 300, 100
SEARCH = "product_search"


def record(user, split, target, negatives, generator, **changes):
    """A record of a user with 4 candidates in random order."""
    ids = generator.permutation([target, *negatives]).tolist()
    return numbered(
        int(target),
        example_id=f"u{user}:{split}",
        user_id=f"u{user}",
        candidate_ids=tuple(ids),
        candidates=tuple(f"Title {item * 37 % 1000:03}" for item in ids),
        **changes,
    )


def found_in(tmp_path, *, avoids_target=False, prefers_large=False):
    """What the rules get where training negatives avoid the target, or targets have large ids."""
    generator = np.random.default_rng(0)
    train, test = [], []
    for user in range(NUM_USERS):
        lists = generator.permutation(NUM_ITEMS)
        target, *others = lists[:4].tolist()
        if prefers_large:
            target, *others = sorted([target, *others], reverse=True)
        test.append(record(user, "test", target, others, generator))
        pool = np.setdiff1d(np.arange(NUM_ITEMS), [target] if avoids_target else [])
        for number in range(25):
            shown = generator.choice(pool, size=4, replace=False).tolist()
            train.append(record(user, f"train{number}", shown[0], shown[1:], generator))
    records = {"train": train, "test": test, "validation": [numbered(20)]}
    write_dataset(tmp_path, {(LEAVE_ONE_OUT, split): own for split, own in records.items()})
    record_store.use_data_dir(tmp_path)
    return find_shortcuts("own")


def warned(shortcuts):
    return {finding.message.split("'")[1] for finding in shortcut_findings(shortcuts)}


def test_rules_on_fair_records_are_at_chance(tmp_path):
    shortcuts = found_in(tmp_path)
    assert len(shortcuts) == 8
    assert {(own.config, own.num_examples, own.chance) for own in shortcuts} == {
        (LEAVE_ONE_OUT, NUM_USERS, 0.25)
    }
    assert warned(shortcuts) == set()


def test_targets_that_training_avoids_as_negatives_are_seen(tmp_path):
    shortcuts = found_in(tmp_path, avoids_target=True)
    assert warned(shortcuts) == {"least often a training negative"}
    rates = {own.rule: own.hit_rate for own in shortcuts}
    # A negative of a user with 75 draws is missing from them in about half of the lists.
    assert rates["least often a training negative"] > 0.35


def test_targets_of_large_ids_are_seen(tmp_path):
    shortcuts = found_in(tmp_path, prefers_large=True)
    assert "last item id" in warned(shortcuts)
    assert next(own for own in shortcuts if own.rule == "last item id").hit_rate == 1.0


def test_targets_that_training_never_shows_are_seen(tmp_path):
    generator = np.random.default_rng(1)
    same = {"user_id": "", "position": -1, "history": ()}
    test = [
        record(n, "test", 80 + n % 20, generator.permutation(80)[:3], generator) for n in range(60)
    ]
    train = [
        record(n, "train", n, generator.permutation(80)[:3] if n % 2 else [1, 2, 3], generator)
        for n in range(4, 80)
    ]
    records = {
        (SEARCH, split): [dataclasses.replace(own, **same) for own in members]
        for split, members in (("train", train), ("test", test), ("validation", [numbered(20)]))
    }
    write_dataset(tmp_path, records)
    record_store.use_data_dir(tmp_path)
    shortcuts = find_shortcuts("own")
    rates = {own.rule: own.hit_rate for own in shortcuts}
    assert rates["not trained on"] > 0.9
    assert {"not trained on", "least often a training negative"} <= warned(shortcuts)


def test_records_of_no_test_split_give_no_rule(tmp_path):
    write_dataset(tmp_path, {(LEAVE_ONE_OUT, "train"): [numbered(10)]})
    record_store.use_data_dir(tmp_path)
    assert find_shortcuts("own") == []
