"""Log-likelihoods of many candidates under many instructions, nothing computed twice.

Each instruction is encoded once, its cross-attention keys and values are computed once, and each
distinct prefix of its candidates is decoded once: candidates form a prefix tree. Tokens are side by
side in one flat axis without padding, where all weights are applied; only attention, which has no
weights, sees rows: it gathers them and gives its results back to the flat axis.

The numbers are those of `encoder_decoder.candidate_log_likelihood`, term by term.

Letters of the shapes, beside those of `t5`:
  F flat instruction tokens, I instructions, S tokens of the longest; M flat tokens in memory;
  E flat nodes of the prefix trees, P candidates (paths from root to leaf), T nodes of the longest
  path; K chunks of Q nodes, each of one instruction; L decoder layers.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from instructrec_jax.models.attention import MASKED
from instructrec_jax.models.sharding import is_constrained
from instructrec_jax.models.t5 import T5, Attention, DecoderLayer, Dropout, einsum

KEYS_PER_BLOCK = 256  # measured: attention to more at a time costs twice as much on CPU
NODES_PER_LOGITS = 256  # rows of the only float32 [rows, vocabulary] array there is
AnyArray = Any  # numpy where the host makes it, moved to the device as a whole
_NO_DROPOUT = Dropout(0.0, None)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the decoder's layers need of encoded instructions.

    Attributes:
      keys: [L, M, N * H] in the compute dtype, cross-attention keys of every layer.
      values: the same for values.
    """

    keys: Array
    values: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "begin", "length", "place"],
    meta_fields=["row_length"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatInstructions:
    """Instructions side by side.

    Attributes:
      tokens: int32 [F], 0 after the last instruction.
      begin: int32 [I], where each instruction begins in `tokens`.
      length: int32 [I], its number of tokens; 0 for none.
      place: int32 [F], the index of each token among the [I * S] places of the rows.
      row_length: S.
    """

    tokens: AnyArray
    begin: AnyArray
    length: AnyArray
    place: AnyArray
    row_length: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("nodes", "paths", "targets", "place_in_paths"),
        *("chunk_begin", "place_in_chunks", "memory_begin", "memory_length"),
    ],
    meta_fields=["chunk_length", "row_length"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTrees:
    """The candidates of several instructions as prefix trees, all nodes side by side.

    Attributes:
      nodes: int32 [E], the token read at each node; 0 at a root.
      paths: int32 [P, T], the nodes that a candidate passes, from its root on; any after its end.
      targets: int32 [P, T], the token that follows each of them in the candidate; 0 after its end.
      place_in_paths: int32 [E], one index among [P * T] of the node.
      chunk_begin: int32 [K], the first node of each chunk.
      place_in_chunks: int32 [E], the index of each node among the [K * Q] places of the chunks.
      memory_begin: int32 [K], where the chunk's instruction begins in memory.
      memory_length: int32 [K], its number of tokens; 0 for a chunk without nodes.
      chunk_length: Q.
      row_length: S.
    """

    nodes: AnyArray
    paths: AnyArray
    targets: AnyArray
    place_in_paths: AnyArray
    chunk_begin: AnyArray
    place_in_chunks: AnyArray
    memory_begin: AnyArray
    memory_length: AnyArray
    chunk_length: int
    row_length: int


def encode(model: T5, instructions: FlatInstructions) -> Memory:
    """Returns what the decoder needs of the instructions, [L, F, N * H]."""
    encoder, row_length = model.encoder, instructions.row_length
    rows = instructions.begin[:, None] + jnp.arange(row_length)
    biases = encoder.relpos_bias(row_length), _beyond(instructions.length, row_length)
    attend = functools.partial(
        _attend, queries_at=rows, keys_at=rows, biases=biases, place=instructions.place
    )

    def encoder_layer(x, layer):
        y, attention = layer.pre_attention_layer_norm(x), layer.attention
        x = x + attend(attention, y, keys=attention.key(y), values=attention.value(y))
        return x + layer.mlp(layer.pre_mlp_layer_norm(x), _NO_DROPOUT), None

    x, _ = jax.lax.scan(encoder_layer, model.token_embedder(instructions.tokens), encoder.layers)
    encoded = encoder.encoder_norm(x)

    def cross_keys_and_values(_, layer: DecoderLayer):
        attention = layer.encoder_decoder_attention
        return None, Memory(_flat(attention.key(encoded)), _flat(attention.value(encoded)))

    return jax.lax.scan(cross_keys_and_values, None, model.decoder.layers)[1]


def log_likelihood(model: T5, memory: Memory, trees: PrefixTrees) -> Array:
    """Returns log P(candidate | instruction), the sum over its tokens including EOS.

    Returns:
      float32 [P], natural log; 0 for a path without targets.
    """
    logits, log_z = _logits_of_targets(model, _decode(model, memory, trees), trees)
    is_target = trees.targets > 0
    return jnp.sum(jnp.where(is_target, logits - log_z[trees.paths], 0.0), axis=-1)


def _decode(model: T5, memory: Memory, trees: PrefixTrees) -> Array:
    """Returns what each node has read, float32 [E, D]."""
    decoder, path_length = model.decoder, trees.paths.shape[1]
    causal = jnp.tril(jnp.ones((path_length, path_length), bool))
    attend_path = functools.partial(
        _attend,
        queries_at=trees.paths,
        keys_at=trees.paths,
        biases=[jnp.where(causal, decoder.relpos_bias(path_length), MASKED)],
        place=trees.place_in_paths,
    )
    attend_instruction = functools.partial(
        _attend,
        queries_at=trees.chunk_begin[:, None] + jnp.arange(trees.chunk_length),
        keys_at=trees.memory_begin[:, None] + jnp.arange(trees.row_length),
        biases=[_beyond(trees.memory_length, trees.row_length)],
        place=trees.place_in_chunks,
    )

    def decoder_layer(x, layer_and_memory):
        layer, memory = layer_and_memory
        y, attention = layer.pre_self_attention_layer_norm(x), layer.self_attention
        x = x + attend_path(attention, y, keys=attention.key(y), values=attention.value(y))
        y, attention = layer.pre_cross_attention_layer_norm(x), layer.encoder_decoder_attention
        x = x + attend_instruction(attention, y, keys=memory.keys, values=memory.values)
        return x + layer.mlp(layer.pre_mlp_layer_norm(x), _NO_DROPOUT), None

    x = model.token_embedder(trees.nodes)
    x, _ = jax.lax.scan(decoder_layer, x, (decoder.layers, memory))
    return decoder.decoder_norm(x).astype(jnp.float32)


def _attend(
    attention: Attention,
    queries_from: Array,
    *,
    keys: Array,
    values: Array,
    queries_at: Array,
    keys_at: Array,
    biases: Sequence[Array],
    place: Array,
) -> Array:
    """Attends in rows gathered from flat tokens, and returns to the flat tokens.

    Args:
      attention: the weights.
      queries_from: [X, D], flat tokens.
      keys: [Y, ...], flat keys, N * H elements each.
      values: the same for values.
      queries_at: int32 [R, T], which token stands where in the rows; any for padding.
      keys_at: int32 [R, S], the same for keys.
      biases: float32, to be added to the logits; each broadcasts to [R, N, T, S] and has S keys.
      place: int32 [X], where among the [R * T] places a token stands.

    Returns:
      [X, D].
    """
    _, num_heads, head_dim = attention.query.kernel.shape
    heads = functools.partial(_gather_heads, num_heads=num_heads, head_dim=head_dim)
    query = heads(attention.query(queries_from), queries_at)
    blocks = _blocks(keys_at.shape[1])
    logits = [
        einsum("RNTH,RNSH->RNTS", query, heads(keys, keys_at[:, block])).astype(jnp.float32)
        + sum(bias[..., block] for bias in biases)
        for block in blocks
    ]
    # Dividing after the product with the values, not before: the same numbers, and XLA's CPU code
    # then runs all of it as one loop, twice as fast.
    highest = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in logits])
    weights = [jnp.exp(x - highest) for x in logits]
    mixed = [
        einsum("RNTS,RNSH->RNTH", x.astype(query.dtype), heads(values, keys_at[:, block]))
        for x, block in zip(weights, blocks, strict=True)
    ]
    totals = [jnp.sum(x, axis=-1, keepdims=True) for x in weights]
    found = functools.reduce(jnp.add, mixed) / functools.reduce(jnp.add, totals)
    return attention.out(_flat_heads(found.astype(query.dtype), place))


