"""Weights of eight bits: rounded to half a step, computed as read, kept where they rank."""

import jax
import numpy as np
import pytest
from checkpoint_toys import random_arrays, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from score_toy import score_toy
from serve_toy import save_served_model
from tiny_model import ranking_batch, requests_of, tiny_config
from train_toy import train_toy

from instructrec_jax import manifest, open_model, score_candidates
from instructrec_jax.checkpoints import native, store
from instructrec_jax.checkpoints.parameters import assemble
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.models import int8
from instructrec_jax.models.adapters import parameters_by_name
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.parallel.placement import bytes_per_device
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.convert import convert
from instructrec_jax.stages.convert.int8_gate import Quantization

CONFIG = tiny_config()
INSTRUCTIONS, CANDIDATES = ["What next after: Red Kite?"], [["Blue Kite", "Moon Doll"]]


@given(
    arrays_of.arrays(
        np.float32,
        arrays_of.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.sampled_from((0, 1)),
)
def test_a_weight_is_kept_to_half_a_step_of_its_output(matrix, axis):
    values, scale = int8.quantize(matrix, axis=axis)
    assert values.dtype == np.int8 and scale.dtype == np.float32
    assert scale.shape == (matrix.shape[1 - axis],)
    wrong = np.abs(int8.dequantize(values, scale, axis=axis) - matrix)
    assert np.all(wrong <= np.expand_dims(scale, axis) * (0.5 + 1e-5) + 1e-38)


def test_the_greatest_weight_of_an_output_has_the_last_step_and_zeros_stay_zeros():
    values, scale = int8.quantize(np.array([[0.5, 0], [-1.27, 0]], np.float32), axis=0)
    assert values.tolist() == [[50, 0], [-127, 0]]
    np.testing.assert_allclose(scale, [0.01, 0], rtol=1e-6)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same arrays as checkpoints in float32 and in int8."""
    root, arrays = tmp_path_factory.mktemp("both"), random_arrays(CONFIG)
    arrays = {name: array * 0.3 for name, array in arrays.items()}
    for name in ("float32", "int8"):
        write(root / name, "native", arrays, config=CONFIG, is_int8=name == "int8")
    return root


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 4, "tensor": 2}])
def test_what_is_computed_are_the_weights_that_a_reader_gets_on_any_mesh(both, axes):
    source, mesh = open_source(both / "int8"), make_mesh(MeshSettings(**axes))
    wanted = abstract_model(CONFIG.init, mesh)
    requests, scorer = requests_of(ranking_batch(0)), Scorer(mesh)
    model = load_model(source, wanted)
    kernel = model.encoder.layers.attention.query
    assert kernel.kernel[...].dtype == np.int8 and kernel.kernel_scale[...].dtype == np.float32
    found = scorer(model, requests)
    expected = scorer(assemble(wanted, source.read), requests)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_memory_is_a_fourth_but_for_the_logits_norms_and_positions():
    shapes = abstract_model(CONFIG.init, make_mesh(MeshSettings()))
    small = int8.int8_shapes(shapes)
    sizes = {}
    for name, param in parameters_by_name(small).items():
        (leaf,) = jax.tree.leaves(param)
        kind = "scale" if name.endswith(("kernel_scale", "embedding_scale")) else leaf.dtype.name
        sizes[kind] = sizes.get(kind, 0) + leaf.size
    kept = [name for name, p in parameters_by_name(small).items() if "int8" not in str(p)]
    assert [name for name in kept if "kernel" in name and "scale" not in name] == [
        "logits_dense.kernel"
    ]
    assert bytes_per_device(small) == 4 * (sizes["float32"] + sizes["scale"]) + sizes["int8"]
    assert bytes_per_device(shapes) == 4 * (sizes["float32"] + sizes["int8"])


@pytest.fixture(scope="module")
def served(toy_records, tmp_path_factory):
    return save_served_model(toy_records, tmp_path_factory.mktemp("served"))


def gated(toy_records, served, output, **changes):
    asked = {"quantize": "int8", "data_dir": str(toy_records), "tasks": ["toy.A7"]}
    quantization = Quantization(**asked | {"num_examples": 16} | changes)
    convert(source_path=str(served), output_dir=str(output), to="native", quantization=quantization)


@pytest.fixture(scope="module")
def converted(toy_records, served, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "int8"
    gated(toy_records, served, output, max_ndcg_loss=1.0)
    return output


def test_both_figures_are_in_the_manifest(converted):
    found = manifest.read_manifest(converted)
    assert sorted(found.measured) == [
        f"{kind}/validation/{name}" for kind in ("float32", "int8") for name in ("hr@1", "ndcg@5")
    ]
    assert all(0 <= value <= 1 for value in found.measured.values())
    assert found.counts["validation examples"] == 16
    manifest.check_files(converted)


def test_it_is_opened_and_scored_with_no_further_flag(toy_records, served, converted, tmp_path):
    texts = open_model(converted), INSTRUCTIONS, CANDIDATES
    (found,) = score_candidates(*texts)
    (before,) = score_candidates(open_model(served), *texts[1:])
    assert texts[0].normaliser == "mean"
    np.testing.assert_allclose(found, before, rtol=0.05)
    assert not np.array_equal(found, before)
    score_toy(toy_records, converted, tmp_path / "e", tasks=("toy.A7.grouped",), num_requests=4)
    convert(source_path=str(converted), output_dir=str(tmp_path / "float"), to="native")
    score_toy(
        *(toy_records, tmp_path / "float", tmp_path / "f"),
        tasks=("toy.A7.grouped",),
        num_requests=4,
    )
    one, other = (read_scores(tmp_path / name).log_likelihood for name in "ef")
    for values, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_what_ranks_worse_by_more_than_the_bound_is_not_written(
    toy_records, served, tmp_path, monkeypatch
):
    def to_nothing(matrix, *, axis):
        return np.zeros(matrix.shape, np.int8), np.ones(matrix.shape[1 - axis], np.float32)

    monkeypatch.setattr(native, "quantize", to_nothing)
    with pytest.raises(UserError, match=r"validation NDCG@5 is 0\.\d+ in float32, .* falls by"):
        gated(toy_records, served, tmp_path / "out", max_ndcg_loss=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--quantize=int8"], "name validation examples with --data_dir and --tasks"),
        (["--quantize=int4"], "--quantize is 'int4'; expected one of 'int8'"),
        (["--data_dir=records"], "--data_dir without --quantize"),
        (["--to=hf", "--quantize=int8", "--data_dir=r", "--tasks", "a.A7"], "--to=native can hold"),
    ],
)
def test_incomplete_flags_are_refused(served, tmp_path, capsys, words, named):
    given = ["convert", str(served), str(tmp_path / "out"), "--to=native", *words]
    assert main.main(given) == 2
    assert named in " ".join(capsys.readouterr().err.split())


def test_int8_learns_nothing_and_is_not_converted_twice(toy_records, converted, tmp_path):
    with pytest.raises(UserError, match="int8, which scores and does not learn"):
        train_toy(toy_records, tmp_path / "m", 8, initial_checkpoint_path=str(converted))
    with pytest.raises(UserError, match="is int8 already"):
        gated(toy_records, converted, tmp_path / "again")


def test_a_checkpoint_that_lacks_a_scale_is_named(both, tmp_path):
    stored = store.stored_arrays(store.resolve_checkpoint(both / "int8"), {"model"})
    arrays = {name.removeprefix(store.MODEL): array.read() for name, array in stored.items()}
    del arrays["decoder.layers.mlp.wo.kernel_scale"]
    saved = store.CheckpointStore(tmp_path / store.LATEST, keep=1)
    saved.save(7, {"model": arrays})
    saved.close()
    with pytest.raises(UserError, match=r"missing: decoder.layers.mlp.wo.kernel_scale"):
        open_source(tmp_path)


def test_shapes_keep_the_split_of_the_outputs():
    shapes = abstract_model(CONFIG.init, make_mesh(MeshSettings(data=1, fsdp=4, tensor=2)))
    layers = int8.int8_shapes(shapes).decoder.layers
    (scale,) = jax.tree.leaves(layers.mlp.wi_0.kernel_scale)
    assert scale.shape == (2, CONFIG.mlp_dim) and "tensor" in str(scale.sharding.spec)
