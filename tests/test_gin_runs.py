"""What the shipped gin files make of models and runs, without training any."""

import re
import sys

import jax
import pytest

from instructrec_jax.cli import gin_config, gin_files
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning, Lora
from instructrec_jax.models.objectives import NegativeLogLikelihood
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.placement import num_parameters
from instructrec_jax.scoring import candidate_views
from instructrec_jax.stages import score as score_stage
from instructrec_jax.stages import train as stage

FINETUNE = "gin/runs/finetune.gin"
MIXTURE = "gin/mixtures/ml_100k.gin"
BINDINGS = ["DATA_DIR='records'", "MODEL_DIR='model'", "INITIAL_CHECKPOINT_PATH=None"]


class StoppedError(Exception):
    """Raised where a stage begins its work."""


def configured(*names, bindings=()):
    """The arguments that gin gives the training stage, without training."""
    seen = {}

    def stop(_mesh_settings):
        seen.update(sys._getframe(1).f_locals)
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "make_mesh", stop)
        with pytest.raises(StoppedError):
            gin_config.run_with_gin(
                stage.train, gin_file_names=names, bindings=[*BINDINGS, *bindings]
            )
    return seen


def dry_run(model, caplog, *bindings, run=FINETUNE, files=()):
    caplog.clear()
    with caplog.at_level("INFO"):
        gin_config.run_with_gin(
            stage.train,
            gin_file_names=[f"gin/models/{model}.gin", MIXTURE, run, *files],
            bindings=[*BINDINGS, *bindings],
            dry_run=True,
        )
    return caplog.text + gin_config.resolved_config()


# Published: 77.0M, 247.6M, 783.2M, 2,849.8M, 11,135.3M.
NUM_PARAMETERS = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
PUBLISHED = {"small": 77.0, "base": 247.6, "large": 783.2, "xl": 2849.8, "xxl": 11135.3}


@pytest.mark.parametrize("size", NUM_PARAMETERS)
def test_models_have_the_published_number_of_parameters(size, caplog):
    text = dry_run(f"flan_t5_{size}", caplog, "TRAIN_STEPS_RELATIVE=10")
    (found,) = re.findall(r"([\d,]+) parameters", text)
    assert int(found.replace(",", "")) == NUM_PARAMETERS[size]
    assert round(NUM_PARAMETERS[size] / 1e6, 1) == PUBLISHED[size]
    head = gin_files.find_gin_file(f"gin/models/flan_t5_{size}.gin").read_text().splitlines()[0]
    assert f"{PUBLISHED[size]:,} M parameters" in head


def test_a_dry_run_shows_config_parameters_mesh_and_bytes_per_device(caplog):
    text = dry_run("flan_t5_xl", caplog, "TRAIN_STEPS_RELATIVE=20000", "NUM_PARTITIONS=4")
    assert "optimizers.adafactor.learning_rate = @optimizers.constant()" in text
    assert "BATCH_SIZE = 128" in text
    line = re.search(
        r"ml_100k\.all: 2,849,757,184 parameters, mesh data=2, fsdp=1, tensor=4, "
        r"([\d,.]+) MiB of state per device \(([\d,.]+) MiB of parameters, ([\d.]+) MiB of the "
        r"optimizer's\); adafactor, 20000 steps of 128 rows from random weights, into model",
        text,
    )
    state, parameters, moments = (float(group.replace(",", "")) for group in line.groups())
    # Heads, MLP and vocabulary lie on four devices; norms and tables hardly count.
    assert parameters == pytest.approx(4 * NUM_PARAMETERS["xl"] / 4 / 2**20, rel=1e-3)
    assert moments < 5e-3 * parameters, "rows and columns only"
    assert state == pytest.approx(parameters + moments, abs=0.2)


def test_adamw_can_be_chosen_on_the_command_line(caplog):
    chosen = ["OPTIMIZER=@optimizers.adamw()", "LEARNING_RATE=1e-4", "TRAIN_STEPS_RELATIVE=5"]
    bindings = [*chosen, "optimizers.adamw.learning_rate=@optimizers.constant()"]
    text = dry_run("flan_t5_small", caplog, *bindings)
    assert "; adamw, 5 steps" in text
    parameters, moments = re.search(r"\(([\d,.]+) MiB of parameters, ([\d,.]+) MiB", text).groups()
    assert float(moments) == pytest.approx(2 * float(parameters), rel=1e-3)


def test_the_fine_tuning_recipe_is_the_one_of_the_field():
    found = configured("gin/models/flan_t5_small.gin", MIXTURE, FINETUNE)
    settings = found["learning"].optimizer.settings
    assert settings == {
        "name": "adafactor",
        "learning_rate": {"name": "constant", "learning_rate": 1e-3, "warmup_steps": 0},
        "decay_rate": 0.8,
        "step_offset": 0,
        "clipping_threshold": 1.0,
        "multiply_by_parameter_scale": True,
        "weight_decay_rate": None,
        "min_dim_size_to_factor": 128,
        "clip_norm": None,
    }
    objective = found["learning"].objective
    assert (objective.z_loss, objective.label_smoothing) == (1e-4, 0.0)
    assert found["learning"].model.dropout_rate == 0.1
    assert found["run"].batch_size == 128 and found["run"].pack


