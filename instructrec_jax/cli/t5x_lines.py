"""What T5X's bindings, flags, macros and gin files are called here.

A binding on the command line is taken where it means the same here. The others are refused, with
what to write instead. As of t5x/configs/runs/{finetune,pretrain,eval,infer}.gin, the files of
t5x/examples/t5/t5_1_1, and the programs `t5x.train`, `t5x.eval`, `t5x.infer` and `t5x.main`.
"""

import dataclasses
import textwrap
from collections.abc import Container, Iterator

TOPIC = "t5x"  # `instructrec help t5x` shows this table
_MODULES = ("t5x", "__main__", "seqio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A binding of T5X's.

    Attributes:
      theirs: as T5X's own gin files write it.
      ours: macros or bindings here; of several, the one that a file of the run uses. Empty: nothing
        here follows it.
      is_taken: whether it means the same, so that it is read as if it were ours.
      note: what differs, or why nothing follows it.
    """

    theirs: str
    ours: tuple[str, ...] = ()
    is_taken: bool = False
    note: str = ""

    @property
    def remedy(self) -> str:
        """What to do about the line, as a message ends."""
        if not self.ours:
            return f"leave it out: {self.note}"
        return f"write {' or '.join(self.ours)}" + (f" ({self.note})" if self.note else "")


def _same(owner: str, **ours: str) -> list[Line]:
    """Returns the lines of a configurable that are taken."""
    return [
        Line(theirs=f"{owner}.{name}", ours=tuple(value.split("|")), is_taken=True)
        for name, value in ours.items()
    ]


def _near(theirs: str, ours: str, note: str = "") -> Line:
    return Line(theirs=theirs, ours=tuple(ours.split("|")), note=note)


def _none(theirs: str, note: str) -> Line:
    return Line(theirs=theirs, note=note)


_WRITES_METRICS = (
    "evaluation writes metrics alone, and `instructrec score` every candidate's log-likelihood"
)
_SHUFFLED = "training examples are always shuffled, in an order of RANDOM_SEED"
_T5_ONLY = "Flan-T5's architecture is the only one"

# Macros of T5X's run files that are none here, and what to do; all others are ours too.
MACROS = {
    "JSON_WRITE_N_RESULTS": f"leave it out: {_WRITES_METRICS}",
    "MIXTURE_OR_TASK_SPLIT": "write SPLIT",
    "SHUFFLE_TRAIN_EXAMPLES": f"leave it out: {_SHUFFLED}",
}

FLAGS = {
    "--logtostderr": "leave it out: messages go to stderr",
    "--run_mode": "write the verb: instructrec train, eval or score",
    "--seqio_additional_cache_dirs": (
        "call seqio.add_global_cache_dirs in the module that MIXTURE_OR_TASK_MODULE names; our own "
        "tasks need no cache"
    ),
}

FILES = {
    "t5x/configs/runs/eval.gin": "gin/runs/eval.gin",
    "t5x/configs/runs/finetune.gin": "gin/runs/finetune.gin",
    "t5x/configs/runs/infer.gin": "gin/runs/score.gin",
    "t5x/configs/runs/pretrain.gin": "gin/runs/from_scratch.gin",
    "t5x/examples/t5/t5_1_1/tiny.gin": "gin/models/t5_tiny.gin",
    **{
        f"t5x/examples/t5/t5_1_1/{size}.gin": f"gin/models/flan_t5_{size}.gin"
        for size in ("small", "base", "large", "xl", "xxl")
    },
}

LINES: tuple[Line, ...] = (
    # What T5X's programs take.
    *_same(
        "train_script.train",
        model_dir="MODEL_DIR",
        total_steps="TRAIN_STEPS",
        relative_steps="TRAIN_STEPS_RELATIVE",
        eval_steps="EVAL_STEPS",
        eval_period="EVAL_PERIOD",
        random_seed="RANDOM_SEED",
        use_hardware_rng="USE_HARDWARE_RNG",
    ),
    _near("train_script.train.model", "MODEL", "or a file of gin/models"),
    _near("train_script.train.stats_period", "LOG_PERIOD", "its values are of one step"),
    _near("train_script.train.train_dataset_cfg", "MIXTURE_OR_TASK_NAME"),
    _near("train_script.train.train_eval_dataset_cfg", "EVAL_TASKS", "they are ranked"),
    _near("train_script.train.infer_eval_dataset_cfg", "EVAL_TASKS", "a list of ranking tasks"),
    _near("train_script.train.checkpoint_cfg", "INITIAL_CHECKPOINT_PATH|loop.Periods.checkpoint"),
    _near("train_script.train.partitioner", "NUM_PARTITIONS"),
    _near("train_script.train.trainer_cls", "OBJECTIVE|OPTIMIZER"),
    _none("train_script.train.run_eval_before_training", "see `instructrec eval`"),
    _none("train_script.train.summarize_config_fn", "MODEL_DIR/config.gin holds the whole config"),
    _none("train_script.train.inference_evaluator_cls", "HR and NDCG are always measured"),
    _none("train_script.train.concurrent_metrics", "evaluation ends before training goes on"),
    _none("train_script.train.use_orbax", "checkpoints are always Orbax's"),
    _none("train_script.train.actions", "a loss that is not finite always stops the run"),
    *_same("eval_script.evaluate", output_dir="EVAL_OUTPUT_DIR"),
    *_same("infer_script.infer", output_dir="INFER_OUTPUT_DIR"),
    _none("infer_script.infer.mode", "'score' is `instructrec score`, 'predict' `generate`"),
    _none("infer_script.infer.num_shards", "processes that run the same command share the work"),
    _none("infer_script.infer.shard_id", "processes that run the same command share the work"),
    _near("infer_script.infer.checkpoint_period", "SHARD_SIZE", "in requests"),
    # Data.
    *_same(
        "train/utils.DatasetConfig",
        mixture_or_task_name="MIXTURE_OR_TASK_NAME",
        task_feature_lengths="TASK_FEATURE_LENGTHS",
        batch_size="BATCH_SIZE",
        use_cached="USE_CACHED_TASKS",
        pack="train.TrainSettings.pack",
        module="MIXTURE_OR_TASK_MODULE",
    ),
    _near("train/utils.DatasetConfig.seed", "RANDOM_SEED", "which decides all other draws too"),
    _none("train/utils.DatasetConfig.split", "training reads the split 'train'"),
    _none("train/utils.DatasetConfig.shuffle", _SHUFFLED),
    _none("train/utils.DatasetConfig.use_custom_packing_ops", "rows are packed without them"),
    *(
        _near(f"{scope}/utils.DatasetConfig.{name}", ours, note)
        for scope in ("train_eval", "infer_eval")
        for name, ours, note in (
            ("mixture_or_task_name", "EVAL_TASKS", "a list of ranking tasks"),
            ("task_feature_lengths", "TASK_FEATURE_LENGTHS", "the same in training"),
            ("batch_size", "evaluate.ValidationSettings.batch_size", "EVAL_STEPS counts in it"),
            ("split", "evaluate.ValidationSettings.split", "train or validation"),
        )
    ),
    *_same(
        "utils.DatasetConfig",
        mixture_or_task_name="MIXTURE_OR_TASK_NAME",
        task_feature_lengths="TASK_FEATURE_LENGTHS",
        split="SPLIT",
        module="MIXTURE_OR_TASK_MODULE",
    ),
    _near("utils.DatasetConfig.batch_size", "STEP_TOKENS|BATCH_SIZE", "no result depends on it"),
    _near("utils.DatasetConfig.use_cached", "USE_CACHED_TASKS", "in training alone"),
    _none("utils.DatasetConfig.pack", "only training packs rows"),
    _none("utils.DatasetConfig.seed", "evaluation and scoring go in the order of the records"),
    _none("utils.DatasetConfig.shuffle", "evaluation and scoring go in the order of the records"),
    *_same(
        "seqio.SentencePieceVocabulary",
        sentencepiece_model_file="VOCABULARY",
        extra_ids="VOCABULARY_EXTRA_IDS",
    ),
    *_same(
        "seqio.Evaluator",
        num_examples="EVALUATOR_NUM_EXAMPLES",
        use_memory_cache="EVALUATOR_USE_MEMORY_CACHE",
    ),
    _none("seqio.Evaluator.logger_cls", "metrics go to metrics.jsonl and to TensorBoard"),
    _none("seqio.JSONLogger.write_n_results", _WRITES_METRICS),
    # Checkpoints.
    *_same("utils.RestoreCheckpointConfig", path="INITIAL_CHECKPOINT_PATH|CHECKPOINT_PATH"),
    _none("utils.RestoreCheckpointConfig.mode", "the path names a step, or a folder of steps"),
    _near("utils.RestoreCheckpointConfig.dtype", "DTYPE", "what is computed in"),
    _none("utils.RestoreCheckpointConfig.strict", "parameters that do not fit are always refused"),
    _near("utils.RestoreCheckpointConfig.fallback_to_scratch", "INITIAL_CHECKPOINT_PATH", "None"),
    _none("utils.RestoreCheckpointConfig.assignment_map", "parameters are found by T5X's names"),
    _none("utils.RestoreCheckpointConfig.state_transformation_fns", "see `instructrec convert`"),
    _near("utils.SaveCheckpointConfig.period", "loop.Periods.checkpoint", "EVAL_PERIOD saves too"),
    _near("utils.SaveCheckpointConfig.keep", "train.TrainSettings.keep_checkpoints", "not None"),
    _none("utils.SaveCheckpointConfig.dtype", "parameters are kept in float32"),
    _none("utils.SaveCheckpointConfig.save_dataset", "the position in the data is always saved"),
    _near("utils.CheckpointConfig.restore", "INITIAL_CHECKPOINT_PATH|CHECKPOINT_PATH"),
    _near("utils.CheckpointConfig.save", "loop.Periods.checkpoint"),
    # Devices.
    *_same("partitioning.PjitPartitioner", num_partitions="NUM_PARTITIONS"),
    _near("partitioning.PjitPartitioner.model_parallel_submesh", "mesh.MeshSettings.tensor"),
    _near("partitioning.PjitPartitioner.parameter_partitioning_dims", "mesh.MeshSettings.fsdp"),
    _near(
        "partitioning.PjitPartitioner.logical_axis_rules",
        "mesh.MeshSettings.logical_axis_rules",
        "a mapping of those that differ, to the mesh axes data, fsdp and tensor",
    ),
    # Learning.
    *_same("trainer.Trainer", num_microbatches="NUM_MICROBATCHES"),
    _near("trainer.Trainer.learning_rate_fn", "optimizers.adafactor.learning_rate"),
    *_same("utils.create_learning_rate_scheduler", base_learning_rate="LEARNING_RATE"),
    _near(
        "utils.create_learning_rate_scheduler.factors",
        "optimizers.adafactor.learning_rate",
        "@optimizers.constant(), rsqrt_decay() or linear_decay()",
    ),
    _near(
        "utils.create_learning_rate_scheduler.warmup_steps",
        "optimizers.constant.warmup_steps",
        "T5X's factors 'constant' have no warm-up",
    ),
    _near(
        "utils.create_learning_rate_scheduler.decay_factor", "optimizers.linear_decay.total_steps"
    ),
    *_same(
        "adafactor.Adafactor",
        decay_rate="optimizers.adafactor.decay_rate",
        step_offset="optimizers.adafactor.step_offset",
        clipping_threshold="optimizers.adafactor.clipping_threshold",
        multiply_by_parameter_scale="optimizers.adafactor.multiply_by_parameter_scale",
        weight_decay_rate="optimizers.adafactor.weight_decay_rate",
        min_dim_size_to_factor="optimizers.adafactor.min_dim_size_to_factor",
        global_norm_clip_threshold="CLIP_NORM",
    ),
    _near("adafactor.Adafactor.learning_rate", "LEARNING_RATE", "the schedule's"),
    _none("adafactor.Adafactor.beta1", "Adafactor is without momentum"),
    _none("adafactor.Adafactor.logical_factor_rules", "T5X's standard rules hold"),
    _none("adafactor.Adafactor.skip_nan_updates", "a loss that is not finite stops the run"),
    *_same(
        "models.EncoderDecoderModel",
        z_loss="Z_LOSS",
        label_smoothing="LABEL_SMOOTHING",
        loss_normalizing_factor="LOSS_NORMALIZING_FACTOR",
    ),
    _near("models.EncoderDecoderModel.optimizer_def", "OPTIMIZER"),
    _near("models.EncoderDecoderModel.input_vocabulary", "VOCABULARY", "the path of a file"),
    _near("models.EncoderDecoderModel.output_vocabulary", "VOCABULARY", "the path of a file"),
    _near("models.EncoderDecoderModel.module", "MODEL", "or a file of gin/models"),
    _near("models.EncoderDecoderModel.predict_batch_with_aux.num_decodes", "BEAM_SIZE"),
    # The model's sizes.
    *_same(
        "network.T5Config",
        vocab_size="VOCAB_SIZE",
        dtype="DTYPE",
        dropout_rate="DROPOUT_RATE",
        remat_policy="t5.T5Config.remat_policy",
        **{
            name: f"t5.T5Config.{name}"
            for name in (
                *("emb_dim", "num_heads", "head_dim", "mlp_dim"),
                *("num_encoder_layers", "num_decoder_layers"),
            )
        },
    ),
    _none("network.T5Config.mlp_activations", _T5_ONLY + ": ('gelu', 'linear')"),
    _none("network.T5Config.logits_via_embedding", _T5_ONLY + ": False"),
    _none("network.T5Config.float32_attention_logits", "logits are always float32"),
    _none("network.T5Config.scan_layers", "layers are scanned; checkpoints of both kinds load"),
)


def _key(binding: str) -> tuple[str, str]:
    """Returns the scope of a binding, and the last two words of its name."""
    scope, _, name = binding.rpartition("/")
    return scope, ".".join(name.split(".")[-2:])


_BY_KEY = {_key(line.theirs): line for line in LINES}


def find(binding: str, imports: Container[str] = ()) -> Line | None:
    """Returns what is known of a binding, None where it is none of T5X's.

    Args:
      binding: with its scope, such as "train/utils.DatasetConfig.seed"; gin lets out the first
        words of a name, such as those before "train.total_steps".
      imports: names that gin files give to modules which are not T5X's.
    """
    scope, name = _key(binding)
    first_word = binding.rpartition("/")[2].split(".")[0]
    if "." not in name or (first_word in imports and not name.startswith("train.")):
        return None
    return _BY_KEY.get((scope, name)) or _BY_KEY.get(("", name))


def is_theirs(module: str) -> bool:
    """Whether a gin file that imports a module is written for T5X."""
    return module.split(".")[0] in _MODULES


def as_text() -> str:
    """Returns the table, as `instructrec help t5x` shows it."""
    return "\n".join(_text_lines())


def _text_lines() -> Iterator[str]:
    yield "T5X's lines, and what they are here. Macros keep T5X's names, but for these:"
    for name, remedy in MACROS.items():
        yield from _entry(name, remedy)
    for title, is_taken in (("Bindings that are taken as they are", True), ("Bindings", False)):
        yield f"\n{title}:"
        for line in LINES:
            if line.is_taken == is_taken:
                yield from _entry(line.theirs, " or ".join(line.ours) if is_taken else line.remedy)
    for title, entries in (("Flags", FLAGS), ("Gin files", FILES)):
        yield f"\n{title}:"
        for name, text in entries.items():
            yield from _entry(name, text)


def _entry(name: str, text: str) -> Iterator[str]:
    """Yields a name and, below it where it is long, its text."""
    if len(name) + len(text) + 4 <= 78:
        yield f"  {name}  {text}"
        return
    yield f"  {name}"
    yield from textwrap.wrap(text, 78, initial_indent=" " * 6, subsequent_indent=" " * 6)
