"""The verbs that score, for gin files and for a user's own requests, and that show scores."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instructrec_jax.cli import flags
from instructrec_jax.cli.model_verbs import GIN_HELP, GinVerb, SystemsVerb
from instructrec_jax.cli.verb import Group, Verb, bindings_of, print_result
from instructrec_jax.errors import UserError
from instructrec_jax.settings import SettingError

_SHOWN_EXPLANATIONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScoreVerb(GinVerb):
    """Scoring in either of two forms: gin files, or a model with a file of requests.

    Attributes:
      plain: the function of the form without gin files, "module:name"; `example` is of that form.
      gin_example: a command of the other one.
    """

    plain: str
    gin_example: str

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of both forms; which are needed depends on the form."""
        own: Any = parser.add_argument_group(
            "your own requests (needed: --model, --input, --output)"
        )
        flags.add_flags(own, self._ranked_file(), {})
        for flag in own._group_actions:
            flag.required = False
        by_gin: Any = parser.add_argument_group("gin files")
        super().add_flags(by_gin)
        parser.epilog = f"example:\n{self._examples}\n\n{self._columns()}"

    def run(self, options: argparse.Namespace) -> int:
        """Runs the form whose flags are given."""
        plain = self._ranked_file()
        given = [flag.name for flag in flags.flags_of(plain) if flag.name in vars(options)]
        by_gin = [f"--gin_file={name}" for name in options.gin_file]
        by_gin += [f"--gin.{binding}" for binding in bindings_of(options)]
        others = (
            *("gin_search_paths", "dry_run", "num_devices"),
            *("multiprocess_gpu", "coordinator_address", "process_count"),
        )
        by_gin += [f"--{name}" for name in others if getattr(options, name)]
        if not given:
            if by_gin:
                return super().run(options)
            raise UserError(f"`instructrec score` needs one of two forms:\n{self._examples}")
        if by_gin:
            raise UserError(
                f"--{given[0]} and {by_gin[0]} are of two forms of `instructrec score`, which do "
                f"not go together; write one of them:\n{self._examples}"
            )
        needed = [flag.name for flag in flags.flags_of(plain) if flag.is_required]
        if missing := [f"--{name}" for name in needed if name not in given]:
            raise UserError(f"{', '.join(missing)} missing; expected as in\n  {self.example}")
        try:
            arguments = flags.arguments_of(plain, vars(options))
            plain(**arguments)
        except SettingError as error:
            raise UserError(f"--{error.name} {error.problem}") from None
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if options.output != "-":
            print_result(options.output)
        return 0

    @property
    def _examples(self) -> str:
        return f"  {self.example}\n  {self.gin_example}"

    def _ranked_file(self) -> Callable[..., Any]:
        return dataclasses.replace(self, function=self.plain).load()

    def _columns(self) -> str:
        from instructrec_jax.scores import columns

        title = (
            "columns of OUTPUT, a row a candidate; in JSONL a line a request, and its candidates,\n"
            'best first, in the list "candidates":'
        )
        return columns.as_text(title, columns.RANKED)


class _ShowScoresVerb(Verb):
    """Shows scores; its help says what the columns of their files mean."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the stage, and the columns."""
        super().add_flags(parser)
        from instructrec_jax.scores import columns

        parser.epilog = "\n\n".join(
            [
                str(parser.epilog),
                columns.as_text(
                    "columns of `score` (artefact E), a row an example:", columns.SCORED
                ),
                columns.as_text("columns of `generate`, a row an example:", columns.GENERATED),
                "those of `score --output` are in `instructrec score --help`",
            ]
        )


def _shown_lines(lines: Any, _: Mapping[str, Any]) -> str:
    return "\n".join(lines)


