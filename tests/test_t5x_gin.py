"""The files of gin/t5x, on stand-ins of T5X's modules and gin files, and our tasks in its flow.

Real T5X is on no package registry. The stand-ins have the names, macros and arguments of its
run files (t5x/configs/runs at cc342d4) that ours touch.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from seqio_groups import seqio_groups

from instructrec_jax.cli import gin_config, gin_files
from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import vocabulary
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary, use_vocabulary
from instructrec_jax.scores import importers

FOLDER = Path(__file__).parents[1] / "gin" / "t5x"
FILES = {path.name: path for path in sorted(FOLDER.glob("*.gin"))}
DYNAMIC = "from __gin__ import dynamic_registration\n"
DATASET = """
  mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  module = %MIXTURE_OR_TASK_MODULE
  use_cached = {cached}
"""
T5X_FILES = {
    "t5x/examples/t5/t5_1_1/xl.gin": """
from t5x import models
LOSS_NORMALIZING_FACTOR = None
DROPOUT_RATE = %gin.REQUIRED
VOCABULARY = 'another'
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  input_vocabulary = %VOCABULARY
  loss_normalizing_factor = %LOSS_NORMALIZING_FACTOR
  dropout_rate = %DROPOUT_RATE
""",
    "t5x/configs/runs/finetune.gin": f"""
import __main__ as train_script
from t5x import utils
MODEL_DIR = %gin.REQUIRED
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
TASK_FEATURE_LENGTHS = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
INITIAL_CHECKPOINT_PATH = %gin.REQUIRED
DROPOUT_RATE = 0.1
USE_CACHED_TASKS = True
RANDOM_SEED = None
MIXTURE_OR_TASK_MODULE = None
train_script.run:
  model = %MODEL
  output_dir = %MODEL_DIR
  datasets = [@train/utils.DatasetConfig(), @train_eval/utils.DatasetConfig(),
              @infer_eval/utils.DatasetConfig()]
  restore = @utils.RestoreCheckpointConfig()
  total_steps = %TRAIN_STEPS
  random_seed = %RANDOM_SEED
train/utils.DatasetConfig:{DATASET.format(cached="%USE_CACHED_TASKS")}
  split = 'train'
train_eval/utils.DatasetConfig:{DATASET.format(cached="%USE_CACHED_TASKS")}
  split = 'validation'
infer_eval/utils.DatasetConfig:{DATASET.format(cached="%USE_CACHED_TASKS")}
  split = 'validation'
utils.RestoreCheckpointConfig:
  path = %INITIAL_CHECKPOINT_PATH
  dtype = 'float32'
""",
    "t5x/configs/runs/eval.gin": f"""
import __main__ as eval_script
from t5x import utils
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
CHECKPOINT_PATH = %gin.REQUIRED
EVAL_OUTPUT_DIR = %gin.REQUIRED
TASK_FEATURE_LENGTHS = None
MIXTURE_OR_TASK_MODULE = None
eval_script.run:
  model = %MODEL
  output_dir = %EVAL_OUTPUT_DIR
  datasets = [@utils.DatasetConfig()]
  restore = @utils.RestoreCheckpointConfig()
utils.DatasetConfig:{DATASET.format(cached=False)}
  split = 'test'
utils.RestoreCheckpointConfig.path = %CHECKPOINT_PATH
""",
    "t5x/configs/runs/infer.gin": f"""
import __main__ as infer_script
from t5x import utils
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
TASK_FEATURE_LENGTHS = %gin.REQUIRED
CHECKPOINT_PATH = %gin.REQUIRED
INFER_OUTPUT_DIR = %gin.REQUIRED
MIXTURE_OR_TASK_MODULE = None
infer_script.infer:
  mode = 'predict'
  model = %MODEL
  output_dir = %INFER_OUTPUT_DIR
  datasets = [@utils.DatasetConfig()]
  restore = @utils.RestoreCheckpointConfig()
