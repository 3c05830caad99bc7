"""Item generation (T2): the titles of a catalogue that a model finds likeliest, by beam search.

The search walks the catalogue's prefix tree, so it finds nothing but titles. Finished titles are
kept in a list of their own, outside the beam. A prefix is never less likely than a title that it
leads to, so the search ends as soon as no prefix is likelier than the last title of the list. Log
likelihoods are those of scoring: summed over the title's tokens and EOS, in float32.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax import Array

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.generation.catalogue_trie import CatalogueTrie
from instructrec_jax.models.incremental_decoding import (
    Cache,
    Instructions,
    empty_cache,
    read_instructions,
    read_tokens,
    reorder,
)
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import check_rows, on_host, place_batch, place_whole

_ROUNDING = 64  # instructions are padded to multiples of it, for few compiled shapes
METADATA_KEY = b"instructrec"
SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "target_id": pa.int32(),
        "item_ids": pa.list_(pa.list_(pa.int32())),  # of each title, best first
        "log_likelihood": pa.list_(pa.float32()),
        "rank": pa.int32(),  # of the target; one more than the titles if it is none of them
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """The likeliest titles of one instruction, best first.

    Attributes:
      item_ids: for each title the ids of the items that have it, without excluded ones.
      log_likelihood: float32 [titles], natural log, the sum over tokens including EOS.
    """

    item_ids: Sequence[np.ndarray]
    log_likelihood: np.ndarray

    def rank_of(self, item_id: int) -> int:
        """Returns the rank of an item's title, ties counting against it.

        An item that was not generated has the rank after all titles, so HR@K and NDCG@K of
        `metrics.ranking` hold for every K up to the number of titles.
        """
        for own, log_likelihood in zip(self.item_ids, self.log_likelihood, strict=True):
            if item_id in own:
                return int((self.log_likelihood >= log_likelihood).sum())
        return len(self.item_ids) + 1


def generate_from_catalogue(
    model: T5,
    instructions: Sequence[np.ndarray],
    catalogue: CatalogueTrie,
    *,
    num_titles: int,
    num_beams: int | None = None,
    excluded: Sequence[Collection[int]] | None = None,
    batch_size: int = 8,
    mesh: LogicalMesh | None = None,
) -> list[Generated]:
    """Returns the likeliest titles of a catalogue under each instruction.

    Each instruction is encoded once. With as many beams as the catalogue has titles the result is
    exact. With fewer, the log-likelihoods are exact, but a likelier title may be missing: one that
    has a prefix less likely than `num_beams` others.

    Args:
      model: the model.
      instructions: int32 [s] each, tokens ending in EOS, no padding.
      catalogue: from `build_trie`.
      num_titles: how many titles to return.
      num_beams: prefixes kept per step (beam width), at least `num_titles`; by default four times
        as many. More are slower and more exact.
      excluded: for each instruction the ids of items that are not to be returned, such as those of
        the history. A title all of whose items are excluded is not in the beam.
      batch_size: instructions searched for at once; the results do not depend on it.
      mesh: over which a batch is split, the model lying as it was placed; None: one device.

    Returns:
      One result an instruction, in their order.

    Raises:
      UserError: if the catalogue has fewer titles than `num_titles`.

    Example:
      >>> catalogue = build_trie([encode(title) + [1] for title in titles])
      >>> found = generate_from_catalogue(model, [encode(text) + [1]], catalogue, num_titles=10)
      >>> [titles[ids[0]] for ids in found[0].item_ids]
    """
    num_beams = 4 * num_titles if num_beams is None else num_beams
    excluded = [()] * len(instructions) if excluded is None else excluded
    hidden = [catalogue.titles_without(items) for items in excluded]
    _check(catalogue, hidden, num_titles=num_titles, num_beams=num_beams)
    if mesh is not None:
        check_rows(batch_size, mesh, name="BATCH_SIZE")
    trie = _on_devices(catalogue, mesh)
    sizes = _sizes(catalogue, num_titles=num_titles, num_beams=num_beams)
    results: dict[int, Generated] = {}
    for members, batch in _batches(instructions, catalogue, hidden, batch_size):
        placed = batch if mesh is None else place_batch(batch, mesh)
        tokens, blocked = placed["instructions"], placed["blocked"]
        found = _search(model, tokens, blocked, trie, sizes=sizes, mesh=mesh)
        for member, titles, log_likelihood in zip(members, *on_host(found), strict=False):
            gone = list(excluded[member])
            own = [catalogue.item_ids[title] for title in titles]
            results[member] = Generated(
                item_ids=[ids[~np.isin(ids, gone)] for ids in own], log_likelihood=log_likelihood
            )
    return [results[index] for index in range(len(instructions))]


def write_generated(
    path: Path | str,
    chunks: Iterable[Sequence[Mapping[str, Any]]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes rows chunk by chunk, the file whole or not at all.

    Args:
      path: of the file.
      chunks: rows as `SCHEMA` has them; no more than one chunk is held at a time.
      metadata: JSON values, which go into the file's schema.
    """
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(dict(metadata)).encode()})
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for rows in chunks:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))