def _blocks(num_keys: int) -> list[slice]:
    """Returns equal parts of the keys, each small enough for attention to stay in cache."""
    size = math.ceil(num_keys / math.ceil(num_keys / KEYS_PER_BLOCK))
    return [slice(begin, begin + size) for begin in range(0, num_keys, size)]


def _gather_heads(flat: Array, at: Array, *, num_heads: int, head_dim: int) -> Array:
    """Returns [R, N, T, H] of [X, N * H], gathered at [R, T]: the heads move in front for free."""
    at = jnp.minimum(at, len(flat) - 1)
    if is_constrained():  # devices that share the heads each gather their own
        return jnp.moveaxis(flat.reshape(-1, num_heads, head_dim)[at], 2, 1)
    return flat.reshape(-1, head_dim)[at[:, None] * num_heads + jnp.arange(num_heads)[:, None]]


def _flat_heads(rows: Array, place: Array) -> Array:
    """Returns [X, N, H] of [R, N, T, H], gathered at the places [X] among R * T."""
    _, num_heads, length, head_dim = rows.shape
    if is_constrained():
        return jnp.moveaxis(rows, 1, 2).reshape(-1, num_heads, head_dim)[place]
    row, column = jnp.divmod(place, length)
    at = (row[:, None] * num_heads + jnp.arange(num_heads)) * length + column[:, None]
    return rows.reshape(-1, head_dim)[at]


def _flat(heads: Array) -> Array:
    """Returns [X, N, H] as [X, N * H]."""
    return heads.reshape(len(heads), -1)


def _beyond(length: Array, row_length: int) -> Array:
    """Returns the bias [R, 1, 1, S] that hides what is after the end of each row."""
    return jnp.where(jnp.arange(row_length) < length[:, None], 0.0, MASKED)[:, None, None]


def _logits_of_targets(model: T5, hidden: Array, trees: PrefixTrees) -> tuple[Array, Array]:
    """Returns the logits of the targets, float32 [P, T], and log Z of each node, float32 [E].

    All logits of a few nodes at a time: never an array of all.
    """
    kernel = model.logits_dense.weight(hidden.dtype)  # gathered once, not for each block
    num_nodes = math.gcd(len(hidden), NODES_PER_LOGITS)
    blocks = hidden.reshape(-1, num_nodes, hidden.shape[-1])

    def of_block(block_and_first):
        block, first = block_and_first
        logits = model.logits_dense(block, kernel)
        is_here = (trees.paths >= first) & (trees.paths < first + num_nodes)
        found = logits[jnp.where(is_here, trees.paths - first, 0), trees.targets]
        return jnp.where(is_here, found, 0.0), jax.nn.logsumexp(logits, axis=-1)

    firsts = jnp.arange(len(blocks)) * num_nodes
    found, log_z = jax.lax.map(of_block, (blocks, firsts))
    return jnp.sum(found, axis=0), log_z.reshape(-1)  # each target was found in one block
