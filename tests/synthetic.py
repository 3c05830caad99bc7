"""A small invented data set with planted taste, for the tests of every stage."""

import json
from pathlib import Path

import numpy as np

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_KINDS = ("Lamps", "Kettles", "Kites", "Drums", "Boots", "Tents")
_STYLES = ("Plain", "Fancy")
_INTERACTIONS = ("user_id", "item_id", "timestamp")
_ITEMS = ("item_id", "title", "category")


def write_logs(
    folder: Path | str, *, num_users: int, num_items: int, seed: int, format: str = "tsv"
) -> Path:
    """Writes interactions and items in which users keep to a favourite kind of item.

    About five choices in six come from the user's favourite kind, each item's title carries two
    words of its kind, and one word of its own; no user chooses an item twice. With at least 40
    users and at most as many items nearly everything survives the 5-core.

    Args:
      folder: where the files go; made if missing.
      num_users: at least 1.
      num_items: at least 12.
      seed: the same seed writes the same bytes.
      format: "tsv" (interactions.tsv, items.tsv), "jsonl" or "recbole" (toy.inter, toy.item).

    Returns:
      The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    items, kinds = _items(rng, num_items)
    interactions = _interactions(rng, num_users, kinds)
    writers = {"tsv": _write_tsv, "jsonl": _write_jsonl, "recbole": _write_recbole}
    writers[format](folder, interactions, items)
    return folder


def _items(rng: np.random.Generator, num_items: int) -> tuple[list[tuple], np.ndarray]:
    """Invents the catalogue; returns its rows and the kind of each item."""
    words = {kind: [_word(rng) for _ in range(6)] for kind in _KINDS}
    kinds = np.arange(num_items) % len(_KINDS)
    rows = []
    for index, kind_index in enumerate(kinds):
        kind = _KINDS[kind_index]
        first, second = rng.choice(words[kind], size=2, replace=False)
        style = _STYLES[index // len(_KINDS) % len(_STYLES)]
        title = f"{first.title()} {second} {_word(rng)} {index}"
        rows.append((f"i{index}", title, f"Bazaar, {kind}, {style}"))
    return rows, kinds


def _interactions(rng: np.random.Generator, num_users: int, kinds: np.ndarray) -> list[tuple]:
    """Invents each user's choices, in the order of a log that all users write to."""
    rows = []
    popularity = 1.0 / np.sqrt(1 + rng.permutation(len(kinds)))
    for user in range(num_users):
        weights = popularity * np.where(kinds == rng.integers(len(_KINDS)), 25.0, 1.0)
        longest = max(6, min(24, len(kinds) // 3))
        size = min(int(rng.integers(6, longest + 1)), len(kinds))
        chosen = rng.choice(len(kinds), size=size, replace=False, p=weights / weights.sum())
        times = np.sort(rng.integers(1_000_000, 2_000_000, size=size))
        rows += [(f"u{user}", f"i{item}", int(t)) for item, t in zip(chosen, times, strict=True)]
    rng.shuffle(rows)
    return [tuple(row) for row in rows]


def _word(rng: np.random.Generator) -> str:
    """Returns an invented word of three syllables."""
    return "".join(str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(3))


def _write_tsv(folder: Path, interactions: list[tuple], items: list[tuple]) -> None:
    _write_table(folder / "interactions.tsv", _INTERACTIONS, interactions)
    _write_table(folder / "items.tsv", _ITEMS, items)


def _write_recbole(folder: Path, interactions: list[tuple], items: list[tuple]) -> None:
    header = ("user_id:token", "item_id:token", "timestamp:float")
    _write_table(folder / "toy.inter", header, interactions)
    header = ("item_id:token", "title:token_seq", "category:token_seq")
    _write_table(folder / "toy.item", header, items)


def _write_jsonl(folder: Path, interactions: list[tuple], items: list[tuple]) -> None:
    for name, fields, rows in (
        ("interactions", _INTERACTIONS, interactions),
        ("items", _ITEMS, items),
    ):
        lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    lines = ["\t".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
