"""The public data sets that are known by name: where they come from, their checksums and terms."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """One file to download.

    Attributes:
      address: an https URL, or a pinned requirement whose wheel pip downloads.
      sha256: of the file; None where nobody has published it: what is downloaded first is then
        trusted, and its checksum is kept.
      folder: folder in the wheel or zip file of the files to take out.
      files: sha256 of the files to take out, by name, None where it is not known; {} where the
        download is kept as it is.
    """

    address: str
    sha256: str | None = None
    folder: str = ""
    files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def is_url(self) -> bool:
        """Whether it comes from the web and not from the package index."""
        return "://" in self.address

    @property
    def names(self) -> list[str]:
        """The files that it gives."""
        return list(self.files) or [PurePosixPath(self.address).name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set, in a format that `prepare` reads.

    Attributes:
      downloads: what it consists of.
      terms: who owns the data and on what terms it may be used.
      num_users: users in it; None where that is not known, and likewise:
      num_items: items with a title.
      num_interactions: ratings or reviews.
    """

    downloads: tuple[Download, ...]
    terms: str
    num_users: int | None = None
    num_items: int | None = None
    num_interactions: int | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the checksum of every download is known."""
        return all(download.sha256 for download in self.downloads)


_MOVIELENS = "https://files.grouplens.org/datasets/movielens/"
_GROUPLENS = "GroupLens' ratings (research use; cite Harper and Konstan, 2015)"
_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/"


def _movielens(name: str, ending: str, sha256: str) -> Download:
    """Returns an archive of GroupLens; the checksum is the one that TensorFlow Datasets lists."""
    return Download(
        address=f"{_MOVIELENS}{name}.zip",
        sha256=sha256,
        folder=name,
        files={f"ratings.{ending}": None, f"movies.{ending}": None},
    )


SOURCES: Mapping[str, Source] = {
    "ml-100k": Source(
        downloads=(
            Download(
                address="recbole==1.2.1",
                sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                folder="recbole/dataset_example/ml-100k",
                files={
                    "ml-100k.inter": (
                        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
                    ),
                    "ml-100k.item": (
                        "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"
                    ),
                    "ml-100k.user": (
                        "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972"
                    ),
                },
            ),
        ),
        terms=_GROUPLENS,
        num_users=943,
        num_items=1682,
        num_interactions=100_000,
    ),
    "ml-1m": Source(
        downloads=(
            _movielens(
                "ml-1m", "dat", "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
            ),
        ),
        terms=_GROUPLENS,
        num_users=6040,
        num_items=3883,
        num_interactions=1_000_209,
    ),
    "ml-20m": Source(
        downloads=(
            _movielens(
                "ml-20m", "csv", "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"
            ),
        ),
        terms=_GROUPLENS,
        num_users=138_493,
        num_items=27_278,
        num_interactions=20_000_263,
    ),
    "ml-25m": Source(
        downloads=(
            _movielens(
                "ml-25m", "csv", "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"
            ),
        ),
        terms=_GROUPLENS,
        num_users=162_541,
        num_items=62_423,
        num_interactions=25_000_095,
    ),
    "amazon-games-2018": Source(
        downloads=(
            Download(address=f"{_AMAZON}amazon_v2/categoryFilesSmall/Video_Games_5.json.gz"),
            Download(address=f"{_AMAZON}amazon_v2/metaFiles2/meta_Video_Games.json.gz"),
        ),
        terms="Amazon's reviews, the paper's Games (cite Ni, Li and McAuley, 2019)",
    ),
    "amazon-games-2023": Source(
        downloads=(
            Download(address=f"{_AMAZON}amazon_2023/raw/review_categories/Video_Games.jsonl.gz"),
            Download(address=f"{_AMAZON}amazon_2023/raw/meta_categories/meta_Video_Games.jsonl.gz"),
        ),
        terms="Amazon's reviews (cite Hou et al., 2024)",
    ),
}
