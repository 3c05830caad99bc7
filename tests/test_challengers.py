"""Two models in one service: each user gets one and keeps it, and the report compares them."""

import re

import jax
import numpy as np
import pytest
from serve_toy import Served, save_served_model
from test_feedback import kept
from tiny_model import tiny_model

from instructrec_jax import open_model, rank
from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.serving.engine import _names
from instructrec_jax.serving.feedback import FILE_NAME, FeedbackStore
from instructrec_jax.serving.learning import report_feedback

TITLES = ["Quiet Fox", "Red Moon", "Tiny River", "Blue Bee"]
BODY = {"instruction": "What next?", "candidates": TITLES, "record": True}


@pytest.fixture(scope="module")
def models(toy_records, tmp_path_factory):
    """Two MODEL_DIRs of one name with other weights."""
    root = tmp_path_factory.mktemp("models")
    for run in ("old", "new"):
        (root / run).mkdir()
        save_served_model(toy_records, root / run / "model")
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    other = jax.tree.map(lambda leaf: leaf[..., ::-1], tiny_model(**sizes))
    store = CheckpointStore(root / "new" / "model" / "checkpoints", keep=1)
    store.save(6, {"model": other})
    store.close()
    return [root / run / "model" for run in ("old", "new")]


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    challengers = [str(models[1])]
    with Served(models[0], tmp_path_factory.mktemp("state"), challengers=challengers) as service:
        yield service


def test_each_user_gets_one_of_the_models_and_its_numbers(served, models):
    asked = [("POST", "/v1/rank", BODY | {"user_id": f"u{number}"}) for number in range(16)]
    first, again = served.ask_all(*asked), served.ask_all(*asked)
    names = [answer.json["model"] for answer in first]
    assert set(names) == {"old/model", "new/model"}
    assert names == [answer.json["model"] for answer in again]
    for name, path in zip(("old/model", "new/model"), models, strict=True):
        answer = first[names.index(name)].json["candidates"]
        (expected,) = rank(open_model(path), [BODY["instruction"]], [TITLES])
        assert [c["candidate"] for c in answer] == [c.candidate for c in expected]
        np.testing.assert_allclose(
            [c["log_likelihood"] for c in answer], [c.log_likelihood for c in expected], rtol=1e-5
        )


def test_all_models_are_told_and_documents_are_reranked_by_the_first(served):
    told = [model["id"] for model in served.ask("GET", "/v1/models").json["data"]]
    assert told == ["old/model", "new/model"]
    body = {"query": "something", "documents": TITLES}
    answers = served.ask_all(*[("POST", "/v1/rerank", body)] * 6)
    assert {answer.json["model"] for answer in answers} == {"old/model"}


def test_the_report_compares_models_over_all_their_templates(tmp_path):
    """Kinds of requests that take different templates are no difference of the models."""
    store = FeedbackStore(tmp_path / FILE_NAME)
    for number in range(120):
        model, template = ["old", "new"][number % 2], ("A7", "B7")[number // 2 % 2]
        own, is_liked = kept(number, template, number % 3 == 0, model=model)
        store.add(own)
        if is_liked:
            store.say(own.impression_id, 0, "up", token="t")
    store.close()
    lines = report_feedback(state_dir=str(tmp_path))
    at = next(n for n, line in enumerate(lines) if "minus that of old (" in line)
    found = re.fullmatch(r"  new: 60 users, ([-+]\S+) \[(\S+), (\S+)\]", lines[at + 1])
    assert found and float(found[2]) < float(found[1]) < float(found[3])
    assert float(found[1]) == pytest.approx(0.0, abs=0.05)
    assert any("minus that of old, B7" in line for line in lines[at + 2 :])


def test_models_are_called_by_what_tells_them_apart():
    assert _names(["runs/a", "runs/b"]) == ["a", "b"]
    assert _names(["x/model", "y/model", "y/other"]) == ["x/model", "y/model", "y/other"]
    with pytest.raises(UserError, match="--challengers name one folder twice"):
        _names(["runs/a", "runs/../runs/a"])
