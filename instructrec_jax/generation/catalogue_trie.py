"""A catalogue's titles as one prefix tree in flat int32 arrays, searched on the device."""

import dataclasses
import functools
from collections.abc import Collection, Sequence

import numpy as np

from instructrec_jax.errors import UserError

EOS, PADDING = 1, 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CatalogueTrie:
    """The prefix tree of all titles, equal ones once.

    Nodes are numbered level by level from the root, 0, so the children of a node have consecutive
    numbers. Each title has its own leaf, since it ends in EOS.

    Attributes:
      tokens: int32 [nodes], the token that leads to a node; 0 for the root.
      parents: int32 [nodes]; 0 for the root too.
      first_child: int32 [nodes]; any for a leaf.
      num_children: int32 [nodes].
      num_below: int32 [nodes], titles whose path has the node.
      title: int32 [nodes], the number of the title that ends there, -1 where none does.
      leaf: int32 [titles], the node where each title ends.
      item_ids: for each title the ids of the items that have it, ascending.
      num_tokens: of the longest title, EOS included.
    """

    tokens: np.ndarray
    parents: np.ndarray
    first_child: np.ndarray
    num_children: np.ndarray
    num_below: np.ndarray
    title: np.ndarray
    leaf: np.ndarray
    item_ids: Sequence[np.ndarray]
    num_tokens: int

    @property
    def num_titles(self) -> int:
        """Number of different titles."""
        return len(self.leaf)

    def titles_without(self, excluded: Collection[int]) -> np.ndarray:
        """Returns the numbers of the titles all of whose items are excluded, ascending.

        Args:
          excluded: item ids; those that are not in the catalogue are ignored.
        """
        hidden = set(excluded)
        touched = {self.title_of_item[item] for item in hidden if item in self.title_of_item}
        return np.array(
            sorted(title for title in touched if hidden.issuperset(self.item_ids[title].tolist())),
            np.int32,
        )

    def same_titles(self, items: Collection[int]) -> np.ndarray:
        """Returns all items that share their title with one of these."""
        titles = {self.title_of_item[item] for item in items}
        return np.concatenate([np.zeros(0, int), *(self.item_ids[title] for title in titles)])

    def blocked(self, titles: np.ndarray) -> np.ndarray:
        """Returns the nodes that lead to nothing but some titles, ascending.

        Of such a node and the nodes below it only the first is returned, so there are at most as
        many nodes as titles.

        Args:
          titles: numbers of titles, each once.
        """
        counts: dict[int, int] = {}
        for node in self.leaf[titles].tolist():
            while node:
                counts[node] = counts.get(node, 0) + 1
                node = int(self.parents[node])
        dead = {node for node, count in counts.items() if count == self.num_below[node]}
        return np.array(sorted(n for n in dead if int(self.parents[n]) not in dead), np.int32)

    @functools.cached_property
    def title_of_item(self) -> dict[int, int]:
        """The number of the title of each item."""
        return {item: title for title, own in enumerate(self.item_ids) for item in own.tolist()}


def build_trie(
    titles: Sequence[np.ndarray], item_ids: Sequence[int] | None = None
) -> CatalogueTrie:
    """Returns the prefix tree of a catalogue.

    Args:
      titles: int32 [t] each, the title of an item as tokens ending in EOS, no padding.
      item_ids: of the items, each once; None for 0, 1, ...

    Raises:
      UserError: if there is no title, or one is not such tokens.

    Example:
      Of [5, 6, 1], [5, 1] and [5, 6, 1] items 0 and 2 share a title; the tree has the nodes
      root, 5, 5 1, 5 6 and 5 6 1.
    """
    ids = np.arange(len(titles)) if item_ids is None else np.asarray(item_ids)
    if len(ids) != len(titles) or not len(titles):
        raise UserError(
            f"the catalogue has {len(titles)} titles and {len(ids)} item ids; expected at least "
            "one title, and an id for each"
        )
    for item, tokens in zip(ids, titles, strict=True):
        if len(tokens) < 2 or tokens[-1] != EOS or np.isin(tokens[:-1], (EOS, PADDING)).any():
            raise UserError(
                f"the title of item {item} is the tokens {np.asarray(tokens).tolist()}; expected "
                f"at least one, then EOS ({EOS}), and no padding ({PADDING})"
            )
    lengths = np.array([len(tokens) for tokens in titles])
    rows = np.zeros((len(titles), lengths.max()), np.int32)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.concatenate(titles)
    rows, title_of_row = np.unique(rows, axis=0, return_inverse=True)
    order = np.lexsort((ids, title_of_row.reshape(-1)))
    ends = np.cumsum(np.bincount(title_of_row.reshape(-1)))[:-1]
    return CatalogueTrie(item_ids=np.split(ids[order], ends), **_arrays(rows))


def _arrays(rows: np.ndarray) -> dict:
    """Returns the arrays of the tree over sorted, different rows [titles, tokens]."""
    num_titles, num_tokens = rows.shape
    lengths = (rows > 0).sum(axis=1)
    # A row has its own nodes from the first token that differs from the row before.
    differs = np.ones((num_titles, num_tokens), bool)
    differs[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    is_token = np.arange(num_tokens) < lengths[:, None]
    level, row = np.nonzero((differs & is_token).T)  # level by level, rows ascending: the numbers
    num_nodes = 1 + len(level)
    # The node of each row at each level: the last one that began there at or above the row.
    begins = np.zeros((num_tokens, num_titles), np.int64)
    begins[level, row] = np.arange(1, num_nodes)
    node_of = np.maximum.accumulate(begins, axis=1)
    parents = np.concatenate([[0], np.where(level > 0, node_of[level - 1, row], 0)])
    num_children = np.bincount(parents[1:], minlength=num_nodes)
    leaf = node_of[lengths - 1, np.arange(num_titles)]
    title = np.full(num_nodes, -1)
    title[leaf] = np.arange(num_titles)
    num_below = np.bincount(node_of.T[is_token], minlength=num_nodes)
    num_below[0] = num_titles
    found = {
        "tokens": np.concatenate([[0], rows[row, level]]),
        "parents": parents,
        "first_child": 1 + np.cumsum(num_children) - num_children,
        "num_children": num_children,
        "num_below": num_below,
        "title": title,
        "leaf": leaf,
    }
    arrays = {name: array.astype(np.int32) for name, array in found.items()}
    return {**arrays, "num_tokens": num_tokens}
