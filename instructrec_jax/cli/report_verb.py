"""`instructrec report`: scores -> tables with intervals and baselines."""

import argparse

from instructrec_jax.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    flags = {
        "dataset": ("NAME", "name of the dataset, such as ml_100k"),
        "prepared_dir": ("DIR", "folder that `instructrec prepare` wrote"),
        "validation_scores_dir": (
            "DIR",
            "scores of the validation split: they choose the template",
        ),
        "test_scores_dir": ("DIR", "scores of the test split: they give the numbers"),
        "output_dir": ("DIR", "folder to write, which must be new, empty or hold the same report"),
    }
    for name, (metavar, text) in flags.items():
        parser.add_argument(f"--{name}", required=True, metavar=metavar, help=text)
    parser.add_argument(
        "--metrics_file",
        metavar="FILE",
        help="metrics.jsonl in the training run's MODEL_DIR, for the training curve",
    )
    parser.add_argument(
        "--normalisers",
        nargs="+",
        default=["sum"],
        metavar="NAME",
        help="sum, mean (per token), char (per character), pmi (needs scores WITH_PRIOR): what "
        "candidates may be ranked by; validation chooses (default sum)",
    )


def _run(options: argparse.Namespace) -> None:
    from instructrec_jax.stages import report

    report.report(
        dataset=options.dataset,
        prepared_dir=options.prepared_dir,
        validation_scores_dir=options.validation_scores_dir,
        test_scores_dir=options.test_scores_dir,
        output_dir=options.output_dir,
        metrics_file=options.metrics_file,
        normalisers=options.normalisers,
    )


REPORT = Verb(
    name="report",
    summary="scores -> HR and NDCG with intervals, beside the baselines",
    description=(
        "Chooses the best template of each scenario on validation, and reports HR@1,3,5 and\n"
        "NDCG@3,5 on test with 95% bootstrap intervals, beside a random, a popularity and a\n"
        "co-occurrence scorer. Writes report.json, report.md, report.txt and training_curve.png.\n"
        "\nScores are those of `instructrec score`, or what T5X's own infer wrote in score mode\n"
        "for the .rank tasks (gin/t5x/score.gin)."
    ),
    example=(
        "instructrec report --dataset=ml_100k --prepared_dir=runs/prepared \\\n"
        "    --validation_scores_dir=runs/scores/validation --test_scores_dir=runs/scores/test \\\n"
        "    --metrics_file=runs/model/metrics.jsonl --output_dir=runs/report"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