utils.DatasetConfig:{DATASET.format(cached=False)}
  split = 'test'
utils.RestoreCheckpointConfig:
  path = %CHECKPOINT_PATH
  dtype = 'bfloat16'
""",
}


@dataclasses.dataclass
class DatasetConfig:
    mixture_or_task_name: str
    task_feature_lengths: dict
    split: str
    module: str
    use_cached: bool
    seed: int | None = None


@dataclasses.dataclass
class RestoreCheckpointConfig:
    path: str
    dtype: str | None = None


@dataclasses.dataclass
class EncoderDecoderModel:
    input_vocabulary: object
    loss_normalizing_factor: object
    dropout_rate: float


def run(**arguments):
    return arguments


def infer(**arguments):
    return arguments


def write_inferences_to_file(path, inferences, task_ds, mode, input_fields_to_include=None):
    """As T5X writes score mode: strings decoded, arrays as lists, whole numbers as floats."""

    def plain(value):
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, np.ndarray):
            return value.tolist()
        return float(value) if isinstance(value, np.integer | np.floating) else value

    assert mode == "score"
    with open(path, "w") as stream:
        for row, score in zip(task_ds.as_numpy_iterator(), inferences, strict=True):
            inputs = {name: plain(row[name]) for name in input_fields_to_include}
            line = {"inputs": inputs, "score": float(score)}
            stream.write(json.dumps(line, cls=seqio.TensorAndNumpyEncoder) + "\n")


STAND_INS = {
    "t5x": [],
    "t5x.utils": [DatasetConfig, RestoreCheckpointConfig],
    "t5x.models": [EncoderDecoderModel],
    "t5x.infer": [write_inferences_to_file],
    "__main__": [run, infer],
}


@pytest.fixture
def t5x(tmp_path, monkeypatch):
    """Parses files of gin/t5x as T5X does, and gives what T5X would run with."""
    modules = {name: types.ModuleType(name) for name in STAND_INS}
    for name, things in STAND_INS.items():
        monkeypatch.setitem(sys.modules, name, modules[name])
        for thing in things:
            monkeypatch.setattr(thing, "__module__", name)
            setattr(modules[name], thing.__name__, thing)
    for name in ("utils", "models", "infer"):
        setattr(modules["t5x"], name, modules[f"t5x.{name}"])
    for name, text in T5X_FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DYNAMIC + text)
    monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", [str(tmp_path)])

    def parse(function, name, *bindings):
        gin.clear_config()
        paths = [str(FILES["flan_t5_xl.gin"]), str(FILES[name])]
        gin.parse_config_files_and_bindings(paths, list(bindings))
        return gin.get_configurable(function)()

    yield parse
    gin.clear_config()
    use_vocabulary(None)


def test_fine_tuning_is_on_our_mixture_and_measured_on_a_ranking_task(t5x):
    found = t5x(run, "finetune.gin", "MODEL_DIR = 'm'", "TRAIN_STEPS = 1158000")
    train, train_eval, infer_eval = found["datasets"]
    assert (train.mixture_or_task_name, train.split, train.seed) == ("amazon_games.all", "train", 0)
    assert train_eval.mixture_or_task_name == "amazon_games.A7"
    assert infer_eval.mixture_or_task_name == "amazon_games.A7.rank"
    for dataset in found["datasets"]:
        assert dataset.task_feature_lengths == {"inputs": 512, "targets": 128}
        assert (dataset.module, dataset.use_cached) == ("instructrec_jax.tasks.t5x", False)
    assert found["restore"].path.endswith("flan_t5_xl/checkpoint_1138000")
    assert (found["total_steps"], found["random_seed"]) == (1158000, 0)
    model = found["model"]
    assert model.loss_normalizing_factor == "NUM_REAL_TARGET_TOKENS" and model.dropout_rate == 0.1
    assert model.input_vocabulary == CorpusVocabulary(), "T5X compares it with that of the tasks"


def test_evaluation_ranks_the_validation_split(t5x):
    found = t5x(run, "eval.gin", "CHECKPOINT_PATH = 'c'", "EVAL_OUTPUT_DIR = 'e'")
    (dataset,) = found["datasets"]
    assert (dataset.mixture_or_task_name, dataset.split) == ("amazon_games.A7.rank", "validation")
    assert (found["restore"].path, found["restore"].dtype) == ("c", "float32")
    assert found["output_dir"] == "e"


def test_scoring_writes_the_fields_that_the_report_needs(t5x):
    bindings = ["CHECKPOINT_PATH = 'c'", "INFER_OUTPUT_DIR = 'i'", "SPLIT = 'validation'"]
    found = t5x(infer, "score.gin", *bindings)
    assert found["mode"] == "score" and found["datasets"][0].split == "validation"
    assert found["restore"].dtype == "float32", "half of the digits would be lost"
    fields = gin.query_parameter("t5x.infer.write_inferences_to_file.input_fields_to_include")
    assert tuple(sorted(fields)) == tuple(sorted(importers.T5X_FIELDS))


def test_the_flow_of_t5x_from_the_task_to_the_scores(t5x, toy, tmp_path):
    """T5X zips a task with what its model reads, pads both, scores, and writes line by line."""
    lengths = {"inputs": 300, "targets": 24}
    found = t5x(infer, "score.gin", "CHECKPOINT_PATH = 'c'", "INFER_OUTPUT_DIR = 'i'")
    vocabulary.chosen_vocabulary(toy / "toy" / "vocabulary" / "sentencepiece.model", extra_ids=0)
    task = seqio.get_mixture_or_task("toy.A7.rank")
    assert task.output_features["targets"].vocabulary == CorpusVocabulary()
    ds = task.get_dataset(lengths, split="test", shuffle=False, seed=0).take(80)
    model_ds = seqio.EncDecFeatureConverter(pack=False)(ds, task_feature_lengths=lengths)
    chunk = next(iter(tf.data.Dataset.zip((ds, model_ds)).padded_batch(80)))
    rows = tf.data.Dataset.from_tensor_slices(chunk[0])
    made_up = -np.arange(80, dtype=np.float32)
    path = tmp_path / "toy.A7.rank-score.jsonl-00000-of-00001"
    found["write_fn"](path, made_up, rows, "score")
    path.with_name(path.name + ".COMPLETED").touch()
    scores = importers.read_t5x_scores(tmp_path)
    for row, group in enumerate(seqio_groups("toy.A7", split="test", lengths=lengths)[:8]):
        assert scores.example_id[row] == group["example_id"].decode()
        assert scores.target_index[row] == group["target_index"]
        np.testing.assert_array_equal(scores.candidate_ids[row], group["candidate_ids"])
        np.testing.assert_array_equal(scores.num_chars[row], group["candidate_num_chars"])
        np.testing.assert_array_equal(scores.num_tokens[row], (group["candidates"] > 0).sum(-1))
    np.testing.assert_array_equal(np.ravel(scores.log_likelihood), made_up)


def test_every_file_says_how_it_is_run():
    assert set(FILES) == {"flan_t5_xl.gin", "finetune.gin", "eval.gin", "score.gin"}
    for name, path in FILES.items():
        head = path.read_text().partition("from __gin__")[0]
        assert head.startswith("# Real T5X")
        assert name == "flan_t5_xl.gin" or "--gin_file=gin/t5x/flan_t5_xl.gin" in head


def test_our_own_command_refuses_them_and_does_not_offer_them():
    def train():
        """Never called."""

    with pytest.raises(UserError, match=r"gin/t5x/finetune\.gin is for T5X's own programs"):
        gin_config.run_with_gin(train, gin_file_names=["gin/t5x/finetune.gin"])
    assert not [name for name in gin_files.shipped_files() if name.parent.name == "t5x"]
