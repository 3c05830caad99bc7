"""Installs `instructrec-jax`: the package, the task registry and the gin files."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
GIN_FOLDERS = sorted({path.parent for path in (ROOT / "gin").rglob("*.gin")})

setup(
    name="instructrec-jax",
    version="0.1.0",
    description="Recommendation as instruction following (InstructRec) at TPU scale, in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["instructrec_jax*", "tasks*"]),
    package_data={
        "instructrec_jax": [
            "instructions/*.txt",
            "teacher/extractive/*.txt",
            "teacher/extractive/*.json",
        ]
    },
    # gin/ is a folder of data: it must never become a package (it would shadow gin-config).
    data_files=[
        (
            f"share/instructrec_jax/{folder.relative_to(ROOT)}",
            [str(path.relative_to(ROOT)) for path in sorted(folder.glob("*.gin"))],
        )
        for folder in GIN_FOLDERS
    ],
    entry_points={"console_scripts": ["instructrec = instructrec_jax.cli.main:main"]},
    install_requires=[
        "flax>=0.12",
        "gin-config>=0.5",
        "importlib_resources",  # tensorflow-datasets needs it and does not declare it
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "openai>=3.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pyarrow>=20",
        "rich>=14",
        "scipy>=1.14",
        "sentencepiece>=0.2,<0.2.3",  # later releases need protobuf 7
        "seqio>=0.0.20",
        "tensorboardX>=2.6.5",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
        "tensorstore>=0.1.86",
    ],
    extras_require={
        "test": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff"],
        "beam": ["apache-beam>=2.70"],  # `build --runner`: records by DirectRunner, Dataflow, Flink
        # For tests only.
        "parity": ["peft>=0.21", "safetensors>=0.5", "torch>=2.5", "transformers>=5"],
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]"],
    },
)
