"""The steps of a set: nothing left out, nothing twice, nothing read after it was overwritten."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec_jax.scoring.prefix_trees import (
    TokenRequest,
    TreeBuilder,
    TreeShape,
    count_nodes,
    reading_order,
)
from instructrec_jax.scoring.scorer import EncodeStep, schedule
from instructrec_jax.scoring.shapes import fit_shapes

texts = st.lists(st.integers(2, 4), max_size=5).map(lambda rest: np.array([*rest, 1], np.int32))
candidates = st.lists(texts, min_size=1, max_size=6)
requests = st.lists(
    st.builds(TokenRequest, request_id=st.just("r"), instruction=texts, candidates=candidates),
    min_size=1,
    max_size=9,
)
sizes = st.fixed_dictionaries(
    {
        "num_tokens": st.integers(6, 30),
        "num_nodes": st.integers(6, 30),
        "num_paths": st.integers(1, 9),
        "num_chunks": st.integers(2, 6),
        "chunk_length": st.integers(3, 9),
    }
)


def read_paths(trees, memory):
    """What each path of a step reads: the instruction in memory, and its candidate."""
    chunks = {}
    for node, place in enumerate(trees.place_in_chunks):
        chunk, offset = divmod(int(place), trees.chunk_length)
        if trees.chunk_begin[chunk] + offset == node and trees.memory_length[chunk]:
            begin = trees.memory_begin[chunk]
            chunks[node] = memory[begin : begin + trees.memory_length[chunk]].tolist()
    for path, targets in zip(trees.paths, trees.targets, strict=True):
        length = int((targets > 0).sum())
        if length:
            nodes, read = path[:length], [0, *targets[: length - 1]]
            assert trees.nodes[nodes].tolist() == read
            (instruction,) = {tuple(chunks[int(node)]) for node in nodes}
            yield list(instruction), targets[:length].tolist()


@settings(max_examples=200)
@given(requests, sizes, st.integers(1, 3))
def test_every_candidate_is_read_once_against_its_own_instruction(requests, sizes, num_groups):
    shapes = dataclasses.replace(fit_shapes(requests), **sizes).grown(requests)
    memory = np.zeros((num_groups, 2 * shapes.num_tokens), np.int32)
    seen = []
    for step in schedule(requests, shapes, num_groups=num_groups):
        if isinstance(step, EncodeStep):
            begin = step.half * shapes.num_tokens
            memory[:, begin : begin + shapes.num_tokens] = step.instructions.tokens
            continue
        assert any(step.paths)
        for group, paths in enumerate(step.paths):
            trees = type(step.trees)(
                **{
                    field.name: value[group] if isinstance(value, np.ndarray) else value
                    for field in dataclasses.fields(step.trees)
                    for value in [getattr(step.trees, field.name)]
                }
            )
            found = list(read_paths(trees, memory[group]))
            assert len(found) == len(paths)
            for (instruction, read), (request, candidate) in zip(found, paths, strict=True):
                assert requests[request].instruction.tolist() == instruction
                assert requests[request].candidates[candidate].tolist() == read
            seen += paths
    assert sorted(seen) == [
        (index, candidate)
        for index, r in enumerate(requests)
        for candidate in range(len(r.candidates))
    ]


def test_groups_of_one_step_keep_to_the_rows_that_its_longest_instruction_leaves():
    requests = [
        TokenRequest(
            request_id="r",
            instruction=np.ones(length, np.int32),
            candidates=[np.ones(1, np.int32)],
        )
        for length in (10, 20, 10, 10)
    ]
    sizes = {"num_tokens": 48, "row_lengths": (16, 32), "rows": (3, 1)}
    shapes = dataclasses.replace(fit_shapes(requests), **sizes)
    steps = [s for s in schedule(requests, shapes, num_groups=2) if isinstance(s, EncodeStep)]
    assert [s.instructions.length.tolist() for s in steps] == [[[20], [10]], [[10, 10, 0], [0] * 3]]


@given(candidates)
def test_nodes_are_the_distinct_prefixes(candidates):
    prefixes = {tuple(tokens[:end]) for tokens in candidates for end in range(len(tokens))}
    assert count_nodes(candidates) == len(prefixes)


@given(candidates)
def test_each_node_lies_at_one_of_its_places(candidates):
    builder = TreeBuilder(
        TreeShape(
            num_nodes=40,
            num_paths=6,
            path_length=6,
            num_chunks=10,
            chunk_length=4,
            row_length=8,
        )
    )
    order = reading_order(candidates)
    assert builder.add(order, begin=3, length=5) == len(candidates)
    trees = builder.arrays()
    for node in range(count_nodes(candidates)):
        assert trees.paths.reshape(-1)[trees.place_in_paths[node]] == node


def test_a_tree_takes_what_it_has_room_for():
    titles = [np.array(title, np.int32) for title in ([5, 6, 1], [5, 7, 1], [8, 1])]
    shape = {"path_length": 4, "num_chunks": 2, "chunk_length": 4, "row_length": 8}
    builder = TreeBuilder(TreeShape(num_nodes=4, num_paths=9, **shape))
    order = reading_order(titles)
    assert builder.add(order, begin=0, length=2) == 2  # nodes: none, 5, 5 6, 5 7
    assert builder.add(order[2:], begin=0, length=2) == 0
    trees = builder.arrays()
    assert trees.nodes.tolist() == [0, 5, 6, 7]
    assert trees.paths[:2].tolist() == [[0, 1, 2, 0], [0, 1, 3, 0]]
    assert trees.targets[:2].tolist() == [[5, 6, 1, 0], [5, 7, 1, 0]]
