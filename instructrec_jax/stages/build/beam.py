"""`build` as an Apache Beam pipeline: the same shards, written by any of Beam's runners."""

import functools
import logging
from collections.abc import Sequence

from instructrec_jax.errors import UserError
from instructrec_jax.stages.build.shards import Shard, Work, write_shard

logger = logging.getLogger(__name__)


def run_on_beam(
    work: Work, shards: Sequence[Shard], *, runner: str, options: Sequence[str] = ()
) -> None:
    """Writes the shards on Beam's workers; those that are there already are left.

    Every worker writes whole files of its own, with the function that a local run uses, so the
    bytes are the same wherever they were written.

    Args:
      work: what all have in common; its folders must be reachable from every worker.
      shards: what to write.
      runner: "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner" ...
      options: further flags of that runner, such as "--project=my-project".

    Raises:
      UserError: if apache-beam is not installed, or knows no such runner.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "runner needs apache-beam, which is not installed; run "
            "`pip install -c constraints.txt -e '.[beam]'`, or leave --runner out"
        ) from None
    flags = [f"--runner={runner}", *options]
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
    except (ValueError, ImportError) as error:
        raise UserError(f"Beam cannot start with {' '.join(flags)}: {error}") from None
    logger.info("build: %d files on %s", len(shards), runner)
    with pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(shards))
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(functools.partial(write_shard, work))
        )