def test_the_recipe_of_the_demo_stays_what_its_figures_were_measured_with():
    found = configured("gin/models/t5_tiny.gin", MIXTURE, "gin/runs/from_scratch.gin")
    assert found["learning"].optimizer.settings == {
        "name": "adamw",
        "learning_rate": {
            "name": "linear_decay",
            "learning_rate": 1e-3,
            "total_steps": 2000,
            "warmup_steps": 40,
        },
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    assert repr(found["learning"].objective) == (
        "Listwise(scale=2.0, nll_weight=0.5, normaliser='mean')"
    )
    run = found["run"]
    assert (run.batch_size, run.seed, run.warm_start, found["periods"].train_steps) == (
        32,
        0,
        True,
        2000,
    )


def test_the_recipe_of_whole_titles_trains_by_the_papers_loss_on_packed_rows():
    files = ["models/t5_mini", "mixtures/amazon_games_next_title", "runs/whole_titles"]
    found = configured(*(f"gin/{name}.gin" for name in files))
    assert isinstance(found["learning"].objective, NegativeLogLikelihood)
    assert found["learning"].optimizer.settings["learning_rate"] == {
        "name": "linear_decay",
        "learning_rate": 1e-3,
        "total_steps": 1750,
        "warmup_steps": 100,
    }
    model, run = found["learning"].model, found["run"]
    assert (model.emb_dim, model.num_heads * model.head_dim, model.mlp_dim) == (128, 128, 256)
    assert (run.mixture, run.batch_size, run.pack) == ("amazon_games.A1", 256, True)
    assert (run.warm_start, run.warm_start_rank, model.dropout_rate) == (True, 64, 0.1)


MACROS = {
    "WARM_START_RANK": ("5", lambda f: f["run"].warm_start_rank, 5),
    "TRAIN_STEPS_RELATIVE": ("7", lambda f: f["run"].train_steps_relative, 7),
    "TRAIN_STEPS": ("9", lambda f: f["periods"].train_steps, 9),
    "USE_CACHED_TASKS": ("True", lambda f: f["run"].use_cached, True),
    "INITIAL_CHECKPOINT_PATH": ("'flan'", lambda f: f["run"].initial_checkpoint_path, "flan"),
    "MIXTURE_OR_TASK_NAME": ("'toy.all'", lambda f: f["run"].mixture, "toy.all"),
    "MIXTURE_OR_TASK_MODULE": ("'my.tasks'", lambda f: f["data"].module, "my.tasks"),
    "TASK_FEATURE_LENGTHS": (
        "{'inputs': 9, 'targets': 3}",
        lambda f: f["data"].feature_lengths,
        {"inputs": 9, "targets": 3},
    ),
    "VOCABULARY": ("'spiece.model'", lambda f: f["data"].vocabulary, "spiece.model"),
    "BATCH_SIZE": ("16", lambda f: f["run"].batch_size, 16),
    "NUM_MICROBATCHES": ("4", lambda f: f["run"].num_microbatches, 4),
    "MAX_SKIPPED_UPDATES": ("5", lambda f: f["run"].max_skipped_updates, 5),
    "USE_HARDWARE_RNG": ("True", lambda f: f["run"].use_hardware_rng, True),
    "RANDOM_SEED": ("3", lambda f: f["run"].seed, 3),
    "DROPOUT_RATE": ("0.2", lambda f: f["learning"].model.dropout_rate, 0.2),
    "NUM_PARTITIONS": ("2", lambda f: f["learning"].mesh.tensor, 2),
    "Z_LOSS": ("0.5", lambda f: f["learning"].objective.z_loss, 0.5),
    "LABEL_SMOOTHING": ("0.1", lambda f: f["learning"].objective.label_smoothing, 0.1),
    "LOSS_NORMALIZING_FACTOR": (
        "None",
        lambda f: f["learning"].objective.loss_normalizing_factor,
        None,
    ),
    "EVAL_PERIOD": ("5", lambda f: f["periods"].evaluate, 5),
    "EVAL_STEPS": ("None", lambda f: f["validation"].num_batches, None),
    "EVALUATOR_NUM_EXAMPLES": ("9", lambda f: f["validation"].num_examples, 9),
    "EVALUATOR_USE_MEMORY_CACHE": ("False", lambda f: f["validation"].use_memory_cache, False),
    "LEARNING_RATE": (
        "0.5",
        lambda f: f["learning"].optimizer.settings["learning_rate"]["learning_rate"],
        0.5,
    ),
    "CLIP_NORM": ("2.0", lambda f: f["learning"].optimizer.settings["clip_norm"], 2.0),
    "MODEL_DIR": ("'elsewhere'", lambda f: f["run"].model_dir, "elsewhere"),
}


def test_every_macro_of_t5x_reaches_what_it_names():
    bindings = [f"{name}={value}" for name, (value, _, _) in MACROS.items()]
    found = configured("gin/models/flan_t5_small.gin", MIXTURE, FINETUNE, bindings=bindings)
    for name, (_, read, expected) in MACROS.items():
        assert read(found) == expected, name


def test_an_unknown_macro_names_its_nearest_neighbour():
    with pytest.raises(UserError, match=r"'TRAIN_STEPS_RELATIV'; the nearest known: TRAIN_STEPS_R"):
        configured("gin/models/t5_tiny.gin", MIXTURE, FINETUNE, bindings=["TRAIN_STEPS_RELATIV=3"])


def test_a_run_without_a_number_of_steps_names_both_macros_and_their_file(caplog):
    both = r"TRAIN_STEPS and TRAIN_STEPS_RELATIVE are both None"
    file = re.escape(FINETUNE)
    owners = rf"TRAIN_STEPS is set in {file} line \d+, TRAIN_STEPS_RELATIVE in {file} line \d+"
    with pytest.raises(UserError, match=f"(?s){both}.*{owners}"):
        dry_run("t5_tiny", caplog)


def test_a_seed_that_changes_with_every_start_is_refused():
    with pytest.raises(UserError, match="RANDOM_SEED is None; expected a whole number"):
        configured("gin/models/t5_tiny.gin", MIXTURE, FINETUNE, bindings=["RANDOM_SEED=None"])


def test_a_small_shape_is_counted_as_its_arrays_are():
    found = configured("gin/models/t5_tiny.gin", MIXTURE, FINETUNE)["learning"].model
    model = jax.eval_shape(lambda: T5(found, jax.random.key(0)))
    assert num_parameters(model) == sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("run", [FINETUNE, "gin/runs/from_scratch.gin"])
def test_the_overlay_lora_makes_any_training_run_one_of_adapters(run):
    names = ("gin/models/flan_t5_small.gin", MIXTURE, run, "gin/overlays/lora.gin")
    bindings = ["LORA_RANK=4", "LORA_ALPHA=32", "LORA_TARGETS=['mlp']", "CLIP_NORM=2.0"]
    learning = configured(*names, bindings=bindings)["learning"]
    assert learning.fine_tuning == FineTuning(lora=Lora(rank=4, alpha=32, targets=["mlp"]))
    settings = learning.optimizer.settings
    assert settings["name"] == "adamw" and settings["clip_norm"] == 2.0
    assert settings["learning_rate"]["learning_rate"] == 1e-3
    assert configured(*names)["learning"].fine_tuning == FineTuning(lora=Lora())


def test_the_overlay_frozen_keeps_parts_out_of_gradient_and_optimizer(caplog):
    overlay = ["gin/overlays/frozen.gin"]
    text = dry_run("flan_t5_small", caplog, "TRAIN_STEPS_RELATIVE=5", files=overlay)
    tables = 2 * 32128 * 512
    assert f"; adafactor, {NUM_PARAMETERS['small'] - tables:,} learn, 5 steps" in text
    assert " learn, " not in dry_run("flan_t5_small", caplog, "TRAIN_STEPS_RELATIVE=5")
    with pytest.raises(UserError, match=r"'embeder' is found in no name; .*token_embedder"):
        bindings = ["TRAIN_STEPS_RELATIVE=5", "FROZEN=['embeder']"]
        dry_run("flan_t5_small", caplog, *bindings, files=overlay)


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ([], candidate_views.AllAtOnce()),
        (
            ["CANDIDATE_VIEW=@candidate_views.Rotations()", "candidate_views.Rotations.number=5"],
            candidate_views.Rotations(number=5),
        ),
        (
            [
                "CANDIDATE_VIEW=@candidate_views.Groups()",
                "candidate_views.Groups.size=20",
                "candidate_views.Groups.kept=3",
            ],
            candidate_views.Groups(size=20, kept=3),
        ),
    ],
)
@pytest.mark.parametrize("run", ["score", "score_requests"])
def test_candidate_views_are_chosen_on_the_command_line(run, bindings, expected, monkeypatch):
    seen = {}

    def stop(*_, **__):
        seen.update(sys._getframe(1).f_locals)
        raise StoppedError

    monkeypatch.setattr(score_stage, "open_for_run", stop)
    given = [*bindings, "DATA_DIR='d'", "CHECKPOINT_PATH='c'", "INFER_OUTPUT_DIR='o'"]
    given += ["WITH_PRIOR=True"] + (["REQUESTS='r.jsonl'"] if run == "score_requests" else [])
    files = ["gin/models/t5_tiny.gin", MIXTURE, f"gin/runs/{run}.gin"]
    with pytest.raises(StoppedError):
        gin_config.run_with_gin(score_stage.score, gin_file_names=files, bindings=given)
    assert seen["run"].candidate_view == expected
    assert seen["run"].with_prior
