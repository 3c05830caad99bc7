"""Fetching a public data set, without a network: the wheel is made here."""

import dataclasses
import functools
import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from instructrec_jax.data import fetch as fetching
from instructrec_jax.data.fetch import fetch
from instructrec_jax.data.public import SOURCES, Download, Source
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.stages import data as stage

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
    part = Download(
        address="toy==1.0",
        sha256=digest(wheel.read_bytes()),
        folder="toy/data",
        files={name: digest(content) for name, content in FILES.items()},
    )
    source = Source(downloads=(part,), terms="free")
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
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"
    } == (FILES)
    assert read_manifest(folder).inputs == {"toy==1.0": source.downloads[0].sha256}
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
        {"sha256": digest(b"another")},
        {"files": {**{n: digest(c) for n, c in FILES.items()}, "toy.item": digest(b"another")}},
        {"files": {"toy.user": digest(b"absent")}},
    ],
)
def test_content_that_is_not_the_pinned_one_is_refused_and_nothing_is_kept(tmp_path, shop, wrong):
    source, download, _ = shop
    part = dataclasses.replace(source.downloads[0], **wrong)
    source = dataclasses.replace(source, downloads=(part,))
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
    assert not (tmp_path / "cache" / "ml-100k").exists()


def test_an_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown dataset 'ml-10k'.*ml-100k"):
        fetch("ml-10k", tmp_path)


def test_underscores_and_capitals_do_not_matter(tmp_path, shop):
    source, download, _ = shop
    sources = {"toy-set": source}
    assert fetch("Toy_Set", tmp_path, download=download, sources=sources).name == "toy-set"


def test_a_cache_without_a_manifest_is_valid_where_every_file_is_pinned(tmp_path, shop):
    source, download, calls = shop
    folder = fetch("toy", tmp_path, download=download, sources={"toy": source})
    (folder / "manifest.json").unlink()
    fetch("toy", tmp_path, download=download, sources={"toy": source})
    assert len(calls) == 1


class Site:
    """A web site on this machine; `files` may change."""

    def __init__(self, folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        handler = functools.partial(Quiet, directory=str(folder))
        self.folder, self.server = (
            folder,
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler),
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "site").mkdir()
    found = Site(tmp_path / "site")
    yield found
    found.server.shutdown()
    found.server.server_close()


def zip_of(**contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"films/{name}", content)
    return stream.getvalue()


def test_files_of_a_pinned_archive_come_from_the_web_and_are_reused(tmp_path, site, caplog):
    caplog.set_level("INFO")
    archive = zip_of(ratings="1::2::3::4", movies="2::A::B", more="x")
    (site.folder / "films.zip").write_bytes(archive)
    names = {"ratings": None, "movies": None}
    part = Download(
        address=f"{site.url}/films.zip", sha256=digest(archive), folder="films", files=names
    )
    sources = {"films": Source(downloads=(part,), terms="free")}
    folder = fetch("films", tmp_path / "cache", sources=sources)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "movies", "ratings"]
    assert read_manifest(folder).inputs == {part.address: digest(archive)}
    (site.folder / "films.zip").unlink()
    assert fetch("films", tmp_path / "cache", sources=sources) == folder
    assert "reused" in caplog.text and "nobody has" not in caplog.text
    (folder / "movies").write_text("cut")
    with pytest.raises(UserError, match=r"films\.zip: HTTP Error 404.*\n.*ratings and movies"):
        fetch("films", tmp_path / "cache", sources=sources)
    (site.folder / "films.zip").write_bytes(archive[:-1])
    with pytest.raises(UserError, match=r"films\.zip of http.* has sha256 .*, expected"):
        fetch("films", tmp_path / "cache", sources=sources)
    assert (folder / "movies").read_text() == "cut", "what is there stays until the new is whole"


def test_what_nobody_vouches_for_is_kept_as_it_came_first_and_compared_later(
    tmp_path, site, caplog
):
    for name in ("a.json.gz", "meta_a.json.gz"):
        (site.folder / name).write_bytes(name.encode())
    parts = tuple(Download(address=f"{site.url}/{n}") for n in ("a.json.gz", "meta_a.json.gz"))
    sources = {"a": Source(downloads=parts, terms="free")}
    folder = fetch("a", tmp_path / "cache", sources=sources)
    assert caplog.text.count("nobody has published the checksum") == 2
    assert digest(b"a.json.gz") in caplog.text
    assert (folder / "a.json.gz").read_bytes() == b"a.json.gz"
    (folder / "a.json.gz").write_bytes(b"damaged")
    caplog.clear()
    fetch("a", tmp_path / "cache", sources=sources)
    assert (folder / "a.json.gz").read_bytes() == b"a.json.gz" and "nobody has" not in caplog.text
    (folder / "a.json.gz").write_bytes(b"damaged")
    (site.folder / "a.json.gz").write_bytes(b"another")
    with pytest.raises(UserError, match="its owner has changed it"):
        fetch("a", tmp_path / "cache", sources=sources)


def test_a_page_in_place_of_an_archive_is_refused(tmp_path, site):
    (site.folder / "films.zip").write_text("<html>moved</html>")
    part = Download(address=f"{site.url}/films.zip", folder="films", files={"movies": None})
    with pytest.raises(UserError, match="is no zip file"):
        fetch("films", tmp_path / "cache", sources={"films": Source(downloads=(part,), terms="")})


def test_sources_are_pinned_by_whole_checksums():
    for name, source in SOURCES.items():
        assert source.terms and source.downloads, name
        for part in source.downloads:
            assert part.address.startswith("https://") or "==" in part.address
            assert part.is_url or part.sha256, name
            digests = [part.sha256, *part.files.values()]
            assert all(value is None or len(value) == 64 for value in digests)
    assert fetching.DEFAULT_CACHE_DIR.name == "instructrec_jax"


def test_the_list_shows_every_source_with_its_terms():
    text = stage.as_text(stage.show())
    for name, source in SOURCES.items():
        assert f"{name}: {source.terms}" in text
    assert "100,000" in text and "pip: recbole==1.2.1" in text and "files.grouplens.org" in text
    assert max(map(len, text.splitlines())) <= 100
