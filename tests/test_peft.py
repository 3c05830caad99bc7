"""Our low-rank adapters against PEFT's own code, both ways through its files.

Errors as in tests/test_parity.py: 1e-5 in float32, relative to values above 1 and absolute below,
against torch in double precision.
"""

import importlib.util

import jax
import numpy as np
import pytest
from hf_reference import error_of, load_torch, our_layers, random_torch, torch_layers
from tiny_model import random_tokens

from instructrec_jax.checkpoints.adapters import open_peft, write_peft
from instructrec_jax.checkpoints.parameters import config_parameters
from instructrec_jax.checkpoints.source import Source, load_model
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import (
    LORA_A,
    LORA_B,
    FineTuning,
    Lora,
    parameters_by_name,
    with_adapters,
)
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh

# To import it takes 5 s, and every worker of a run reads this file.
IS_THERE = importlib.util.find_spec("peft") is not None
pytestmark = [pytest.mark.parity, pytest.mark.skipif(not IS_THERE, reason="needs peft")]

TOLERANCE = 1e-5
RANK, ALPHA = 3, 12.0
# What PEFT calls the kernels, and what we call them: the usual ones, and every one there is.
TARGETS = {
    "queries and values": (["q", "v"], ["attention.(query|value)"]),
    "every kernel": (
        ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"],
        ["attention", "mlp", "logits_dense"],
    ),
}


SIZES = {
    "vocab_size": 96,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    random_torch(**SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Instructions of several lengths with one target each."""
    rng = np.random.default_rng(3)
    return tuple(
        random_tokens(rng, lengths, width) % SIZES["vocab_size"]
        for lengths, width in (([30, 17, 2], 30), ([8, 1, 5], 8))
    )


def load(source: Source) -> T5:
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    return load_model(source, abstract_model(source.config.init, mesh))


def adapted_torch(base, targets):
    """PEFT's model of the base with adapters that do something."""
    import peft
    import torch

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    model = peft.get_peft_model(load_torch(base), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return model


def with_adapters_of(opened: Source, targets) -> T5:
    """Our model of the base with a checkpoint's adapters beside its kernels, not merged."""
    lora = Lora(rank=RANK, alpha=ALPHA, targets=targets)
    model = with_adapters(load(opened.adapters.base), FineTuning(lora=lora), seed=0)
    params = parameters_by_name(model)
    layers = {parameter.native: parameter.neutral for parameter in config_parameters(opened.config)}
    for name, param in params.items():
        for index, part in enumerate((LORA_A, LORA_B)):
            if name.endswith(part):
                own = [opened.adapters.read(n) for n in layers[name.removesuffix(part) + "kernel"]]
                param[...] = np.stack([pair[index] for pair in own]).reshape(param.shape)
    return model


def logits(model, rows) -> np.ndarray:
    layers = our_layers if isinstance(model, T5) else torch_layers
    return layers(model, *rows)["logits"]


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_that_peft_trained_give_the_same_logits_here(base, rows, targets, tmp_path):
    theirs, ours = TARGETS[targets]
    model = adapted_torch(base, theirs)
    model.save_pretrained(tmp_path)
    opened = open_peft(tmp_path)
    wanted = logits(model.base_model.model.double(), rows)
    assert error_of(logits(load(opened.adapters.base), rows), wanted) > 0.1, "they do something"
    assert error_of(logits(load(opened), rows), wanted) <= TOLERANCE, "merged"
    assert error_of(logits(with_adapters_of(opened, ours), rows), wanted) <= TOLERANCE, "beside"


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_that_we_write_give_the_same_logits_in_peft(base, rows, targets, tmp_path):
    import peft

    model = adapted_torch(base, TARGETS[targets][0])
    model.save_pretrained(tmp_path / "theirs")
    opened = open_peft(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_peft(tmp_path / "ours", opened)
    again = peft.PeftModel.from_pretrained(load_torch(base), tmp_path / "ours").eval()
    weights = dict(again.named_parameters())
    for name, weight in model.named_parameters():
        np.testing.assert_array_equal(weights[name].detach(), weight.detach(), err_msg=name)
    found = logits(again.base_model.model.double(), rows)
    assert error_of(found, logits(with_adapters_of(opened, TARGETS[targets][1]), rows)) <= TOLERANCE


def test_adapters_beside_a_copy_of_another_table_are_refused(base, tmp_path):
    import torch

    model = adapted_torch(base, ["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.base_layer.weight[3, 5] += 0.5
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"another .*lm_head.base_layer.weight than the base"):
        load(open_peft(tmp_path))
