"""Every stage on an invented log, each into a folder below the working one.

As a program, since an order that depends on the process shows only between processes:
`python tests/rerun_toy.py`.
"""

from score_toy import score_toy
from train_toy import train_toy

from instructrec_jax.data.settings import SyntheticSettings
from instructrec_jax.stages.annotate import annotate
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.convert import convert
from instructrec_jax.stages.data import synthesize
from instructrec_jax.stages.prepare import prepare
from instructrec_jax.stages.report import report
from instructrec_jax.stages.report.given import Beside


def run_all() -> None:
    """Runs the stages."""
    log = SyntheticSettings(
        num_users=40, num_items=36, num_interactions=480, format="amazon_2018", has_reviews=True
    )
    synthesize(output_dir="logs", settings=log)
    prepare(dataset="toy", input_dir="logs", output_dir="prepared")
    annotate(dataset="toy", input_dir="prepared", output_dir="texts")
    build(
        dataset="toy",
        input_dir="prepared",
        texts_dir="texts",
        output_dir="records",
        settings=BuildSettings(vocab_size=600, records_per_shard=100),
    )
    train_toy("records", "model", 3)
    convert(source_path="model", output_dir="converted", to="hf")
    for split in ("validation", "test"):
        score_toy("records", "model", split, split=split)
    report(
        dataset="toy",
        prepared_dir="prepared",
        scores={"model": ["validation", "test"]},
        output_dir="report",
        beside=Beside(texts_dir="texts"),
    )


if __name__ == "__main__":
    run_all()
