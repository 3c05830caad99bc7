"""The shared vocabulary: found at first use, trained the same each time, refused when unfit."""

import itertools
import os

import pytest
import sentencepiece
import seqio
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from instructrec_jax import tokenizer
from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import quiet_imports, vocabulary
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary

SYLLABLES = ("ba", "ko", "li", "mu", "re", "sta", "ti", "vo", "zu", "dra")
CORPUS = [f"{a}{b} {c}{a} {b}{c}{b}" for a, b, c in itertools.permutations(SYLLABLES, 3)]


@pytest.fixture(autouse=True)
def forget_choice():
    yield
    vocabulary.use_vocabulary(None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "toy.model"
    tokenizer.train_vocabulary(CORPUS, path, vocab_size=320)
    return path


def test_all_instances_follow_the_choice_of_the_run(model, tmp_path):
    early = CorpusVocabulary()
    assert early == CorpusVocabulary()
    vocabulary.use_vocabulary(model)
    assert early.vocab_size == 320
    other = tmp_path / "other.model"
    tokenizer.train_vocabulary(CORPUS, other, vocab_size=300)
    vocabulary.use_vocabulary(other)
    assert early.vocab_size == 300
    assert early.tf_tokenizer.vocab_size().numpy() == 300


def test_whole_texts_are_one_token_behind_a_blank_alike_in_python_and_tensorflow(tmp_path):
    whole = ["bako  liba", "Bako ½; x (2)", "bako liba mure", "bako  liba", " "]
    path = tmp_path / "whole.model"
    size = tokenizer.train_vocabulary(CORPUS, path, vocab_size=320, whole=whole)
    loaded = tokenizer.load_vocabulary(path)
    assert size == loaded.get_piece_size() == 320 + 3
    for text in whole[:3]:
        assert len(loaded.encode(text)) == 1
    vocabulary.use_vocabulary(path)
    text = "mu bako liba; bako liba mure,Bako 1\u20442; x (2) bako lib xbako liba Bako ½; x (2)"
    assert loaded.encode(text) == CorpusVocabulary().encode(text)
    assert [loaded.id_to_piece(i) for i in loaded.encode(text) if i in range(3, 6)] == [
        "▁bako▁liba",
        "▁bako▁liba▁mure",
        "▁Bako▁1\u20442;▁x▁(2)",
    ]


def test_extra_ids_come_after_the_pieces(model):
    vocabulary.use_vocabulary(model, extra_ids=100)
    assert CorpusVocabulary().vocab_size == 420


def test_without_tensorflow_a_text_has_the_same_tokens_its_sentinels_included(model):
    vocabulary.use_vocabulary(model, extra_ids=100)
    loaded = tokenizer.load_vocabulary(model, extra_ids=100)
    text = "bako <extra_id_0> liba <extra_id_99>"
    assert loaded.encode(text) == CorpusVocabulary().encode(text)
    assert {419, 320} <= set(loaded.encode(text))


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "toy.model"
    for size in (300, 320):
        tokenizer.train_vocabulary(CORPUS, path, vocab_size=size)
        vocabulary.use_vocabulary(path)
        assert CorpusVocabulary().vocab_size == size


def test_a_file_that_holds_its_sentinels_gets_no_more_of_them(model, tmp_path):
    """T5's two public files: 32,000 pieces, and the same with 100 sentinels at their end."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    for index in reversed(range(100)):
        proto.pieces.add(piece=f"▁<extra_id_{index}>", type=4)
    (tmp_path / "100extra.model").write_bytes(proto.SerializeToString())
    vocabulary.use_vocabulary(model, extra_ids=100)
    outside = CorpusVocabulary().encode("bako liba")
    vocabulary.use_vocabulary(tmp_path / "100extra.model", extra_ids=100)
    assert CorpusVocabulary().vocab_size == 420
    assert CorpusVocabulary().encode("bako liba") == outside


def test_the_default_is_the_file_that_t5_publishes():
    assert "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model" in str(CorpusVocabulary())
    assert CorpusVocabulary().extra_ids == 100


def test_tensorflow_and_python_tokenise_alike_and_every_character_survives(model):
    vocabulary.use_vocabulary(model)
    words = CorpusVocabulary()
    for text in ("bako liba", "kolimu; drazu?", "naïve 漢字 ½", ""):
        ids = words.encode(text)
        assert words.encode_tf(tf.constant(text)).numpy().tolist() == ids
        assert words.unk_id not in ids
    assert words.decode(words.encode("naïve 漢字")) == "naïve 漢字"
    assert (words.pad_id, words.eos_id, words.unk_id) == (0, 1, 2)


def test_training_again_gives_the_same_bytes(model, tmp_path):
    tokenizer.train_vocabulary(iter(CORPUS), tmp_path / "again.model", vocab_size=320)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_pieces_do_not_cross_blanks(model):
    """The token budget counts on it."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for index in range(pieces.get_piece_size()):
        assert "▁" not in pieces.id_to_piece(index)[1:]


def test_a_small_corpus_gives_fewer_pieces(tmp_path):
    path = tmp_path / "a.model"
    found = tokenizer.train_vocabulary(CORPUS, path, vocab_size=5000)
    assert 259 < found < 5000
    assert found == tokenizer.check_vocabulary(path).get_piece_size()
    assert tokenizer.train_vocabulary(CORPUS, tmp_path / "b.model", vocab_size=300) == 300


def test_too_few_pieces_are_refused_with_the_smallest_number(tmp_path):
    with pytest.raises(UserError, match=r"vocab_size=100 .* at least \d+"):
        tokenizer.train_vocabulary(CORPUS, tmp_path / "a.model", vocab_size=100)


def test_the_least_size_that_a_message_names_is_enough_beside_whole_titles(tmp_path):
    how = {"path": tmp_path / "a.model", "whole": CORPUS[:2]}
    with pytest.raises(UserError, match="must be at least") as refused:
        tokenizer.train_vocabulary(CORPUS, vocab_size=100, **how)
    least = int(str(refused.value).split()[-1])
    tokenizer.train_vocabulary(CORPUS, vocab_size=least, **how)
    with pytest.raises(UserError, match=f"must be at least {least}"):
        tokenizer.train_vocabulary(CORPUS, vocab_size=least - 1, **how)


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="no text"):
        tokenizer.train_vocabulary(["", " "], tmp_path / "a.model", vocab_size=300)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.model does not exist"):
        vocabulary.use_vocabulary(tmp_path / "missing.model")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        vocabulary.use_vocabulary(path)


def test_other_special_ids_are_refused(tmp_path):
    path = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(path), vocab_size=30, minloglevel=2
    )
    with pytest.raises(UserError, match=r"pad, eos, unk = \(-1, 2, 0\); expected \(0, 1, 2\)"):
        tokenizer.copy_vocabulary(f"{path}.model", tmp_path / "copy.model")
    assert not (tmp_path / "copy.model").exists()


def test_seqio_takes_it_for_a_vocabulary(model):
    vocabulary.use_vocabulary(model)
    feature = seqio.Feature(CorpusVocabulary())
    assert feature.vocabulary == seqio.Feature(CorpusVocabulary()).vocabulary


def test_start_up_notes_are_held_back_and_real_messages_are_not(capfd):
    with pytest.raises(ImportError), quiet_imports():
        os.write(2, b"I0000 00:00:17.1 12 port.cc:153] note\nE0000 00:00 broken\nplain\n")
        raise ImportError
    assert capfd.readouterr().err == "E0000 00:00 broken\nplain\n"
