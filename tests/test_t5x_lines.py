"""T5X's lines, one by one: taken, with their effect, or refused with an equivalent that exists."""

import pytest

from instructrec_jax.cli import gin_config, gin_files, main, t5x_lines
from instructrec_jax.errors import UserError
from instructrec_jax.stages import evaluate, generate, score, train

RUNS = {
    "finetune": train.train,
    "from_scratch": train.train,
    "eval": evaluate.evaluate,
    "score": score.score,
    "generate": generate.generate,
}
TAKEN = [line for line in t5x_lines.LINES if line.is_taken]
REFUSED = [line for line in t5x_lines.LINES if not line.is_taken]
EQUIVALENTS = sorted({name for line in t5x_lines.LINES for name in line.ours})
PROBE = "'a value of no other line'"


def name_of(line):
    return line.theirs


def config_of(run, binding):
    """The config of a shipped run with one more binding on the command line."""
    names = ["gin/models/t5_tiny.gin", "gin/mixtures/ml_100k.gin", f"gin/runs/{run}.gin"]
    texts = gin_files.read_files(names)
    statements = [statement for text in texts for statement in text.statements]
    required = {s.key for s in statements if s.is_required and s.is_macro}
    texts += gin_files.read_bindings([f"{name}='x'" for name in sorted(required)], texts)
    texts += gin_files.read_bindings([binding], texts)
    gin_config.configure(RUNS[run], texts)
    return gin_config.resolved_config()


def first_config(binding):
    """The config of the first run that takes a binding, None if there is none."""
    for run in RUNS:
        try:
            return config_of(run, binding)
        except UserError:
            continue
    return None


@pytest.mark.parametrize("line", TAKEN, ids=name_of)
def test_a_line_that_means_the_same_has_its_effect_on_the_config(line, caplog):
    caplog.set_level("INFO")
    config = first_config(f"{line.theirs}={PROBE}")
    assert config is not None, "no run takes it"
    assert f"{line.ours[0]} = {PROBE}" in config
    assert f"--gin.{line.theirs}, a line of T5X's, is taken as {line.ours[0]}" in caplog.text


def test_a_line_that_is_one_thing_in_training_and_another_in_scoring_follows_the_run():
    path = "utils.RestoreCheckpointConfig.path"
    assert f"\nINITIAL_CHECKPOINT_PATH = {PROBE}" in config_of("finetune", f"{path}={PROBE}")
    assert f"\nCHECKPOINT_PATH = {PROBE}" in config_of("score", f"{path}={PROBE}")


@pytest.mark.parametrize("line", REFUSED, ids=name_of)
def test_any_other_line_is_refused_with_what_to_write_instead(line):
    with pytest.raises(UserError) as caught:
        config_of("finetune", f"{line.theirs}={PROBE}")
    message = str(caught.value)
    assert message.startswith(f"--gin.{line.theirs} is a line of T5X's; ")
    assert line.note in message and all(name in message for name in line.ours)
    assert line.ours or (line.note and "leave it out" in message)


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_every_equivalent_is_a_name_that_some_run_takes(name):
    assert first_config(f"{name}={PROBE}") is not None


def test_no_two_lines_are_one_and_a_macro_of_ours_is_none_of_them():
    names = [line.theirs for line in t5x_lines.LINES]
    assert len(set(names)) == len(t5x_lines._BY_KEY) == len(names) >= 90
    used = {name for run in RUNS for name in macros_of(run)}
    assert not used & t5x_lines.MACROS.keys()


def macros_of(run):
    texts = gin_files.read_files([f"gin/runs/{run}.gin"])
    return [statement.key for text in texts for statement in text.statements]


@pytest.mark.parametrize(
    ("typed", "theirs"),
    [
        ("train.total_steps", "train_script.train.total_steps"),
        ("train.train.total_steps", "train_script.train.total_steps"),
        ("t5x.utils.SaveCheckpointConfig.period", "utils.SaveCheckpointConfig.period"),
        ("PjitPartitioner.num_partitions", "partitioning.PjitPartitioner.num_partitions"),
        ("train_eval/utils.DatasetConfig.seed", "utils.DatasetConfig.seed"),
        ("train/utils.DatasetConfig.seed", "train/utils.DatasetConfig.seed"),
    ],
)
def test_a_line_is_known_however_much_of_its_name_is_typed(typed, theirs):
    assert t5x_lines.find(typed, {"train"}).theirs == theirs


def test_bindings_of_our_own_modules_are_none_of_t5x_s():
    for name in ("t5.T5Config.vocab_size", "train.TrainSettings.pack", "MODEL_DIR", "utils.f.seed"):
        assert t5x_lines.find(name, {"t5", "train", "utils"}) is None


@pytest.mark.parametrize("name", t5x_lines.MACROS)
def test_a_macro_that_is_none_here_is_refused_with_what_to_do(name):
    with pytest.raises(UserError) as caught:
        config_of("finetune", f"{name}=None")
    assert str(caught.value).endswith(t5x_lines.MACROS[name])


@pytest.mark.parametrize("name", t5x_lines.FILES)
def test_a_gin_file_of_t5x_has_one_here(name):
    ours = t5x_lines.FILES[name]
    assert gin_files.find_gin_file(ours).is_file()
    with pytest.raises(UserError, match=f"{name} is a file of T5X's; write {ours}"):
        gin_files.find_gin_file(name)


def test_a_gin_file_with_lines_of_t5x_is_refused_line_by_line(tmp_path):
    path = tmp_path / "own.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\n"
        "import __main__ as train_script\nimport seqio\nfrom t5x import utils\n"
        "TRAIN_STEPS = 5\n"
        "train_script.train.total_steps = %TRAIN_STEPS\n"
        "train/utils.DatasetConfig:\n  shuffle = False\n"
        "utils.SaveCheckpointConfig:\n  period = 100\n"
        "utils.Unknown.size = 3\n"
    )
    with pytest.raises(UserError) as caught:
        gin_config.run_with_gin(train.train, gin_file_names=[str(path)])
    message = str(caught.value)
    for part in (
        "leave out its imports of __main__, seqio, t5x.utils",
        "line 6, train_script.train.total_steps: write TRAIN_STEPS",
        "line 8, train/utils.DatasetConfig.shuffle: leave it out: training examples are",
        "line 10, utils.SaveCheckpointConfig.period: write loop.Periods.checkpoint (",
        "line 11, t5x.utils.Unknown.size: no equivalent is known",
    ):
        assert part in message


@pytest.mark.parametrize("flag", t5x_lines.FLAGS)
def test_a_flag_that_is_none_here_is_refused_with_what_to_do(flag, capsys):
    for typed in (flag, f"{flag}=3", flag.replace("_", "-")):
        assert main.main(["train", "--gin_file=a.gin", typed]) == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert f"{flag} is a flag of T5X's; {t5x_lines.FLAGS[flag]}" in shown


def test_flags_that_mean_the_same_are_taken(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(gin_config, "run_with_gin", lambda _, **given: seen.update(given))
    words = ["--gin_file=a.gin", "--gin_search_paths=x,y", "--tfds_data_dir=runs/records"]
    words += ["--gin_bindings=A=1", "--gin.B=2", "--gin_bindings", "C = 3"]
    assert main.main(["train", *words]) == 0
    assert seen["search_paths"] == ["x", "y"]
    assert seen["bindings"] == ["DATA_DIR='runs/records'", "A=1", "B=2", "C = 3"]


def test_help_shows_the_table(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["help", "t5x"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert max(map(len, shown.splitlines())) <= 80
    for line in t5x_lines.LINES:
        assert f"  {line.theirs}" in shown
