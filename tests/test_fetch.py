"""Fetching a public data set, without a network: the wheel is made here."""

import hashlib
import zipfile

import pytest

from instructrec_jax.data import fetch as fetching
from instructrec_jax.data.fetch import SOURCES, Source, fetch
from instructrec_jax.errors import UserError

FILES = {"toy.inter": b"inter", "toy.item": b"item"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shop(tmp_path):
    """A wheel with a data set in it, the source that describes it, and a downloader."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**FILES, "other.txt": b"not wanted"}.items():
            archive.writestr(f"toy/data/{name}", content)
    source = Source(
        requirement="toy==1.0",
        wheel_sha256=digest(wheel.read_bytes()),
        folder="toy/data",
        files={name: digest(content) for name, content in FILES.items()},
        terms="free",
    )
    calls = []

    def download(requirement, folder):
        calls.append(requirement)
        return wheel

    return source, download, calls


def test_only_the_wanted_files_are_kept_and_reused(tmp_path, shop):
    source, download, calls = shop
    cache = tmp_path / "cache"
    for _ in range(2):
        folder = fetch("toy", cache, download=download, sources={"toy": source})
    assert calls == ["toy==1.0"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert list(cache.iterdir()) == [cache / "toy"]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, shop):
    source, download, calls = shop
    folder = fetch("toy", tmp_path, download=download, sources={"toy": source})
    (folder / "toy.item").write_bytes(b"cut")
    fetch("toy", tmp_path, download=download, sources={"toy": source})
    assert len(calls) == 2
    assert (folder / "toy.item").read_bytes() == b"item"


@pytest.mark.parametrize(
    "wrong",
    [
        {"wheel_sha256": digest(b"another")},
        {"files": {**{n: digest(c) for n, c in FILES.items()}, "toy.item": digest(b"another")}},
        {"files": {"toy.user": digest(b"absent")}},
    ],
)
def test_content_that_is_not_the_pinned_one_is_refused_and_nothing_is_kept(tmp_path, shop, wrong):
    source, download, _ = shop
    source = Source(**{**vars(source), **wrong})
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"sha256|holds no"):
        fetch("toy", cache, download=download, sources={"toy": source})
    assert not cache.exists() or not list(cache.iterdir())


def test_without_a_network_the_message_says_what_was_tried_and_how_to_go_on(tmp_path, monkeypatch):
    # A closed port of this machine stands for a missing network.
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError) as caught:
        fetch("ml-100k", tmp_path / "cache")
    message = str(caught.value)
    for part in ("pip download recbole==1.2.1", "failed", "ml-100k.inter", str(tmp_path)):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_an_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown dataset 'ml-10k'.*ml-100k"):
        fetch("ml-10k", tmp_path)


def test_underscores_and_capitals_do_not_matter(tmp_path, shop):
    source, download, _ = shop
    sources = {"toy-set": source}
    assert fetch("Toy_Set", tmp_path, download=download, sources=sources).name == "toy-set"


def test_sources_are_pinned():
    for name, source in SOURCES.items():
        assert "==" in source.requirement and len(source.wheel_sha256) == 64, name
        assert all(len(value) == 64 for value in source.files.values())
    assert fetching.DEFAULT_CACHE_DIR.name == "instructrec_jax"
