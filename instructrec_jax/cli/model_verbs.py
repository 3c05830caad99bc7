"""The verbs that train, measure and convert models, and those that report on them."""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.cli import messages
from instructrec_jax.cli.verb import Verb, add_gin_flags, bindings_of, print_result
from instructrec_jax.errors import UserError
from instructrec_jax.settings import address_problem

WOULD_STOP = 1  # a dry run's exit code
_MAX_DEVICES = 1024
GIN_HELP = (
    "Configured by gin files: one for the model's size, one for the task mixture, one for the\n"
    "kind of run. Files are found as named: in the working folder, else among ours.\n"
    "--gin.NAME=VALUE sets a macro (MODEL_DIR) or a binding (with a dot), over all files;\n"
    "strings need quotes that the shell leaves in place: --gin.MODEL_DIR='\"runs/a\"'.\n"
    "`instructrec help t5x` shows what T5X's bindings, flags and files are here."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GinVerb(Verb):
    """A verb whose function gets every argument from gin files and `--gin.NAME=VALUE`.

    Attributes:
      folder: the macro of the folder that is its result; "" where the function returns metrics.
    """

    folder: str = ""

    takes_gin = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags that all such verbs share."""
        add_gin_flags(parser)
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="print the resolved config, and in five lines what would be done and what is "
            "missing; exit with 0 if the run would start, else with 1",
        )
        parser.add_argument(
            "--num_devices",
            type=int,
            metavar="N",
            help="with --dry_run: as if there were N devices, whatever this machine has",
        )
        parser.add_argument(
            "--multiprocess_gpu",
            action="store_true",
            help="refuse to run alone, if neither the flags below nor the environment say which "
            "processes run together (T5X's)",
        )
        parser.add_argument(
            "--coordinator_address",
            metavar="HOST:PORT",
            help="where process 0 waits for the others; in place of JAX_COORDINATOR_ADDRESS",
        )
        parser.add_argument(
            "--process_count",
            type=int,
            metavar="N",
            help="processes that run together; in place of JAX_NUM_PROCESSES",
        )
        parser.add_argument(
            "--process_index",
            type=int,
            metavar="I",
            help="which of them this is, from 0 on; in place of JAX_PROCESS_ID",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Runs the function as gin configures it; prints its result, or the config of a dry run."""
        if not options.gin_file:
            raise UserError(
                f"`instructrec {self.name}` needs at least one --gin_file; "
                f"see `instructrec {self.name} --help`"
            )
        if options.num_devices is not None:
            _pretend_devices(options.num_devices, is_dry=options.dry_run)
        function = self.load()
        from instructrec_jax.cli import gin_config
        from instructrec_jax.parallel import processes

        index = 0
        if options.num_devices is None:
            index = processes.initialise(
                options.coordinator_address,
                options.process_count,
                options.process_index,
                is_wanted=options.multiprocess_gpu,
            )
        messages.speak_as(index)
        with processes.together():
            returned = gin_config.run_with_gin(
                function,
                gin_file_names=options.gin_file,
                bindings=bindings_of(options),
                search_paths=options.gin_search_paths,
                dry_run=options.dry_run,
            )
        if index:
            return 0
        if options.dry_run:
            print_result(f"{gin_config.resolved_config()}\n{returned.as_text()}")
            return 0 if returned.would_start else WOULD_STOP
        elif self.folder:
            print_result(gin_config.macro_value(self.folder))
        else:
            print_result(json.dumps(returned, indent=2))
        return 0


def _pretend_devices(number: int, *, is_dry: bool) -> None:
    """Has JAX, which has looked for no device yet, take the CPU for as many."""
    if not is_dry:
        raise UserError("--num_devices belongs to --dry_run: a run takes the devices that it finds")
    if not 1 <= number <= _MAX_DEVICES:
        raise UserError(f"--num_devices is {number}; expected 1 to {_MAX_DEVICES}")
    flags_before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags_before} --xla_force_host_platform_device_count={number}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    if jax := sys.modules.get("jax"):  # the flags of `score` import it, which reads this once
        jax.config.update("jax_platforms", "cpu")


