"""What a compiled program sends between devices, read out of its text."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (\(?\w+\[.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+[0-9]*)(?:e\w+)?\[([0-9,]*)\]")
_CALLED = re.compile(r"(body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_BYTES = {"pred": 1, "s4": 1, "u4": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      shapes: of the arrays that each device has afterwards.
      num_bytes: of these arrays together.
      times: how often it runs; where it is in a loop of unknown length, that counts as one round.
      computation: name of the loop body or other part of the program that it is in.
      source: the operation of the traced program that it comes from, "" where unknown.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    times: int
    computation: str
    source: str


def collectives(text: str) -> list[Collective]:
    """Returns what a program exchanges.

    Args:
      text: of a compiled program, from its `as_text`.
    """
    lines = _by_computation(text)
    times = _times(lines)
    return [
        found
        for name, own in lines.items()
        for line in own
        if (found := _collective(line, name, times[name]))
    ]


def totals(found: Sequence[Collective]) -> Mapping[str, tuple[int, int]]:
    """Returns (how many run, bytes that each device has of them), by kind."""
    sums: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    for one in found:
        number, size = sums[one.kind]
        sums[one.kind] = number + one.times, size + one.times * one.num_bytes
    return dict(sums)


def _collective(line: str, computation: str, times: int) -> Collective | None:
    matched = _COLLECTIVE.search(line)
    if matched is None:
        return None
    arrays = _ARRAY.findall(matched[1])
    if matched[3] and matched[2] != "all-reduce":  # begun, it gives its operands and its results
        arrays = arrays[len(arrays) // 2 :]
    shapes = [tuple(int(size) for size in sizes.split(",") if size) for _, sizes in arrays]
    source = _SOURCE.search(line)
    return Collective(
        kind=matched[2],
        shapes=tuple(shapes),
        num_bytes=sum(
            _item_bytes(dtype) * math.prod(shape)
            for (dtype, _), shape in zip(arrays, shapes, strict=True)
        ),
        times=times,
        computation=computation,
        source=source[1] if source else "",
    )


def _item_bytes(dtype: str) -> int:
    """Returns the bytes of an element of "f32", "bf16", "s8" and the like."""
    return _BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8


def _by_computation(text: str) -> dict[str, list[str]]:
    """Returns the lines of each computation, the entry's under "ENTRY"."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            own = found.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            own.append(line)
    return found


def _times(lines: Mapping[str, list[str]]) -> Mapping[str, int]:
    """Returns how often each computation runs."""
    callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, own in lines.items():
        for called, rounds in _calls(own):
            callers[called].append((name, rounds))

    @functools.cache
    def of(name: str) -> int:
        return 1 if name == "ENTRY" else sum(n * of(caller) for caller, n in callers[name])

    return {name: of(name) for name in lines}


def _calls(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yields the computations that lines call, and how often."""
    for line in lines:
        trips = _TRIPS.search(line)
        for kind, names in _CALLED.findall(line):
            for name in re.findall(r"[\w.\-]+", names):
                yield name, int(trips[1]) if trips and kind == "body" else 1
