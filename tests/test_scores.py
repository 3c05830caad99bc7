"""Score files: what is written comes back, and what cannot be read is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.damage import Damage
from instructrec_jax.errors import UserError
from instructrec_jax.scores import parts as score_files
from instructrec_jax.scores.parts import ScoredRequest, Shard, part_name, read_scores, shards_of

TOLD = {"system": "toy", "family": "sequential", "query": "none"}


def row(name: str, size: int) -> dict:
    return {
        "example_id": name,
        "template_id": "A7",
        "candidate_ids": np.arange(size, dtype=np.int32),
        "log_likelihood": -np.arange(size, dtype=np.float32),
        "num_tokens": np.full(size, 2, np.int32),
        "num_chars": np.full(size, 9, np.int32),
        "last_round": np.ones(size, np.int32),
        "num_views": 1,
        "target_index": size - 1,
    }


def test_scores_come_back_as_they_were_written(tmp_path):
    for index, names in enumerate((["a", "b"], ["c"])):
        path = tmp_path / part_name("A7", index)
        rows = [row(name, size) for size, name in enumerate(names, start=2 + index)]
        score_files.write_part(path, rows, {**TOLD, "checkpoint_step": 7})
    found = read_scores(tmp_path)
    assert found.example_id == ["a", "b", "c"] and found.template_id == ["A7"] * 3
    assert [values.tolist() for values in found.candidate_ids] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert found.log_likelihood[1].dtype == np.float32
    assert found.log_likelihood[1].tolist() == [0, -1, -2]
    assert found.target_index.tolist() == [1, 2, 2]
    assert found.metadata == {**TOLD, "checkpoint_step": 7}
    assert found.scenarios == {"A7": "sequential"}
    shards = [Shard(template="A7", index=index, numbers=range(0)) for index in (0, 1)]
    assert score_files.count_rows(tmp_path, shards) == (3, Damage())
    assert found.prior_log_likelihood == [None] * 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a readable Parquet"),
        (lambda path: path.write_text("{}"), "not a readable Parquet"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "not a part written by"),
    ],
)
def test_an_unreadable_part_is_named(tmp_path, damage, message):
    path = tmp_path / part_name("A7", 0)
    score_files.write_part(path, [row("a", 2)], TOLD)
    damage(path)
    with pytest.raises(UserError, match=rf"A7\.part-00000\.parquet is {message}"):
        read_scores(tmp_path)


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(UserError, match="no scores in"):
        read_scores(tmp_path)


def scored(name: str, values: list[list[float]], last_round: tuple[int, ...]) -> ScoredRequest:
    """A request with the given log-likelihoods of each candidate: its own and the prior's."""
    num_tokens = np.arange(len(values), dtype=np.int32) + 2
    columns = np.array(values, np.float32)
    return ScoredRequest(
        request_id=name,
        candidate_ids=num_tokens.astype(np.int64) + 2**40,
        log_likelihood=columns[:, 0],
        prior_log_likelihood=columns[:, 1] if columns.shape[1] > 1 else None,
        num_tokens=num_tokens,
        num_chars=num_tokens * 3,
        last_round=np.array(last_round, np.int32),
        num_views=3,
    )


def test_a_row_tells_ids_counts_and_the_rank_of_each_candidate(tmp_path):
    rows = score_files.score_rows("A7", [scored("a", [[-3.0], [-1.0], [-3.0]], (1, 1, 1))])
    score_files.write_part(tmp_path / part_name("A7", 0), rows, TOLD)
    table = pq.read_table(tmp_path / part_name("A7", 0))
    assert table["rank"].to_pylist() == [[3, 1, 3]], "ties count against a candidate"
    assert table["num_tokens"].to_pylist() == [[2, 3, 4]]
    assert table["candidate_ids"].to_pylist() == [[2**40 + 2, 2**40 + 3, 2**40 + 4]]
    assert table["prior_log_likelihood"].to_pylist() == [None]
    assert table["num_views"].to_pylist() == [3]
    assert read_scores(tmp_path).num_chars[0].tolist() == [6, 9, 12]