class _DemoVerb(Verb):
    """The demo, whose stages train and score as gin files configure them."""

    def more_arguments(self, options: argparse.Namespace) -> dict[str, Any]:
        """Returns the two stages."""
        from instructrec_jax.cli import gin_config
        from instructrec_jax.stages import score, train

        return {
            "train": functools.partial(gin_config.run_with_macros, train.train),
            "score": functools.partial(gin_config.run_with_macros, score.score),
        }


class _ReproduceVerb(_DemoVerb):
    """The tables of the paper, whose stages gin files configure too."""

    def more_arguments(self, options: argparse.Namespace) -> dict[str, Any]:
        """Returns the stages, and what plans a training run."""
        from instructrec_jax.cli import gin_config
        from instructrec_jax.stages.baseline import trained

        baseline = functools.partial(gin_config.run_with_macros, trained.train_and_score)
        return {**super().more_arguments(options), "baseline": baseline, "plan": _planned}


def _planned(gin_files: Sequence[str], *, topology: str, **macros: Any) -> str:
    """Returns the plan of a training run, estimated."""
    from instructrec_jax.cli import gin_config
    from instructrec_jax.parallel import topologies
    from instructrec_jax.stages.plan import plan
    from instructrec_jax.stages.train import train

    not_read = dict.fromkeys(("DATA_DIR", "MODEL_DIR", "INITIAL_CHECKPOINT_PATH"), "not read")
    found = gin_config.arguments_with_gin(
        train,
        gin_file_names=gin_files,
        bindings=[f"{name}={value!r}" for name, value in {**not_read, **macros}.items()],
    )
    run = {name: found[name] for name in ("learning", "data", "run", "periods")}
    return plan(**run, target=topologies.parse_target(topology), programs={}).as_text()


class _AddSystem(argparse.Action):
    """Adds "NAME=VALIDATION:TEST" to a dict of (validation, test) by name; or "NAME=TEST".

    Further runs after commas are "NAME#2" and so on.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, _, rest = values.partition("=")
        if problem := address_problem(rest):
            raise UserError(f"--scores of {name!r} {problem}")
        runs = [run.split(":") for run in rest.split(",")]
        if not name or "#" in name or any(len(paths) > 2 or not all(paths) for paths in runs):
            raise UserError(
                f"--scores is {values!r}; expected NAME=VALIDATION:TEST, such as "
                "model=runs/scores/validation:runs/scores/test (no colon inside a path), or "
                "NAME=TEST of a system with one template; commas between runs of one system"
            )
        found = {**getattr(namespace, self.dest, {})}
        if name in found:
            raise UserError(f"--scores names the system {name!r} twice; give each its own name")
        names = [name, *(f"{name}#{number}" for number in range(2, len(runs) + 1))]
        setattr(namespace, self.dest, found | dict(zip(names, runs, strict=True)))


class SystemsVerb(Verb):
    """A verb that takes the scores of any number of systems."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the stage, and the systems."""
        super().add_flags(parser)
        parser.add_argument(
            "--scores",
            action=_AddSystem,
            required=True,
            default=argparse.SUPPRESS,
            metavar="NAME=[VALIDATION:]TEST",
            help="a system, and where its scores of the validation split are (they choose the "
            "template; a system with one template needs none) and those of the test split (they "
            "give the numbers), or the folder of a baseline, which holds both; once for each "
            "system; one that bears the name of a baseline takes its place; several runs of one "
            "system, such as seeds, with commas between them are one row",
        )


def _report_text(_: Any, arguments: Mapping[str, Any]) -> str:
    return _shown(Path(arguments["output_dir"]), "report")


