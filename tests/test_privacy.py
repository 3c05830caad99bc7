"""What is written names neither this machine, nor where things are installed, nor its secrets."""

import socket
import sys
from pathlib import Path

import pytest
from score_toy import score_toy
from train_toy import train_toy

import instructrec_jax
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.scores.claims import Claims

SECRET = "hunter2-planted"


@pytest.fixture(scope="module")
def written(toy_prepared, toy_records, tmp_path_factory):
    """The folders of every stage up to the scores."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTRUCTREC_PLANTED", SECRET)
        patch.setenv("OPENAI_API_KEY", SECRET)
        train_toy(toy_records, folder / "model", 2)
        score_toy(toy_records, folder / "model", folder / "scores")
    return [toy_prepared, toy_records, folder / "model", folder / "scores"]


def files_in(folders):
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def test_no_file_names_the_installation_the_run_s_folder_or_a_secret(written):
    package = str(Path(instructrec_jax.__file__).parents[1])
    home = [str(Path.home()) + "/"] if len(str(Path.home())) > 1 else []
    own = str(written[2].parent)
    for path in files_in(written):
        content = path.read_bytes()
        for place in (package, sys.prefix, *home, SECRET):
            assert place.encode() not in content, (path, place)
        if path.name != "config.gin" and path.is_relative_to(written[2]):
            assert own.encode() not in content, path


def test_no_file_is_named_after_the_host(written):
    host = socket.gethostname()
    assert not [path for path in files_in(written) if path.suffix == f".{host}"]
    events = list((written[2] / "tensorboard").iterdir())
    assert len(events) == 1 and events[0].name.startswith("events.out.tfevents.")
    assert events[0].stat().st_size > 100


def test_a_claim_tells_hosts_apart_and_does_not_name_them(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    claims = Claims(tmp_path)
    assert claims.take("a")
    (claim,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "secret-host" not in claim.read_text()


def test_a_command_is_kept_as_it_was_typed_whatever_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/env/bin/instructrec", "prepare", "--x=\udcff é"])
    Manifest(stage="toy", inputs={}, settings={}).write(tmp_path)
    assert read_manifest(tmp_path).command == r"instructrec prepare '--x=\udcff é'"
    monkeypatch.setattr(sys, "argv", ["/opt/lib/instructrec_jax/__main__.py", "lint"])
    assert Manifest(stage="toy", inputs={}, settings={}).command == "instructrec lint"
