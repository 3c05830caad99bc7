"""The settings of a training run: what learns and how, where it is written, where it starts."""

import dataclasses

import optax

from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning
from instructrec_jax.models.objectives import Objective
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel.mesh import MeshSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run.

    Attributes:
      model_dir: where checkpoints, metrics and the resolved config go (MODEL_DIR).
      mixture: what to train on (MIXTURE_OR_TASK_NAME); a `.grouped` one for a listwise objective.
      batch_size: rows of a batch over all devices (BATCH_SIZE).
      seed: of initialisation, data order and dropout (RANDOM_SEED).
      pack: several examples in a row; not for grouped mixtures.
      num_candidates: candidates drawn for each training example, the target among them.
      initial_checkpoint_path: parameters to start from (INITIAL_CHECKPOINT_PATH): ours, or Flan-T5
        or T5 1.1 as Hugging Face or T5X keep it; see `checkpoints.source.open_source`. The
        optimizer's state comes along where it is Adafactor's there and here.
      train_steps_relative: steps of this run alone (TRAIN_STEPS_RELATIVE); None: `Periods` says
        where training ends, counting the initial checkpoint's own steps too (TRAIN_STEPS).
      warm_start: start from co-occurrence in the training histories, see `stages.train.warm_start`;
        for models without pretraining.
      use_cached: read what SeqIO has cached of tasks from elsewhere (USE_CACHED_TASKS); ours render
        while they are read, whatever it says.
      keep_checkpoints: how many of the latest to keep, beside the best.
    """

    model_dir: str
    mixture: str
    batch_size: int
    seed: int = 0
    pack: bool = True
    num_candidates: int = 10
    initial_checkpoint_path: str | None = None
    train_steps_relative: int | None = None
    warm_start: bool = False
    use_cached: bool = False
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.seed is None:  # T5X's way to draw anew at every start
            raise UserError(
                "RANDOM_SEED is None; expected a whole number: an interrupted run goes on with the "
                "draws that it would have had"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learnt and how.

    Attributes:
      model: sizes (MODEL).
      objective: the loss (OBJECTIVE).
      optimizer: one of `training.optimizers`, or any optax transformation (OPTIMIZER).
      mesh: how devices are shared (NUM_PARTITIONS is its `tensor`).
      fine_tuning: which parameters learn: all, all but some, or adapters (gin/overlays).
    """

    model: T5Config
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    fine_tuning: FineTuning = dataclasses.field(default_factory=FineTuning)
