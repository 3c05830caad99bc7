"""Flags of a verb, derived from the function it runs.

Each parameter of the function is a flag; a parameter whose type is a dataclass stands for the
dataclass's fields. Name, type, default and help are those of the signature and of the docstring's
"Args:" or "Attributes:", so that nothing is written twice. What the user does not give is not
passed on: the function's own defaults hold.
"""

import argparse
import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_SECTION = re.compile(r"(?:Args|Attributes):")
_ENTRY = re.compile(r" {2}(\w+): (.*)")
_METAVARS = {int: "N", float: "NUMBER", str: "NAME"}
_FOLDER, _FILE = "DIR", "FILE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One value that the user may give.

    Attributes:
      name: of the parameter or field.
      kind: type of the value, or of each value of a list.
      is_list: whether several values may be given.
      default: `inspect.Parameter.empty` where the user has to give one.
      text: what it is, for the help.
    """

    name: str
    kind: type
    is_list: bool
    default: Any
    text: str

    @property
    def is_required(self) -> bool:
        """Whether the user has to give it."""
        return self.default is inspect.Parameter.empty

    @property
    def help(self) -> str:
        """The text with the default, as argparse takes it."""
        text = self.text.rstrip(".").replace("%", "%%")
        is_shown = self.default is not None and self.kind is not bool and self.default != ()
        if self.is_required or not is_shown:
            return text
        shown = " ".join(self.default) if self.is_list else self.default
        return f"{text} (default {shown})"

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if self.name.endswith("_dir"):
            return _FOLDER
        return _FILE if self.name.endswith(("_file", "_path")) else _METAVARS[self.kind]


def flags_of(target: Callable[..., Any]) -> list[Flag]:
    """Returns the flags of a function or dataclass, those of its dataclass parameters in place.

    Parameters that no text can stand for (functions) are left out.
    """
    found: list[Flag] = []
    hints, texts = _hints(target), _texts(target)
    for name, parameter in inspect.signature(target).parameters.items():
        hint = _without_none(hints[name])
        if dataclasses.is_dataclass(hint):
            found += flags_of(typing.cast(type, hint))
            continue
        is_list = typing.get_origin(hint) in (collections.abc.Sequence, tuple, list)
        kind = _without_none(typing.get_args(hint)[0]) if is_list else hint
        if kind in (str, int, float, bool):
            found.append(
                Flag(
                    name=name,
                    kind=kind,
                    is_list=is_list,
                    default=parameter.default,
                    text=texts.get(name, ""),
                )
            )
    return found


def add_flags(
    parser: argparse.ArgumentParser, target: Callable[..., Any], spelled: Mapping[str, str]
) -> None:
    """Adds the flags of a function to a parser.

    Args:
      parser: of the verb.
      target: the function.
      spelled: parameters that are typed in another way: as another flag ("--smoke"), or by position
        ("SOURCE").
    """
    for flag in flags_of(target):
        typed = spelled.get(flag.name, f"--{flag.name}")
        if not typed.startswith("--"):
            parser.add_argument(flag.name, metavar=typed, type=flag.kind, help=flag.help)
        elif flag.kind is bool:
            parser.add_argument(
                typed,
                dest=flag.name,
                action="store_true",
                default=argparse.SUPPRESS,
                help=flag.help,
            )
        else:
            parser.add_argument(
                typed,
                dest=flag.name,
                type=flag.kind,
                metavar=flag.metavar,
                required=flag.is_required,
                default=argparse.SUPPRESS,
                help=flag.help,
                **({"nargs": "+", "action": "extend"} if flag.is_list else {}),
            )


def arguments_of(target: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a function, its dataclasses filled, from what the user gave.

    Args:
      target: the function.
      given: values by the names of flags; those of others are left alone.
    """
    found: dict[str, Any] = {}
    for name, hint in _hints(target).items():
        kind = _without_none(hint)
        if dataclasses.is_dataclass(kind):
            found[name] = typing.cast(type, kind)(**arguments_of(typing.cast(type, kind), given))
        elif name in given:
            found[name] = given[name]
    return found


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of the parameters, or of the fields of a dataclass."""
    hints = typing.get_type_hints(target)
    return {name: hints[name] for name in inspect.signature(target).parameters}


def _without_none(hint: Any) -> Any:
    """Returns the type of a value that is given; a path is given as text."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return str if str in kinds else kinds[0]
    return hint


def _texts(target: Callable[..., Any]) -> dict[str, str]:
    """Returns what a docstring says of each parameter or attribute, inherited ones included."""
    found: dict[str, str] = {}
    for owner in reversed(getattr(target, "__mro__", (target,))):
        name, is_inside = "", False
        for line in inspect.cleandoc(owner.__doc__ or "").splitlines():
            if line and not line.startswith(" "):
                is_inside = _SECTION.fullmatch(line) is not None
            elif is_inside and (entry := _ENTRY.fullmatch(line)):
                name, found[entry[1]] = entry[1], entry[2]
            elif is_inside and line.strip():
                found[name] += f" {line.strip()}"
    return found
