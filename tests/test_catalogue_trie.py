"""The prefix tree of a catalogue, against sets of tuples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.errors import UserError
from instructrec_jax.generation.catalogue_trie import EOS, build_trie

TITLES = st.lists(
    st.lists(st.integers(2, 5), min_size=1, max_size=4).map(lambda body: (*body, EOS)),
    min_size=1,
    max_size=30,
)


def arrays(titles):
    return [np.array(title, np.int32) for title in titles]


def walks(trie, blocked=()):
    """All titles that a walk from the root reaches past the blocked nodes, with their numbers."""
    found, open_nodes = {}, [(0, ())]
    while open_nodes:
        node, read = open_nodes.pop()
        if node in blocked:
            continue
        first, number = trie.first_child[node], trie.num_children[node]
        open_nodes += [(n, (*read, int(trie.tokens[n]))) for n in range(first, first + number)]
        if trie.title[node] >= 0:
            assert number == 0 and read not in found
            found[read] = int(trie.title[node])
    return found


def test_the_tree_of_the_docstring():
    trie = build_trie(arrays([(5, 6, 1), (5, 1), (5, 6, 1)]))
    assert trie.tokens.tolist() == [0, 5, 1, 6, 1]
    assert trie.parents.tolist() == [0, 0, 1, 1, 3]
    assert trie.num_children.tolist() == [1, 2, 0, 1, 0]
    assert trie.first_child[[0, 1, 3]].tolist() == [1, 2, 4]
    assert trie.num_below.tolist() == [2, 2, 1, 1, 1]
    assert trie.title.tolist() == [-1, -1, 0, -1, 1]
    assert [ids.tolist() for ids in trie.item_ids] == [[1], [0, 2]]
    assert (trie.num_titles, trie.num_tokens) == (2, 3)


@given(TITLES)
def test_walks_from_the_root_say_each_title_once_and_nothing_else(titles):
    trie = build_trie(arrays(titles), item_ids=range(100, 100 + len(titles)))
    found = walks(trie)
    assert set(found) == set(titles)
    for title, number in found.items():
        same = [100 + index for index, other in enumerate(titles) if other == title]
        assert trie.item_ids[number].tolist() == same
        node, below = int(trie.leaf[number]), 1
        for token in reversed(title):
            assert trie.tokens[node] == token
            node = int(trie.parents[node])
        assert node == 0
    for node in range(len(trie.tokens)):
        begin, at = [], node
        while at:
            begin.insert(0, int(trie.tokens[at]))
            at = int(trie.parents[at])
        below = sum(title[: len(begin)] == tuple(begin) for title in set(titles))
        assert trie.num_below[node] == below


@given(TITLES, st.sets(st.integers(0, 40)))
def test_blocked_nodes_keep_out_the_titles_of_excluded_items_and_no_others(titles, excluded):
    trie = build_trie(arrays(titles))
    hidden = trie.titles_without(excluded)
    left = {title for index, title in enumerate(titles) if index not in excluded}
    blocked = trie.blocked(hidden).tolist()
    assert len(hidden) == len(set(titles) - left)
    assert len(blocked) <= len(hidden) and blocked == sorted(set(blocked))
    assert set(walks(trie, blocked)) == left
    parents = {int(trie.parents[node]) for node in blocked}
    assert not parents & set(blocked), "the first of them alone"
    # A node that is not blocked leads somewhere: it may take a place in a beam.
    for node in range(1, len(trie.tokens)):
        at, is_reached = node, True
        while at:
            is_reached, at = is_reached and at not in blocked, int(trie.parents[at])
        if is_reached:
            below = [t for t in left if any(trie.leaf[n] >= 0 for n in [walks(trie)[t]])]
            assert below


MISTAKES = {
    "nothing": ([], None, "has 0 titles"),
    "another number of ids": ([(5, 1)], [1, 2], "has 1 titles and 2 item ids"),
    "no end": ([(5, 1), (5, 6)], [7, 8], r"title of item 8 is the tokens \[5, 6\]; expected"),
    "an end inside": ([(5, 1, 6, 1)], None, "item 0"),
    "padding": ([(5, 0, 1)], None, "item 0"),
    "empty": ([(1,)], None, "item 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_titles_gets_one_message(name):
    titles, item_ids, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        build_trie(arrays(titles), item_ids)
