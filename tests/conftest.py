"""Runs every test on 8 fake CPU devices, keeps what is compiled, and shares invented data."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.pop("COLUMNS", None)  # messages are folded alike in every terminal, and in workers
# A job in the background may have been started without Ctrl-C, which tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CACHE_DAYS = 7  # programs of code that is no more are not kept for ever

# Before anything imports jax: the flags are read once, at its start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time goes to compiling. Unoptimised, unfused and in one piece it takes a quarter;
# tests whose last digits count compile as users do (see hf_reference.py).
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests, the workers of a run and the processes they start compile the same small programs: each
# program is compiled once and kept for the next run. JAX reads a damaged entry as none.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# The same examples at every run, and nothing that depends on how busy the machine is.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Removes compiled programs that are older than CACHE_DAYS."""
    oldest = time.time() - CACHE_DAYS * 24 * 3600
    if not hasattr(session.config, "workerinput"):  # not in each of the workers
        for path in COMPILED.glob("*"):
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the documents first, whose test takes minutes: at the end a worker would wait."""
    items.sort(key=lambda item: item.path.name != "test_documents.py")


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
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree, unpacked; made once."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("sdist")

    def left_out(parent: str, names: list[str]) -> set[str]:
        at_top = {".git", ".venv", ".pytest_cache", "build", "dist", "runs", "site", "demo_output"}
        return {"__pycache__"} | (at_top if Path(parent) == root else set())

    shutil.copytree(root, folder / "tree", ignore=left_out, symlinks=True)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    start = [sys.executable, "-c", code, folder]
    subprocess.run(start, cwd=folder / "tree", check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def installed(sdist: Path) -> Path:
    """The programs of an environment in which a wheel of this tree is installed; made once.

    Other packages are those of the tests' own environment; an editable install there is not seen.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wheels, environment = sdist.parent / "wheels", sdist.parent / "environment"
    offline = ["--quiet", "--no-deps", "--no-index"]
    made = [*pip, "wheel", *offline, "--no-build-isolation", f"--wheel-dir={wheels}", sdist]
    subprocess.run(made, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    variables = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    put = [*pip, f"--python={python}", "install", *offline, *wheels.glob("*.whl")]
    subprocess.run(put, check=True)
    return python.parent


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
def toy_matched(toy_prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `baseline matcher` on "toy", trained on copies of its parameters, made once."""
    from test_search_baselines import train

    folder = tmp_path_factory.mktemp("matched") / "copies"
    train(toy_prepared, folder, "matcher")
    return folder


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

    registry.import_task_module("instructrec_jax.tasks.mixtures", "toy")
    record_store.use_data_dir(toy_records)
    vocabulary.use_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")
    yield toy_records
    vocabulary.use_vocabulary(None)
