"""Addresses of remote folders are refused in one line wherever a path is taken."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from instructrec_jax import files, open_model, settings
from instructrec_jax.cli import flags, gin_config, main
from instructrec_jax.cli.model_verbs import SystemsVerb
from instructrec_jax.cli.verb import Group
from instructrec_jax.errors import UserError
from instructrec_jax.settings import SettingError

ADDRESS = "gs://bucket/folder"
REFUSAL = "is 'gs://bucket/folder'; expected a path on this machine: mount the bucket (gcsfuse), "
SERVER_REFUSAL = "is 'gs://bucket/folder'; expected the address of a server, such as "
DATABASE_REFUSAL = "is 'gs://bucket/folder'; expected a path, or a database such as "
VERBS = [v for verb in main.VERBS for v in (verb.verbs if isinstance(verb, Group) else [verb])]
PLAIN = [v for v in VERBS if not v.takes_gin or v.name == "score"]


def _train():
    return next(verb for verb in VERBS if verb.name == "train").load()


def function_of(verb):
    """What takes the verb's flags; `score` has a form whose flags are not gin's."""
    return verb._ranked_file() if verb.name == "score" else verb.load()


def refusal_of(name):
    """What is said of an address; a server has one, of the web, and a database one of its own."""
    return {
        "base_url": SERVER_REFUSAL,
        "qdrant": SERVER_REFUSAL,
        "feedback": DATABASE_REFUSAL,
    }.get(name, REFUSAL)


def typed(verb, flag, value):
    name = verb.spelled.get(flag.name, f"--{flag.name}")
    return [name, value] if name.startswith("--") else [value]


@pytest.mark.parametrize("verb", PLAIN, ids=lambda verb: verb.name)
def test_every_flag_that_takes_a_text_refuses_an_address(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = next((v.name for v in main.VERBS if isinstance(v, Group) and verb in v.verbs), None)
    start = [verb.name] if group is None else [group, verb.name]
    start += ["--scores", "a=b:c"] if isinstance(verb, SystemsVerb) else []
    every = flags.flags_of(function_of(verb))
    for chosen in (flag for flag in every if flag.kind is str):
        words = [*start]
        for flag in every:
            if flag == chosen:
                words += typed(verb, flag, ADDRESS)
            elif flag.is_required:
                words += typed(verb, flag, "x" if flag.kind is str else "9")
        assert main.main(words) == main.USER_ERROR, chosen.name
        name = verb.spelled.get(chosen.name, f"--{chosen.name}")
        shown = " ".join(capsys.readouterr().err.split())  # lines are folded
        assert f"instructrec: {name} {refusal_of(chosen.name)}" in shown
    assert not list(tmp_path.iterdir())


def settings_of(function):
    """Yields the dataclasses that a function takes, at any depth."""
    for name, hint in typing.get_type_hints(function).items():
        for kind in (hint, *typing.get_args(hint)):
            if name != "return" and dataclasses.is_dataclass(kind):
                yield kind
                yield from settings_of(kind)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_setting_that_may_hold_a_text_refuses_an_address(verb):
    for kind in settings_of(verb.load()):
        names = [field.name for field in dataclasses.fields(kind)]
        for flag in flags.flags_of(kind):
            if flag.kind is str and flag.name in names:
                made = object.__new__(kind)
                for name in names:
                    object.__setattr__(made, name, ADDRESS if name == flag.name else None)
                refusal = re.escape(refusal_of(flag.name))
                with pytest.raises(SettingError, match=f"(?i){refusal}") as caught:
                    made.__post_init__()
                assert caught.value.name == flag.name


def test_a_macro_is_named_as_the_user_gave_it():
    with pytest.raises(UserError, match=r"^MODEL_DIR is 'gs://bucket/m'; expected a path on this"):
        gin_config.run_with_gin(
            _train(),
            gin_file_names=[
                "gin/models/t5_tiny.gin",
                "gin/mixtures/ml_100k.gin",
                "gin/runs/from_scratch.gin",
            ],
            bindings=["MODEL_DIR='gs://bucket/m'", "DATA_DIR='d'"],
        )


def test_gin_files_systems_and_the_python_api_refuse_an_address(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^a gin file is 'gs://bucket/folder'; expected a path"):
        gin_config.run_with_gin(_train(), gin_file_names=[ADDRESS])
    assert main.main(["report", "--scores", "mine=s3://b/v:s3://b/t"]) == main.USER_ERROR
    assert "--scores of 'mine' is 's3://b/v:s3://b/t'; expected a path" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^checkpoint_path is 'gs://bucket/folder'; expected a p"):
        open_model(ADDRESS)
    with (
        pytest.raises(UserError, match=r"^a path is 'gs:/bucket/folder'; expected a path on this"),
        files.atomic_directory(ADDRESS),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("s3://b/x", "aws s3 sync"),
        ("hdfs://n/x", "hdfs dfs -get"),
        ("https://h/x", "download it first"),
        ("file:///x", "write the path without the scheme"),
        ("FTP://h/x", "mount it, or copy it"),
        (Path("gs://b/x"), "gcloud storage rsync"),
        (["runs", {"a": "gs://b"}], "gcloud storage rsync"),
        ("runs/a:b", ""),
        ("C:/runs", ""),
        ("a note: http://h", ""),
        (3, ""),
    ],
)
def test_an_address_is_told_from_a_path_and_says_what_to_do(value, remedy):
    problem = settings.address_problem(value)
    assert (remedy in problem) if remedy else problem == ""
