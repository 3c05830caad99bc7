"""A model without pretraining starts from what goes together, near a uniform guess."""

import math

import pytest
from tiny_model import tiny_config
from train_toy import train_toy

from instructrec_jax.training.metrics_log import FILE_NAME, read_metrics

# Wider than the rank of what goes together: the toy's titles are of few words.
MODEL = tiny_config(vocab_size=600, emb_dim=256, num_encoder_layers=1, num_decoder_layers=1)


@pytest.mark.slow
def test_two_equal_runs_start_near_a_uniform_guess_and_have_equal_losses(toy_records, tmp_path):
    found = []
    for name in ("one", "two"):
        train_toy(toy_records, tmp_path / name, 2, model=MODEL, warm_start=True)
        rows = read_metrics(tmp_path / name / FILE_NAME)
        found.append([{**row, "time": 0} for row in rows])
    assert found[0] == found[1]
    assert found[0][0]["nll_per_token"] == pytest.approx(math.log(600), abs=4)
    assert found[0][0]["gradient_norm"] < 100