SCORE = _ScoreVerb(
    name="score",
    summary="checkpoint -> log-likelihoods of every candidate; requests -> ranked candidates",
    description=(
        "Your own requests: ranks the candidates of every request of a file, best first. All else\n"
        "comes from the model. A row holds an id, candidates, and what they are ranked by: an\n"
        "instruction, or a history, an intention, a preference from which a template writes one:\n"
        '  {"id": "u7", "history": ["Halo", "Myst"], "candidates": ["Braid", "Ico"]}\n'
        "It may also hold candidate_ids, target_index, exclude (ids or titles) and a context.\n"
        "In CSV and TSV lists (history, candidates, candidate_ids, exclude) are JSON arrays.\n\n"
        "Gin files: scores all candidates of every example of a task (gin/runs/score.gin), or of\n"
        "every request of a file (gin/runs/score_requests.gin), but for the parts that are there\n"
        "already. Several processes with the same command share the work.\n"
        f"Writes Parquet files to INFER_OUTPUT_DIR.\n\n{GIN_HELP}"
    ),
    example=(
        "instructrec score --model=runs/model --input=requests.jsonl \\\n    --output=ranked.jsonl"
    ),
    gin_example=(
        "instructrec score --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/score.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.INFER_OUTPUT_DIR='\"runs/scores\"'"
    ),
    function="instructrec_jax.stages.score:score",
    folder="INFER_OUTPUT_DIR",
    plain="instructrec_jax.stages.score.ranked_file:rank_file",
)


def _sensitivity_text(_: Any, arguments: Mapping[str, Any]) -> str:
    folder = Path(arguments["asked"].output_dir)
    return (folder / "sensitivity.txt").read_text(encoding="utf-8")


SENSITIVITY = Verb(
    name="sensitivity",
    summary="how rankings change where something changes that should not matter",
    description=(
        "Ranks test examples of a model as they are, by a template of other words, with typos,\n"
        "with the history and with the candidates in another order, and with a wrong candidate\n"
        "whose title asks to be chosen; shows how often another candidate comes first, and what\n"
        "that does to HR@1 and NDCG@5. Keeps the requests and their rankings."
    ),
    example=(
        "instructrec sensitivity --model=runs/model --prepared_dir=runs/prepared \\\n"
        "    --output_dir=runs/sensitivity"
    ),
    function="instructrec_jax.stages.sensitivity:sensitivity",
    result=_sensitivity_text,
)


def _explained(lines: Any, arguments: Mapping[str, Any]) -> str:
    from instructrec_jax.stages import explain

    asked = arguments["asked"]
    shown = lines if asked.examples else lines[:_SHOWN_EXPLANATIONS]
    return f"{explain.as_text(shown)}\n{asked.output}"


EXPLAIN = Verb(
    name="explain",
    summary="what each history item adds for the target of a test example",
    description=(
        "Scores test examples as they are, and again without each item of the history. An item\n"
        "adds what the target then loses: of its log-likelihood, and of its margin, the natural\n"
        "log of its odds among the candidates. A history of n items takes n + 1 prompts, each\n"
        "encoded once for all candidates; --reasoning, which has the model write by a\n"
        "chain-of-thought template, one more. Likeness is the cosine of both titles' mean token\n"
        "embeddings. Shows the examples asked for, or the first three; `report --explanations`\n"
        "shows all of the file beside its single users."
    ),
    example=(
        "instructrec explain --model=runs/model --prepared_dir=runs/prepared \\\n"
        "    --output=runs/explained.jsonl"
    ),
    function="instructrec_jax.stages.explain:explain",
    spelled={"examples": "--example", "templates": "--template"},
    result=_explained,
)
SHOW = Group(
    name="show",
    summary="rows of score files, or one example with what all systems thought, in words",
    description="Shows what files of this package hold, in words.",
    example="instructrec show scores runs/scores/test --prepared_dir=runs/prepared",
    default="example",
    verbs=(
        SystemsVerb(
            name="example",
            summary="one test example: prompt, candidates, ranks and scores by system",
            description=(
                "Shows a test example: history, prompt, candidates with the rank and the value\n"
                "that each system gives them, and the target (*). Each system ranks by what it\n"
                "chooses on validation, as in a report. The word `example` may be left out."
            ),
            example=(
                "instructrec show example --example=196:18 --prepared_dir=runs/prepared \\\n"
                "    --scores model=runs/scores/validation:runs/scores/test"
            ),
            function="instructrec_jax.stages.show.example:example",
            result=_shown_lines,
        ),
        _ShowScoresVerb(
            name="scores",
            summary="candidates best first, with ranks, log-likelihoods and titles",
            description=(
                "Shows examples of a folder that `score` or `generate` wrote, or of a file of\n"
                "`score --output`: the target (*) and the candidates, best first. The folders\n"
                "hold item ids; --prepared_dir looks up titles, users and histories."
            ),
            example="instructrec show scores runs/scores/test --prepared_dir=runs/prepared",
            function="instructrec_jax.stages.show:scores",
            spelled={"path": "PATH"},
            result=_shown_lines,
        ),
    ),
)