def _batches(
    instructions: Sequence[np.ndarray],
    catalogue: CatalogueTrie,
    hidden: Sequence[np.ndarray],
    batch_size: int,
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yields which instructions a batch holds, longest first, and its arrays."""
    blocked = [catalogue.blocked(titles) for titles in hidden]
    # One width for all, so that it does not add to the compiled shapes.
    width = 1 << max([1, *map(len, blocked)]).bit_length()
    order = np.argsort([-len(tokens) for tokens in instructions], kind="stable").tolist()
    for begin in range(0, len(order), batch_size):
        members = order[begin : begin + batch_size]
        length = -(-len(instructions[members[0]]) // _ROUNDING) * _ROUNDING
        padding = len(catalogue.tokens)  # no node's number
        yield (
            members,
            {
                "instructions": _padded([instructions[i] for i in members], batch_size, length),
                "blocked": _padded([blocked[i] for i in members], batch_size, width, padding),
            },
        )


class _Sizes(NamedTuple):
    """What a compiled search is made for."""

    num_titles: int
    num_beams: int
    num_tokens: int  # of the longest title
    root_children: int
    most_children: int  # of any other node


class _Trie(NamedTuple):
    """What the search needs of a `CatalogueTrie`, on the devices."""

    tokens: Array
    first_child: Array
    num_children: Array
    title: Array


class _State(NamedTuple):
    """The prefixes in the beam, best first, and the best titles found so far.

    Attributes:
      position: tokens of each prefix.
      nodes: int32 [B, W].
      log_likelihood: float32 [B, W], -inf where there is no prefix.
      titles: int32 [B, titles].
      title_log_likelihood: float32 [B, titles], -inf where no title was found yet.
      cache: what the decoder has read of the prefixes, all but their last token.
    """

    position: Array | int
    nodes: Array
    log_likelihood: Array
    titles: Array
    title_log_likelihood: Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("sizes", "mesh"))
def _search(
    model: T5,
    tokens: Array,
    blocked: Array,
    trie: _Trie,
    *,
    sizes: _Sizes,
    mesh: LogicalMesh | None,
) -> tuple[Array, Array]:
    """Returns the titles, int32 [B, titles], and log-likelihoods, of instructions [B, S]."""
    with constrained_by(None if mesh is None else mesh.constraints):
        return _best_titles(model, tokens, blocked, trie, sizes=sizes)


def _best_titles(
    model: T5, tokens: Array, blocked: Array, trie: _Trie, *, sizes: _Sizes
) -> tuple[Array, Array]:
    num_rows = len(tokens)
    walk = _Walk(model, read_instructions(model, tokens), trie, blocked)
    is_real = jnp.any(tokens > 0, axis=1, keepdims=True)
    state = _State(
        position=0,
        nodes=jnp.zeros((num_rows, 1), jnp.int32),
        log_likelihood=jnp.where(is_real, 0.0, -jnp.inf),
        titles=jnp.zeros((num_rows, sizes.num_titles), jnp.int32),
        title_log_likelihood=jnp.full((num_rows, sizes.num_titles), -jnp.inf),
        cache=empty_cache(model, num_rows, 1, sizes.num_tokens),
    )
    # The root has by far the most children: it gets a step of its own, with one beam.
    most = max(sizes.root_children, sizes.num_beams)
    state = walk.step(state, num_children=most, num_beams=sizes.num_beams)

    def may_improve(state: _State) -> Array:
        is_open = state.log_likelihood[:, 0] > state.title_log_likelihood[:, -1]
        return (state.position < sizes.num_tokens) & jnp.any(is_open)

    advance = functools.partial(
        walk.step, num_children=sizes.most_children, num_beams=sizes.num_beams
    )
    state = jax.lax.while_loop(may_improve, advance, state)
    return state.titles, state.title_log_likelihood


class _Walk(NamedTuple):
    """What stays the same during a search."""

    model: T5
    instructions: Instructions
    trie: _Trie
    blocked: Array

    def step(self, state: _State, *, num_children: int, num_beams: int) -> _State:
        """Reads the last token of every prefix and keeps the likeliest of the longer prefixes.

        Args:
          state: of the search.
          num_children: most children of a node.
          num_beams: prefixes to keep.
        """
        children, values, cache = self._follow(state, num_children)
        ended = self.trie.title[children]
        titles, title_values = _best(
            jnp.concatenate([state.titles, ended], axis=1),
            jnp.concatenate(
                [state.title_log_likelihood, jnp.where(ended >= 0, values, -jnp.inf)], axis=1
            ),
            state.titles.shape[1],
        )
        values, places = jax.lax.top_k(jnp.where(ended < 0, values, -jnp.inf), num_beams)
        return _State(
            position=state.position + 1,
            nodes=jnp.take_along_axis(children, places, axis=1),
            log_likelihood=values,
            titles=titles,
            title_log_likelihood=title_values,
            cache=reorder(cache, places // num_children),
        )

    def _follow(self, state: _State, num_children: int) -> tuple[Array, Array, Cache]:
        """Returns the nodes that may follow, [B, W * children], their log-likelihoods, the cache.

        Where there is none, or it is blocked, the log-likelihood is -inf.
        """
        trie, nodes = self.trie, state.nodes
        hidden, cache = read_tokens(
            self.model,
            trie.tokens[nodes],
            state.position,
            instructions=self.instructions,
            cache=state.cache,
        )
        logits = self.model.logits(hidden)
        offsets = jnp.arange(num_children)
        is_child = offsets < trie.num_children[nodes][..., None]
        children = jnp.where(is_child, trie.first_child[nodes][..., None] + offsets, 0)
        following = jnp.take_along_axis(logits, trie.tokens[children], axis=-1)
        log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        values = state.log_likelihood[..., None] + (following - log_z)
        values = jnp.where(is_child & ~_is_among(children, self.blocked), values, -jnp.inf)
        num_rows = len(nodes)
        return children.reshape(num_rows, -1), values.reshape(num_rows, -1), cache


def _best(what: Array, values: Array, number: int) -> tuple[Array, Array]:
    """Returns those of [B, any] with the highest values, [B, number], and their values."""
    values, places = jax.lax.top_k(values, number)
    return jnp.take_along_axis(what, places, axis=1), values


def _is_among(nodes: Array, blocked: Array) -> Array:
    """Returns whether nodes [B, ...] are among the blocked ones of their row, [B, X] ascending."""

    def of_row(nodes: Array, blocked: Array) -> Array:
        place = jnp.searchsorted(blocked, nodes)
        return blocked[jnp.minimum(place, len(blocked) - 1)] == nodes

    return jax.vmap(of_row)(nodes, blocked)


def _check(
    catalogue: CatalogueTrie, hidden: Sequence[np.ndarray], *, num_titles: int, num_beams: int
) -> None:
    """Raises where fewer than `num_titles` titles are left."""
    if num_titles < 1 or num_beams < num_titles:
        raise UserError(
            f"num_titles is {num_titles} and num_beams {num_beams}; expected at least one title, "
            "and as many beams as titles or more"
        )
    for index, titles in enumerate(hidden):
        left = catalogue.num_titles - len(titles)
        if num_titles > left:
            raise UserError(
                f"num_titles is {num_titles}, but instruction {index} leaves {left} of the "
                f"catalogue's {catalogue.num_titles} different titles, {len(titles)} being "
                "excluded; ask for fewer titles or exclude fewer items"
            )


def _sizes(catalogue: CatalogueTrie, *, num_titles: int, num_beams: int) -> _Sizes:
    return _Sizes(
        num_titles=num_titles,
        num_beams=min(num_beams, catalogue.num_titles),
        num_tokens=catalogue.num_tokens,
        root_children=int(catalogue.num_children[0]),
        most_children=int(catalogue.num_children[1:].max()),
    )


def _on_devices(catalogue: CatalogueTrie, mesh: LogicalMesh | None) -> _Trie:
    """Returns the tree, whole on every device."""
    trie = _Trie(*(getattr(catalogue, name) for name in _Trie._fields))
    return jax.device_put(trie) if mesh is None else place_whole(trie, mesh.sharding())


def _padded(rows: Sequence[np.ndarray], number: int, width: int, padding: int = 0) -> np.ndarray:
    """Returns rows as one array, int32 [number, width]."""
    array = np.full((number, width), padding, np.int32)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
