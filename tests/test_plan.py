"""`instructrec plan`: sizes, operations, time and price of a run, before any device is there."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from instructrec_jax.cli import plan_verb
from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import Listwise, NegativeLogLikelihood
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel import topologies
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.stages.plan import FITS, PRESETS, TOO_LARGE, UNKNOWN, compiling, plan
from instructrec_jax.stages.plan.compiling import compile_part
from instructrec_jax.stages.plan.estimate import batch_shapes, estimate_step
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train.start import Learning, TrainSettings
from instructrec_jax.training import optimizers, step_costs
from instructrec_jax.training.loop import Periods

TINY = T5Config(
    vocab_size=512,
    emb_dim=64,
    num_heads=8,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
    remat_policy="full",
)
DATA = RunData(data_dir=None, feature_lengths={"inputs": 64, "targets": 16})
RUN = TrainSettings(model_dir="nowhere", mixture="a.b", batch_size=16, train_steps_relative=1000)
PERIODS = Periods(train_steps=None)
GIN = [
    "--gin_file=gin/models/t5_tiny.gin",
    "--gin_file=gin/mixtures/ml_100k.gin",
    "--gin_file=gin/runs/finetune.gin",
]
STEPS = ["--gin.TRAIN_STEPS_RELATIVE=100", "--gin.DATA_DIR='nowhere'"]


def learning(*, model=TINY, objective=None, **mesh):
    """Returns what is learnt, with Adafactor as gin/runs/finetune.gin has it."""
    rate = optimizers.constant(learning_rate=1e-3)
    return Learning(
        model=model,
        objective=objective or NegativeLogLikelihood(),
        optimizer=optimizers.adafactor(learning_rate=rate),
        mesh=MeshSettings(**mesh),
    )


def planned(target, *, run=RUN, programs=None, **settings):
    made = topologies.parse_target(target)
    return plan(learning(**settings), DATA, run, PERIODS, target=made, programs=programs or {})


def test_a_product_costs_two_operations_a_multiplication():
    jaxpr = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 5)))
    assert step_costs.num_flops(jaxpr) == 2 * 2 * 3 * 5


def test_the_body_of_a_scan_counts_once_for_each_round():
    def stack(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.ones((4, 8)), jnp.ones((10, 8, 8))
    assert step_costs.num_flops(jax.make_jaxpr(stack)(x, weights)) == 10 * 2 * 4 * 8 * 8
    # Backward: of each product the gradients of both factors.
    gradient = jax.grad(lambda *args: stack(*args).sum(), argnums=(0, 1))
    assert step_costs.num_flops(jax.make_jaxpr(gradient)(x, weights)) == 3 * 10 * 2 * 4 * 8 * 8


def test_the_longest_alternative_counts():
    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert step_costs.num_flops(jax.make_jaxpr(either)(jnp.ones((4, 4)))) == 2 * 2 * 4**3


def test_a_step_needs_the_operations_that_its_sizes_give():
    target = topologies.parse_target("cpu:8")
    whole = dataclasses.replace(TINY, remat_policy="none")
    mesh = topologies.abstract_mesh(MeshSettings(), target)
    found = estimate_step(learning(model=whole), DATA, RUN, mesh).flops
    rows, inputs, targets = 16, 64, 16
    width, wide, mlp = 64, 8 * 16, 128
    of_mlp, of_attention = 3 * width * mlp, 4 * width * wide
    encoder = inputs * (of_mlp + of_attention + 2 * wide * inputs)
    cross = targets * (2 * width * wide + 2 * wide * inputs) + inputs * 2 * width * wide
    decoder = targets * (of_mlp + of_attention + 2 * wide * targets) + cross
    forward = rows * (2 * (encoder + decoder) + targets * width * 512)
    # Forward and twice as much backward; the position tables' own products are small.
    assert 3 * 2 * forward <= found <= 1.05 * 3 * 2 * forward


def test_an_array_is_held_from_its_making_to_its_last_reading():
    def chain(x):
        y = x @ x
        return (y @ y) @ y

    a, size = jnp.ones((16, 16)), 16 * 16 * 4
    assert step_costs.peak_bytes(jax.make_jaxpr(chain)(a)) == 3 * size


def test_what_is_read_once_element_by_element_takes_no_memory():
    jaxpr = jax.make_jaxpr(lambda x: jnp.exp(x * 2.0) @ x)(jnp.ones((16, 16)))
    assert step_costs.peak_bytes(jaxpr) == 16 * 16 * 4


@pytest.mark.parametrize(
    ("text", "number", "gib"),
    [("v5e:8x8", 64, 15.75), ("v5p:2x2x2", 8, 95.74), ("v6e:4x4", 16, 31.25), ("cpu:8", 8, None)],
)
def test_a_topology_tells_its_devices_and_their_memory(text, number, gib):
    target = topologies.parse_target(text)
    assert (target.num_devices, target.device.memory_gib) == (number, gib)


def test_the_memory_of_a_device_is_given_in_gigabytes():
    assert topologies.parse_target("gpu:8x80GB").memory_bytes == pytest.approx(80e9, abs=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:2x2", "expected a TPU slice"),
        ("v5e", "chips x chips"),
        ("v5e:2x2x2", "chips x chips"),
        ("v5e:3x4", "are even"),
        ("v5p:2x2", "chips x chips x chips"),
        ("gpu:8x80", "expected a TPU slice"),
        ("cpu:0", "0 devices"),
        ("cpu:many", "expected a TPU slice"),
    ],
)
def test_a_wrong_topology_is_told(text, message):
    with pytest.raises(UserError, match=message):
        topologies.parse_target(text)


def test_prices_of_the_user_come_first(tmp_path):
    own = tmp_path / "prices.json"
    own.write_text('{"v5e": {"usd_per_hour": 0.5}}')
    device = topologies.parse_target("v5e:2x2", str(own)).device
    assert (device.usd_per_hour, device.teraflops) == (0.5, 197)
    own.write_text('{"v5e": {"usd": 0.5}}')
    with pytest.raises(UserError, match="gives usd; expected"):
        topologies.parse_target("v5e:2x2", str(own))


# Unoptimised CPU code joins less than the estimate takes for granted, and holds more at a time.
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 1, "fsdp": 8}, {"fsdp": 2, "tensor": 2}])
def test_the_estimate_is_within_a_factor_of_two_of_the_compiler(mesh):
    target = topologies.parse_target("cpu:8x4GB")
    run = learning(**mesh)
    found = compile_part("train", run, DATA, RUN, target=target)["train step"]
    estimated = estimate_step(run, DATA, RUN, topologies.abstract_mesh(run.mesh, target))
    exact = estimated.parameters + estimated.optimizer_state
    assert exact <= found["arguments"] <= exact + 2**16  # and the batch
    assert found["peak_bytes"] / 2 < estimated.peak < found["peak_bytes"] * 2
    assert found["collectives"]["all-reduce"]["held"] > 0


def test_what_is_split_takes_less_of_a_device():
    one, eight = planned("cpu:1x4GB").step, planned("cpu:8x4GB", data=1, fsdp=8).step
    assert eight.parameters == pytest.approx(one.parameters / 8, rel=0.1)
    assert eight.activations < one.activations
    # Each device makes the table of positions itself.
    assert one.flops <= eight.flops <= 1.03 * one.flops


def test_microbatches_take_less_memory_and_as_many_operations():
    in_parts = dataclasses.replace(RUN, num_microbatches=2)
    whole, parts = planned("cpu:1").step, planned("cpu:1", run=in_parts).step
    assert parts.activations < whole.activations
    assert whole.flops <= parts.flops <= 1.03 * whole.flops


def test_a_listwise_batch_has_room_for_the_longest_candidates():
    shapes = batch_shapes(learning(objective=Listwise()), DATA, RUN)
    assert shapes["packed_tokens"] == (16, 1, 256)


def test_steps_give_hours_and_a_price():
    found = planned("v5e:2x2")
    seconds = found.step.flops / (4 * 197e12 * 0.4)
    assert found.hours == pytest.approx(1000 * seconds / 3600)
    assert found.usd == pytest.approx(found.hours * 4 * 1.2)
    assert "not checked since" in found.as_text()


@pytest.mark.parametrize(("peak", "verdict"), [(2**30, FITS), (2**34, TOO_LARGE)])
def test_the_compiler_has_the_last_word(peak, verdict):
    sent = {"all-reduce": {"held": 3, "runs": 48, "bytes": 2**30}}
    figures = {"peak_bytes": peak, "collectives": sent, "seconds": 1.0}
    found = planned("v5e:2x2", programs={"train step": figures})
    assert found.verdict == verdict
    assert "the compiler's count" in found.as_text()
    assert "3 all-reduce (48 runs a step, 1.00 GiB)" in found.as_text()


@pytest.mark.parametrize(
    "said",
    [
        "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.",
        "the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G).",
    ],
)
def test_what_the_compiler_refuses_for_its_size_does_not_fit(said):
    def refuse():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    figures = compiling.compiled_figures("train step", SimpleNamespace(compile=refuse))
    assert figures["peak_bytes"] == 20.5 * 2**30
    found = planned("v5e:2x2", programs={"train step": figures})
    assert found.verdict == TOO_LARGE
    assert "refused by the compiler" in found.as_text()


def test_without_a_memory_there_is_no_verdict():
    found = planned("cpu:8")
    assert found.verdict == UNKNOWN
    assert found.as_text().splitlines()[-1].startswith("verdict")


PRESET_LIST = json.loads(PRESETS.read_text())["presets"]


@pytest.mark.parametrize("preset", PRESET_LIST, ids=lambda preset: preset["file"])
def test_every_preset_fits_by_the_estimate_too(preset, capsys):
    model = preset["file"].rpartition("/")[2].partition("_")[0]
    files = [f"gin/models/flan_t5_{model}.gin", *(flag.partition("=")[2] for flag in GIN[1:])]
    command = [f"--gin_file={name}" for name in [*files, preset["file"]]]
    assert main(["plan", *command, f"--topology={preset['topology']}", "--estimate"]) == 0
    assert "fits" in capsys.readouterr().out


def test_every_file_of_presets_is_in_their_list():
    there = {f"gin/presets/{path.name}" for path in Path("gin/presets").glob("*.gin")}
    assert there == {preset["file"] for preset in PRESET_LIST}


def test_presets_are_named_where_a_run_does_not_fit():
    large = dataclasses.replace(TINY, emb_dim=2048, mlp_dim=5120)
    figures = {"peak_bytes": 2**40, "collectives": {}, "seconds": 1.0}
    found = planned("v5e:2x2", model=large, programs={"train step": figures})
    assert "--gin_file=gin/presets/xl_v5e_8x8.gin" in found.as_text()


def test_the_verb_reads_no_data_and_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = main(["plan", *GIN, "--topology=v5e:2x2", "--estimate", "--json=plan.json", *STEPS])
    assert found == 0
    assert "fits" in capsys.readouterr().out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["verdict"] == FITS
    assert written["steps"] == 100
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json"}


def test_the_verb_ends_with_1_where_a_run_does_not_fit(capsys):
    assert main(["plan", *GIN, "--topology=gpu:1x0.001GB"]) == plan_verb.DOES_NOT_FIT
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.BATCH_SIZE=6", "BATCH_SIZE is 6; expected a multiple"),
        ("--gin.NUM_PARTITIONS=3", "does not fit 4 devices"),
        ("--utilisation=2", "--utilisation is 2.0"),
        ("--json=gs://bucket/plan.json", "--json is 'gs://bucket/plan.json'; expected a path"),
    ],
)
def test_a_run_that_cannot_be_shared_is_told_before_anything_is_compiled(flag, message, capsys):
    assert main(["plan", *GIN, "--topology=v5e:2x2", flag]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed (extra [tpu])",
)
def test_a_run_is_compiled_for_a_slice_that_is_not_there(tmp_path, capsys):
    written = tmp_path / "plan.json"
    quick = ["--gin.DROPOUT_RATE=0.0", "--gin.BATCH_SIZE=4", "--topology=v5e:2x2"]
    assert main(["plan", *GIN, *quick, f"--json={written}"]) == 0
    found = json.loads(written.read_text())["compiled"]
    assert {"train step", "encoding step", "decoding step"} == {*found}
    assert found["train step"]["peak_bytes"] > 2**20
    assert "the compiler's count" in capsys.readouterr().out