def _demo_text(_: Any, arguments: Mapping[str, Any]) -> str:
    return _shown(Path(arguments["output_dir"]) / "report", "report")


def _shown(folder: Path, name: str) -> str:
    """Returns the tables of a report, and the names of its files, the page to look at last."""
    names = [path for path in folder.iterdir() if path.name != "manifest.json"]
    names.sort(key=lambda path: (path.suffix == ".html", path))
    return "\n".join([(folder / f"{name}.txt").read_text(encoding="utf-8"), *map(str, names)])


TRAIN = GinVerb(
    name="train",
    summary="instruction records -> checkpoints",
    description=(
        "Fine-tunes a model, or goes on where an interrupted run of the same MODEL_DIR stopped.\n"
        f"Writes checkpoints, metrics and the resolved config to MODEL_DIR.\n\n{GIN_HELP}"
    ),
    example=(
        "instructrec train --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/finetune.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.MODEL_DIR='\"runs/model\"'"
    ),
    function="instructrec_jax.stages.train:train",
    folder="MODEL_DIR",
)
EVAL = GinVerb(
    name="eval",
    summary="checkpoint -> HR and NDCG on validation",
    description=(
        "Measures a checkpoint on the ranking tasks of a task or mixture, as training does.\n"
        f"Writes metrics.json to EVAL_OUTPUT_DIR.\n\n{GIN_HELP}"
    ),
    example=(
        "instructrec eval --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/eval.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.EVAL_OUTPUT_DIR='\"runs/eval\"'"
    ),
    function="instructrec_jax.stages.evaluate:evaluate",
)
GENERATE = GinVerb(
    name="generate",
    summary="checkpoint -> the likeliest titles of the whole catalogue",
    description=(
        "Finds the likeliest titles of the catalogue under each instruction that asks for an item\n"
        "without candidates, by beam search, and measures HR and NDCG over the whole catalogue.\n"
        f"Writes Parquet files and metrics.json to INFER_OUTPUT_DIR.\n\n{GIN_HELP}"
    ),
    example=(
        "instructrec generate --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/generate.gin \\\n"
        "    --gin.MIXTURE_OR_TASK_NAME='\"ml_100k.A1\"' --gin.DATA_DIR='\"runs/records\"' \\\n"
        "    --gin.PREPARED_DIR='\"runs/prepared\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.INFER_OUTPUT_DIR='\"runs/generated\"'"
    ),
    function="instructrec_jax.stages.generate:generate",
)
CONVERT = Verb(
    name="convert",
    summary="Flan-T5 checkpoints between Hugging Face, T5X and native",
    description=(
        "Writes the parameters, the step and the tokenizer of a checkpoint as one of another\n"
        "kind, array by array, bit for bit. SOURCE is a folder with config.json and safetensors,\n"
        "a T5X checkpoint_<step> folder, or a MODEL_DIR (its best checkpoint, else its latest) or\n"
        "one of its step folders. T5 1.1 and Flan-T5 only. Adapters of a LoRA run are merged into\n"
        "the model they belong to; --to=adapter writes them alone, as PEFT keeps them. `train`\n"
        "and `score` also take any kind as it is, by INITIAL_CHECKPOINT_PATH and CHECKPOINT_PATH.\n"
        "Adafactor's state is kept between T5X and native; that of other optimizers is left out.\n"
        "--quantize=int8 makes the weights a fourth as large, and measures validation NDCG@5\n"
        "before and after: where it falls by more than --max_ndcg_loss, nothing is written."
    ),
    example="instructrec convert downloads/flan-t5-base runs/flan-t5-base --to=native",
    function="instructrec_jax.stages.convert:convert",
    spelled={"source_path": "SOURCE", "output_dir": "DEST"},
)
COMPARE = Verb(
    name="compare",
    summary="two runs: who got better or worse, and what they share",
    description=(
        "Compares the target's ranks in two runs, example by example: HR and NDCG side by side\n"
        "with paired intervals, the parts of the events (history length, popularity, brand and\n"
        "others) with the change of each, and the events that gained and lost most. A run is\n"
        "[NAME=][VALIDATION:]TEST or a folder that holds both splits, of anything that `report\n"
        "--scores` takes. Writes compare.json, .md and .txt, and compare.html, a page with both\n"
        "runs and single users."
    ),
    example=(
        "instructrec compare old=runs/old/scores new=runs/new/scores \\\n"
        "    --prepared_dir=runs/prepared --output_dir=runs/compared"
    ),
    function="instructrec_jax.stages.compare:compare",
    spelled={"run_a": "RUN_A", "run_b": "RUN_B"},
    result=lambda _, arguments: _shown(Path(arguments["output_dir"]), "compare"),
)
REPORT = SystemsVerb(
    name="report",
    summary="scores -> HR and NDCG with intervals, beside the baselines",
    description=(
        "Chooses the best template of each system and scenario on validation, and reports\n"
        "HR@1,3,5 and NDCG@3,5 on test with 95% bootstrap intervals and paired differences,\n"
        "beside a random, a popularity and a co-occurrence scorer. Writes report.json, .md and\n"
        ".txt, training_curve.png, and report.html, a page with pictures and single users.\n"
        "\nScores are a folder of `instructrec score`, a folder of T5X's own infer in score mode\n"
        "for the .rank tasks (gin/t5x/score.gin), a TREC run file named after what it ranks\n"
        "(sequential.run, product_search.specific.run) or a folder of them, or a file of any\n"
        "other system with one JSON line per example, such as\n"
        '{"example_id": "17:4", "family": "sequential", "candidate_ids": [5, 2],\n'
        '"scores": [0.7, -1.5]}: the candidates of candidates.parquet in any order, higher scores\n'
        'are better; "query" and "template" may be added.\n'
        "\n--export trec writes runs and qrels for trec_eval, pytrec_eval and ranx; --export\n"
        "samples one JSON line per test example with texts and log-likelihoods, named as lm-eval\n"
        "names them. A README.md beside them tells the fields."
    ),
    example=(
        "instructrec report --dataset=ml_100k --prepared_dir=runs/prepared \\\n"
        "    --scores model=runs/scores/validation:runs/scores/test \\\n"
        "    --metrics_file=runs/model/metrics.jsonl --output_dir=runs/report"
    ),
    function="instructrec_jax.stages.report:report",
    result=_report_text,
)
DEMO = _DemoVerb(
    name="demo",
    summary="everything at once, on MovieLens-100K or your own data",
    description=(
        "Runs every stage with a small model trained from scratch, saying what each did and where\n"
        "it wrote. A second run reuses what is valid. Ends with the table and report.html."
    ),
    example="instructrec demo --smoke --output_dir=runs/smoke",
    function="instructrec_jax.stages.demo:demo",
    spelled={"is_smoke": "--smoke"},
    result=_demo_text,
)
REPRODUCE = _ReproduceVerb(
    name="reproduce",
    summary="a table of the paper beside the same one made here, with verdicts",
    description=(
        "Makes a table of the paper, or all: data, records, model, scores, baselines, table. What\n"
        "an earlier table of the same folder made is reused; the same command goes on. The table\n"
        "shows the paper's figures beside those measured here, the gains over the best baseline,\n"
        "and for each ordering that the paper's figures show whether it is seen here, by a 95%\n"
        "interval of paired differences. TABLE is table5 (data sets), table6 (sequential), table7\n"
        "(personalised search), table8 (product search), table9 (hard negatives), table10 (100\n"
        "candidates), table11 (another data set), ablation (Figure 3), biases, or all."
    ),
    example="instructrec reproduce table6 --scale=cpu",
    function="instructrec_jax.stages.reproduce:reproduce",
    spelled={"table": "TABLE"},
    result=lambda text, _: text,
)
