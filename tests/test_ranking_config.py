"""A checkpoint says what it ranks by and carries its tokenizer: nothing else has to be named."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from score_toy import score_toy
from train_toy import train_toy

from instructrec_jax import open_model, rank
from instructrec_jax.checkpoints.huggingface_tokenizer import write_tokenizer_files
from instructrec_jax.checkpoints.ranking_config import FILE_NAME, find_ranking_config
from instructrec_jax.checkpoints.source import TOKENIZER_FILE, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.scores.parts import SCHEMA
from instructrec_jax.stages.convert import convert
from instructrec_jax.tokenizer import load_vocabulary, tokens_of, train_vocabulary

TITLES = ["Blue Bee", "A very long title of a Red Moon, part 12", "Fox"]


@pytest.fixture(scope="module")
def run(toy_records, tmp_path_factory):
    """A MODEL_DIR that was trained to be ranked by the mean."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_toy(toy_records, folder, 1, objective="listwise", normaliser="mean")
    return folder


def test_a_model_dir_is_ranked_by_what_it_was_trained_by(run, caplog):
    with caplog.at_level("INFO"):
        model = open_model(run)
    assert "ranks by mean, as the checkpoint says" in caplog.text
    (ranked,) = rank(model, ["Choose."], [TITLES])
    lengths = {title: len(tokens_of(model.vocabulary, title)) for title in TITLES}
    for one in ranked:
        assert one.value == pytest.approx(one.log_likelihood / lengths[one.candidate], rel=1e-6)
    (ranked,) = rank(model, ["Choose."], [TITLES], normaliser="sum")
    assert all(one.value == one.log_likelihood for one in ranked)


def test_every_kind_of_export_keeps_it(run, tmp_path):
    source = run
    for to in ("native", "t5x", "hf"):
        convert(source_path=str(source), output_dir=str(tmp_path / to), to=to)
        source = tmp_path / to
        found = open_source(source)
        assert found.ranking == find_ranking_config(run) and found.ranking.normaliser == "mean"
        assert found.tokenizer.read_bytes() == (run / TOKENIZER_FILE).read_bytes()
        assert open_model(source).normaliser == "mean"


def test_scores_name_it_and_are_ranked_by_it(toy_records, run, tmp_path, caplog):
    import pyarrow.parquet as pq

    with caplog.at_level("INFO"):
        score_toy(toy_records, run, tmp_path / "mean")
        score_toy(toy_records, run, tmp_path / "sum", normaliser="sum")
    assert "candidates are ranked by mean, as the checkpoint says" in caplog.text
    assert "ranked by sum, as asked; the checkpoint was trained to be ranked by mean" in caplog.text
    for name in ("mean", "sum"):
        assert read_manifest(tmp_path / name).settings["normaliser"] == name
        paths = sorted((tmp_path / name).glob("*.parquet"))
        assert paths
        for path in paths:
            table = pq.read_table(path, schema=SCHEMA)
            metadata = json.loads(pq.read_schema(path).metadata[b"instructrec"])
            assert metadata["normaliser"] == name
            for row in table.to_pylist():
                values = np.array(row["log_likelihood"], np.float32)
                if name == "mean":
                    values = (values / np.array(row["num_tokens"])).astype(np.float32)
                best = np.argsort(row["rank"], kind="stable")
                assert (np.diff(values[best]) <= 0).all()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "expected"),
        ('{"normaliser": "sum"}', "missing 2"),
        ('{"normaliser": "best", "feature_lengths": {}, "extra_ids": 0}', "normaliser is 'best'"),
        ('{"normaliser": ["sum"], "feature_lengths": {}, "extra_ids": 0}', "normaliser is"),
        ('{"normaliser": "sum", "feature_lengths": {"a": -1}, "extra_ids": 0}', "feature_lengths"),
        ('{"normaliser": "sum", "feature_lengths": {}, "extra_ids": true}', "extra_ids is True"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, named):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=f"(?s){FILE_NAME}.*{named}.*copy it again"):
        find_ranking_config(tmp_path)


# What a title may hold that a tokenizer may read in another way; no names of special pieces.
_TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), max_size=40
)


@pytest.fixture(
    scope="module", params=[(0, []), (3, []), (2, [*TITLES, "Super  Kart: 64!", "Kart"])]
)
def tokenizers(request, tmp_path_factory):
    """Our reader of a SentencePiece model, and Hugging Face's of the files beside it."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [f"{name} {number}" for name in (*TITLES, "Super Kart: 64!") for number in range(20)]
    extra_ids, whole = request.param
    train_vocabulary(lines, folder / TOKENIZER_FILE, vocab_size=400, whole=whole)
    write_tokenizer_files(folder, folder / TOKENIZER_FILE, extra_ids=extra_ids)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    ours = load_vocabulary(folder / TOKENIZER_FILE, extra_ids=extra_ids)
    return ours, auto.from_pretrained(folder)


@pytest.mark.parity
@given(text=_TEXTS)
@example(text="  two  blanks ")
@example(text="Blue Bee 12\t½ ﬁ \u200b 😀😀 日本語")
@example(text="▁")
@example(text="  Super Kart: 64! Blue Bee; Blue Bees, Kart Karts xKart Foxes Fox")
@example(text="Super  Kart: 64!")
def test_hugging_face_reads_an_exported_tokenizer_as_we_do(tokenizers, text):
    ours, theirs = tokenizers
    found = theirs(text).input_ids
    assert len(theirs) == ours.get_piece_size()
    assert found == [*ours.encode(text), 1]
    if "extra_id" not in text:
        assert theirs.decode(found, skip_special_tokens=True) == ours.decode(ours.encode(text))


@pytest.mark.parity
def test_a_run_exported_to_hugging_face_has_the_tokenizer_of_the_run(run, tmp_path):
    auto = pytest.importorskip("transformers").AutoTokenizer
    convert(source_path=str(run), output_dir=str(tmp_path / "hf"), to="hf")
    theirs = auto.from_pretrained(tmp_path / "hf")
    ours = open_model(run).vocabulary
    for title in TITLES:
        assert theirs(title).input_ids == list(tokens_of(ours, title))
