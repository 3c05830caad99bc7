"""The ground that every part stands on: files, manifests, seeds and errors."""

import dataclasses
import errno
import json
import os
import shlex
import stat
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax import errors, files, manifest, seeds
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest


def plan(**changes) -> Manifest:
    fields = {"stage": "prepare", "inputs": {"log": "ab"}, "settings": {"seed": 0, "cuts": (1, 2)}}
    return Manifest(**(fields | changes))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with files.atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with files.atomic_directory(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(RuntimeError), files.atomic_directory(path) as temporary:
        (temporary / "a").write_text("2")
        raise RuntimeError
    assert (path / "a").read_text() == "1"
    with files.atomic_directory(path) as temporary:
        (temporary / "b").write_text("3")
    assert [p.name for p in path.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_files_and_folders_get_the_modes_that_the_umask_implies(tmp_path):
    before = os.umask(0o027)
    try:
        with files.atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("1")
        with files.atomic_directory(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_text_is_written_as_utf_8(tmp_path):
    files.write_text(tmp_path / "t", "naïve ✓")
    assert (tmp_path / "t").read_bytes().decode("utf-8") == "naïve ✓"


def test_a_hash_depends_on_bytes_and_names_and_not_on_times(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "x").write_text("1")
    os.utime(second / "sub" / "x", (0, 0))
    assert files.sha256(first) == files.sha256(second)
    (second / "sub" / "x").rename(second / "sub" / "y")
    assert files.sha256(first) != files.sha256(second)
    assert files.sha256(first / "sub" / "x") == files.sha256(second / "sub" / "y")


def test_a_manifest_of_an_earlier_version_is_read(tmp_path):
    plan().write(tmp_path)
    path = tmp_path / manifest.FILE_NAME
    fields = json.loads(path.read_text())
    for name in ("files", "checksum", "examples"):  # what earlier versions did not write
        del fields[name]
    path.write_text(json.dumps(fields))
    found = manifest.read_manifest(tmp_path)
    assert found.describes_same_work(plan()) and found.files == {}


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    written = plan(counts={"users": 3}, drops={"no title": 1})
    written.write(tmp_path)
    found = manifest.read_manifest(tmp_path)
    assert found.describes_same_work(written)
    assert (found.counts, found.drops) == ({"users": 3}, {"no title": 1})
    assert found.versions["instructrec-jax"] and found.command


def test_work_is_done_only_where_inputs_and_settings_are_the_same(tmp_path):
    assert not manifest.find_same_work(tmp_path / "new", plan())
    assert not manifest.find_same_work(tmp_path, plan())
    plan(counts={"users": 3}).write(tmp_path)
    assert manifest.find_same_work(tmp_path, plan())
    assert manifest.find_same_work(tmp_path, dataclasses.replace(plan(), command="otherwise"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage": "build"}, "stage 'prepare', not 'build'"),
        ({"inputs": {"log": "cd"}}, r"inputs\['log'\] was 'ab' there and is 'cd' now"),
        ({"settings": {"seed": 1, "cuts": (1, 2)}}, r"settings\['seed'\] was 0 there and is 1 now"),
        ({"settings": {"seed": 0}}, r"settings\['cuts'\]"),
    ],
)
def test_a_folder_of_other_work_is_refused_and_the_difference_named(tmp_path, changes, named):
    plan().write(tmp_path)
    with pytest.raises(UserError, match=named):
        manifest.find_same_work(tmp_path, plan(**changes))


def test_a_folder_with_other_files_is_never_taken_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        manifest.find_same_work(tmp_path, plan())


def test_claimed_work_is_taken_up_again_and_other_work_refused(tmp_path):
    assert manifest.claim(tmp_path / "run", plan()) is None
    earlier = manifest.claim(tmp_path / "run", plan())
    assert earlier is not None and not earlier.counts
    with pytest.raises(UserError, match="seed"):
        manifest.claim(tmp_path / "run", plan(settings={"seed": 9, "cuts": (1, 2)}))


def test_work_killed_while_it_claimed_its_folder_can_begin_again(tmp_path):
    with files.atomic_file(tmp_path / "other" / manifest.FILE_NAME) as temporary:
        name = temporary.name
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{")  # what kill -9 leaves behind
    assert manifest.claim(tmp_path / "run", plan()) is None
    (tmp_path / "run" / name).write_text("{")
    assert manifest.claim(tmp_path / "run", plan()) is not None
    assert [path.name for path in (tmp_path / "run").iterdir()] == [manifest.FILE_NAME]


WHOLE = {"stage": "prepare", "inputs": {}, "settings": {}}
DAMAGED = {
    **{"empty": "", "half": "{", "list": "[]", "deep": "[" * 100_000},
    **{"other field": json.dumps(WHOLE | {"color": "red"}), "too few": '{"stage": "x"}'},
    "settings are a list": json.dumps(WHOLE | {"settings": [1]}),
    "inputs are null": json.dumps(WHOLE | {"inputs": None}),
    "counts are a number": json.dumps(WHOLE | {"counts": 7}),
    "stage is a number": json.dumps(WHOLE | {"stage": 7}),
    "a hash is a number": json.dumps(WHOLE | {"inputs": {"log": 7}}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / manifest.FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        manifest.read_manifest(tmp_path)


def test_a_folder_for_a_manifest_is_named(tmp_path):
    (tmp_path / manifest.FILE_NAME).mkdir()
    with pytest.raises(UserError, match=r"cannot read .*manifest\.json: it is a folder"):
        manifest.read_manifest(tmp_path)


def test_the_recorded_command_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    arguments = ["instructrec", "prepare", "--input_dir=my logs", "--gin.DATA_DIR='\"x\"'"]
    monkeypatch.setattr(sys, "argv", arguments)
    plan().write(tmp_path)
    assert shlex.split(manifest.read_manifest(tmp_path).command) == arguments


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "file" / "below", tmp_path / "nothing", tmp_path / ("n" * 300)):
        with (
            pytest.raises(UserError, match=r"cannot write .*/(file/below|nothing|n+): "),
            files.atomic_directory(path) as temporary,
        ):
            (temporary / "a").write_text("1")
    with pytest.raises(UserError, match=r"cannot write .*file/below: File exists"):
        files.write_text(tmp_path / "file" / "below", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nothing"]
    with pytest.raises(UserError, match=r"cannot look into .*n: File name too long"):
        manifest.find_same_work(tmp_path / ("n" * 300), plan())


def test_a_full_disk_is_named_and_leaves_nothing_and_other_errors_pass(tmp_path):
    for code, expected in ((errno.ENOSPC, UserError), (errno.EACCES, PermissionError)):
        with pytest.raises(expected), files.atomic_directory(tmp_path / "a") as temporary:
            (temporary / "half").write_text("1")
            raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_hashed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: it is a folder, a FIFO or a device"):
        files.sha256(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"cannot read .*link: No such file"):
        files.sha256(tmp_path / "link")


def test_a_folder_without_manifest_is_not_the_output_of_a_stage(tmp_path):
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        manifest.read_manifest(tmp_path)


def test_a_seed_is_the_same_in_every_process_and_release():
    assert seeds.stable_seed(0, "ml_100k", "test", "196:19") == 5958395311348549717


@given(st.lists(st.text(max_size=4) | st.integers(), max_size=4))
def test_seeds_fit_63_bits(parts):
    assert 0 <= seeds.stable_seed(*parts) < 2**63


def test_parts_of_a_seed_do_not_run_into_each_other():
    assert seeds.stable_seed("a", "bc") != seeds.stable_seed("ab", "c")
    assert seeds.stable_seed(1, 2) != seeds.stable_seed(2, 1)


def test_an_unknown_name_gets_the_nearest_known_ones():
    message = str(errors.unknown_name("dataset", "ml100k", ["ml_100k", "amazon_games"]))
    assert message == "unknown dataset 'ml100k'; the nearest known: ml_100k"
    assert "none is registered" in str(errors.unknown_name("dataset", "x", []))
    assert "amazon_games, ml_100k" in str(
        errors.unknown_name("dataset", "zzz", ["ml_100k", "amazon_games"])
    )
