"""Runs every test on 8 fake CPU devices and gives it clean SeqIO registries."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports jax: the flags are read once, at its start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time goes to compiling: unoptimised, that takes a third.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True)
def clean_seqio() -> Iterator[None]:
    """Takes out of SeqIO's registries, which are global, what a test added to them."""
    if "seqio" not in sys.modules:  # importing it takes seconds, and most tests do without
        yield
        return
    import seqio

    registries = (seqio.MixtureRegistry, seqio.TaskRegistry)
    before = [set(registry.names()) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.names()) - names:
            registry.remove(name)


@pytest.fixture(scope="session")
def toy_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefact A of an invented data set named "toy", reviews included, made once."""
    from instructrec_jax.data.settings import SyntheticSettings
    from instructrec_jax.data.synthetic import write_log
    from instructrec_jax.stages.prepare import prepare

    root = tmp_path_factory.mktemp("toy")
    settings = SyntheticSettings(
        num_users=60,
        num_items=48,
        num_interactions=720,
        seed=7,
        zipf_exponent=0.5,
        format="amazon_2018",
        has_reviews=True,
    )
    write_log(root / "logs", settings)
    prepare(dataset="toy", input_dir=root / "logs", output_dir=root / "prepared")
    return root / "prepared"


@pytest.fixture(scope="session")
def toy_texts(toy_prepared: Path) -> Path:
    """Artefact B of the data set "toy", made once."""
    from instructrec_jax.stages.annotate import annotate

    folder = toy_prepared.parent / "texts"
    annotate(dataset="toy", input_dir=toy_prepared, output_dir=folder)
    return folder


@pytest.fixture(scope="session")
def toy_records(toy_prepared: Path, toy_texts: Path) -> Path:
    """Artefact C of the data set "toy": a TFDS data_dir, made once."""
    from instructrec_jax.stages.build import BuildSettings, build

    settings = BuildSettings(vocab_size=600, records_per_shard=100)
    folder = toy_prepared.parent / "records"
    build(
        dataset="toy",
        input_dir=toy_prepared,
        texts_dir=toy_texts,
        output_dir=folder,
        settings=settings,
    )
    return folder


@pytest.fixture
def toy(toy_records: Path) -> Iterator[Path]:
    """The data set "toy" ready for the pipeline: registered, found, with its vocabulary."""
    from instructrec_jax.pipeline import record_store, registry, vocabulary

    registry.import_task_module("tasks.mixtures", "toy")
    record_store.use_data_dir(toy_records)
    vocabulary.use_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")
    yield toy_records
    vocabulary.use_vocabulary(None)