def test_a_row_tells_of_rounds_and_of_the_prior(tmp_path):
    values = [[-3.0, -5.0], [-1.0, -6.0], [-4.0, -7.0]]
    rows = score_files.score_rows("A7", [scored("a", values, (2, 1, 2))])
    score_files.write_part(tmp_path / part_name("A7", 0), rows, TOLD)
    found = read_scores(tmp_path)
    assert rows[0]["rank"].tolist() == [1, 3, 2], "who went on ranks first"
    assert found.last_round[0].tolist() == [2, 1, 2] and found.num_views.tolist() == [3]
    assert found.prior_log_likelihood[0].tolist() == [-5.0, -6.0, -7.0]


def test_what_is_no_number_is_never_written():
    with pytest.raises(UserError, match=r"request 'a' has a log-likelihood that is not a number"):
        score_files.score_rows("A7", [scored("a", [[-1.0], [np.nan]], (1, 1))])


def test_parts_are_read_by_template_and_number(tmp_path):
    for template, index in (("B7.specific", 0), ("A7", 100000), ("A7", 99999)):
        path = tmp_path / part_name(template, index)
        score_files.write_part(path, [row(f"{template} {index}", 2)], TOLD)
    found = read_scores(tmp_path)
    assert found.example_id == ["A7 99999", "A7 100000", "B7.specific 0"]


def test_parts_of_two_runs_in_one_folder_are_told_apart(tmp_path):
    for index in (0, 1):
        path = tmp_path / part_name("A7", index)
        score_files.write_part(path, [row("a", 2)], {**TOLD, "work": f"run {index}"})
    with pytest.raises(UserError, match=r"part-00001\.parquet is a part of another run than A7"):
        read_scores(tmp_path)


def test_what_was_left_out_is_counted_over_parts(tmp_path):
    for index in (0, 1):
        damage = Damage(counts={"not_json": 4}, examples={"not_json": ["f line 1"] * 4})
        score_files.write_part(tmp_path / part_name("A7", index), [row("a", 2)], TOLD, damage)
    shards = shards_of("A7", num_requests=9, size=5)
    num_rows, found = score_files.count_rows(tmp_path, shards)
    assert num_rows == 2 and found.counts == {"not_json": 8}
    assert found.examples == {"not_json": ["f line 1"] * 5}


@given(st.integers(0, 60), st.integers(1, 20))
def test_every_request_is_in_one_shard(num_requests, size):
    shards = list(shards_of("A7", num_requests=num_requests, size=size))
    assert [n for shard in shards for n in shard.numbers] == list(range(num_requests))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(len(shard.numbers) == size for shard in shards[:-1])


def test_parts_of_an_earlier_format_are_refused_with_what_to_run(tmp_path):
    path = tmp_path / part_name("A7", 0)
    score_files.write_part(path, [row("a", 2)], TOLD)
    table = pq.read_table(path)
    names = [name.replace("num_views", "num_ballots") for name in table.column_names]
    metadata = table.schema.metadata
    pq.write_table(table.rename_columns(names).replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match=r"another version .* run `instructrec score` again"):
        read_scores(tmp_path)


def test_a_part_says_which_system_family_and_query_it_is_of(tmp_path):
    with pytest.raises(ValueError, match=r"lack \['family', 'query'\]"):
        score_files.write_part(tmp_path / part_name("A7", 0), [row("a", 2)], {"system": "toy"})


def test_the_family_and_the_query_of_a_template_are_its_scenario(tmp_path):
    for template, told in (("P3", {"family": "play"}), ("B7", {"query": "specific"})):
        path = tmp_path / part_name(template, 0)
        rows = [{**row("a", 2), "template_id": template}]
        score_files.write_part(path, rows, {**TOLD, **told})
    found = read_scores(tmp_path)
    assert found.scenarios == {"B7": "sequential.specific", "P3": "play"}
    assert found.metadata == {"system": "toy"}, "what the templates have in common"


def test_a_system_without_tokens_has_neither_tokens_nor_rounds(tmp_path):
    request = ScoredRequest(
        request_id="a", candidate_ids=np.array([4, 2]), log_likelihood=np.array([0.5, 3.0])
    )
    path = tmp_path / part_name("popularity", 0)
    score_files.write_part(path, score_files.score_rows("popularity", [request]), TOLD)
    found = read_scores(tmp_path)
    assert found.num_tokens == found.num_chars == found.prior_log_likelihood == [None]
    assert found.last_round[0].tolist() == [1, 1] and found.target_index.tolist() == [-1]
    assert pq.read_table(path)["rank"].to_pylist() == [[2, 1]]
