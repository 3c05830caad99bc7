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
_FUSED = re.compile(r" fusion\(.*calls=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_LESS_THAN = re.compile(r"ROOT .* compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
_SCATTERED = (
    "all-reduce-scatter"  # what a TPU's compiler calls a sum of which each device keeps a part
)
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
    reader = {
        fused: name for name, own in lines.items() for x in own for fused in _FUSED.findall(x)
    }
    found: dict[object, Collective] = {}
    for name, own in lines.items():
        for line in own:
            if one := _collective(line, name, times[name]):
                # A TPU's compiler writes an exchange that goes on beside several computations in
                # each of them. Another loop may have the same channel.
                channel, is_fused = _CHANNEL.search(line), name in reader
                key = (reader[name], one.kind, channel[1]) if channel and is_fused else (name, line)
                found.setdefault(key, one)
    return [_of_parts(one, lines) for one in found.values()]


def totals(found: Sequence[Collective]) -> Mapping[str, Mapping[str, int]]:
    """Returns by kind how many a program holds, how often they run, and the bytes of all runs."""
    sums: dict[str, dict[str, int]] = {}
    for one in found:
        own = sums.setdefault(one.kind, {"held": 0, "runs": 0, "bytes": 0})
        own["held"] += 1
        own["runs"] += one.times
        own["bytes"] += one.times * one.num_bytes
    return sums


def _collective(line: str, computation: str, times: int) -> Collective | None:
    matched = _COLLECTIVE.search(line)
    if matched is None:
        return None
    arrays = _ARRAY.findall(matched[1])
    if matched[3] and matched[2] != "all-reduce":  # begun, it gives its operands and its results
        arrays = [array for array in arrays if array != ("u32", "")]  # without what is waited for
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


def _of_parts(one: Collective, lines: Mapping[str, list[str]]) -> Collective:
    """Returns a sum of which each device keeps a part as a reduce-scatter, others as they are."""
    if not one.computation.startswith(_SCATTERED):
        return one
    (dtype, sizes), *_ = _ARRAY.findall(next(x for x in lines[one.computation] if "ROOT" in x))
    shape = tuple(int(size) for size in sizes.split(",") if size)
    return dataclasses.replace(
        one,
        kind="reduce-scatter",
        shapes=(shape,),
        num_bytes=_item_bytes(dtype) * math.prod(shape),
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
        for called, rounds in _calls(own, lines):
            callers[called].append((name, rounds))

    @functools.cache
    def of(name: str) -> int:
        return 1 if name == "ENTRY" else sum(n * of(caller) for caller, n in callers[name])

    return {name: of(name) for name in lines}


def _calls(lines: Sequence[str], all_lines: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Yields the computations that lines call, and how often."""
    for line in lines:
        called = [
            (kind, name)
            for kind, names in _CALLED.findall(line)
            for name in re.findall(r"[\w.\-]+", names)
        ]
        trips = _TRIPS.search(line)
        for kind, name in called:
            if kind == "body" and trips:
                yield name, int(trips[1])
            elif kind == "body":
                yield name, _rounds(all_lines.get(dict(called).get("condition", ""), []))
            else:
                yield name, 1


def _rounds(condition: Sequence[str]) -> int:
    """Returns the rounds of a loop that counts up to a constant, 1 where it does not."""
    found = filter(None, map(_CONSTANT.match, condition))
    constants = {matched[1]: int(matched[2]) for matched in found}
    for line in condition:
        if (compared := _LESS_THAN.search(line)) and compared[2] in constants:
            return constants[compared[2]]
    return 1
