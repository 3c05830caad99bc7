"""The words of a command line, read into the options of one verb.

Flags are typed with `_` or `-` between their words. A name that nothing has gets the nearest ones,
and a flag of T5X's the equivalent here.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from instructrec_jax import __version__
from instructrec_jax.cli import messages, t5x_lines
from instructrec_jax.cli.verb import GIN_BINDINGS, Group, Verb
from instructrec_jax.errors import UserError, unknown_name

_BINDING = "--gin."
_HELP = "help"
_TALK = {
    messages.QUIET: ("-q", "--quiet", "show warnings and results alone"),
    messages.VERBOSE: (
        "-v",
        "--verbose",
        "show what the libraries say too, with time and source",
    ),
}
_TALK_FLAGS = frozenset(flag for short, long, _ in _TALK.values() for flag in (short, long))


def parse(verbs: Sequence[Verb | Group], arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options of the verb that the words name; `chosen` is the verb itself.

    Exits the process after a help page, and where argparse finds a value missing or wrong.

    Args:
      verbs: what there is.
      arguments: words after the command's name.

    Raises:
      UserError: for a verb or flag that there is not.
    """
    words = [_spelled(word) for word in arguments]
    named = list(itertools.dropwhile(lambda word: word in _TALK_FLAGS, words))
    if named[:1] == [_HELP]:
        if named[1:] == [t5x_lines.TOPIC]:
            messages.show(t5x_lines.as_text(), sys.stdout)
            raise SystemExit(0)
        words = named = [*named[1:], "--help"]
    elif default := _default(verbs, named):
        words = [*words[: -len(named)], *(named := [named[0], default, *named[1:]])]
    verb, takes_gin = _chosen(verbs, named), True
    if isinstance(verb, Verb):
        takes_gin = verb.takes_gin
    given = [word for word in words if word.startswith(f"{GIN_BINDINGS}=")]
    if given and not takes_gin:
        binding = given[0].removeprefix(f"{GIN_BINDINGS}=")
        raise UserError(f"`instructrec {named[0]}` takes no gin binding: {_BINDING}{binding}")
    parser = make_parser(verbs, named)
    _check_flags(parser, named, words)
    return parser.parse_args(words)


def complete(verbs: Sequence[Verb | Group]) -> None:
    """Answers a shell that asks which words may follow, and ends the process.

    Args:
      verbs: what there is.
    """
    import argcomplete

    typed = os.environ["COMP_LINE"].split()[1:]
    named = list(itertools.dropwhile(lambda word: word in _TALK_FLAGS, typed))
    argcomplete.autocomplete(make_parser(verbs, named), exclude=["--gin.NAME"])


def make_parser(
    verbs: Sequence[Verb | Group], chosen: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Returns the parser of all verbs.

    Args:
      verbs: what there is.
      chosen: the words from the verb on; only the flags of the verb that they name are there, since
        reading them off imports the verb's stage.
    """
    parser = argparse.ArgumentParser(
        prog="instructrec",
        description="Recommendation as instruction following, from raw logs to a report.",
        epilog="example: instructrec demo\n\nEach verb has its own help: instructrec help VERB",
        formatter_class=messages.HelpPage,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"instructrec {__version__}")
    _add_talk(parser)
    _add_verbs(parser.add_subparsers(dest="verb", metavar="VERB", required=True), verbs, chosen)
    return parser


def _add_talk(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how much is said; they stand before the verb or after it."""
    for name, (short, long, text) in _TALK.items():
        parser.add_argument(
            short,
            long,
            dest="talk",
            action="store_const",
            const=name,
            default=argparse.SUPPRESS,
            help=text,
        )


def _add_verbs(subparsers: Any, verbs: Sequence[Verb | Group], chosen: Sequence[str]) -> None:
    """Adds the parser of each verb, and the flags of the chosen one."""
    for verb in verbs:
        subparser = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog=f"example:\n  {verb.example}",
            formatter_class=messages.HelpPage,
            allow_abbrev=False,
        )
        is_chosen = tuple(chosen[:1]) == (verb.name,)
        if isinstance(verb, Group):
            actions = subparser.add_subparsers(dest="action", metavar="ACTION", required=True)
            _add_verbs(actions, verb.verbs, chosen[1:] if is_chosen else ())
        elif is_chosen:
            verb.add_flags(subparser)
            _add_talk(subparser)
            subparser.set_defaults(chosen=verb)


def _spelled(word: str) -> str:
    """Returns a word with its flag as it is kept: --input_dir of --input-dir.

    `--gin.NAME=VALUE` is one of `--gin_bindings`, as in T5X.
    """
    if word.startswith(_BINDING):
        return f"{GIN_BINDINGS}={word.removeprefix(_BINDING)}"
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _default(verbs: Sequence[Verb | Group], words: Sequence[str]) -> str:
    """Returns the verb that is meant where a flag stands in its place, "" for none."""
    names = {verb.name: verb.default for verb in verbs if isinstance(verb, Group)}
    has_flag = len(words) > 1 and words[1].startswith("-") and words[1] not in ("-h", "--help")
    return names.get(words[0], "") if has_flag else ""


def _chosen(verbs: Sequence[Verb | Group], words: Sequence[str]) -> Verb | Group | None:
    """Returns what the first words name, None where there are only flags."""
    if not words or words[0].startswith("-"):
        return None
    by_name = {verb.name: verb for verb in verbs}
    if words[0] not in by_name:
        raise unknown_name("verb", words[0], by_name)
    found = by_name[words[0]]
    if isinstance(found, Group):
        return _chosen(found.verbs, words[1:]) or found
    return found


def _check_flags(
    parser: argparse.ArgumentParser, named: Sequence[str], words: Sequence[str]
) -> None:
    """Raises for a flag that the verb does not have; argparse would first ask for others."""
    known = set(parser._option_string_actions)
    for word in named[:2]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                parser = action.choices[word]
                known |= set(parser._option_string_actions)
                break
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0]
        if flag.startswith("--") and " " not in flag and flag not in known:
            raise _unknown_flag(flag, known)


def _unknown_flag(flag: str, known: Iterable[str]) -> UserError:
    """Returns the error for a flag that there is not."""
    if flag in t5x_lines.FLAGS:
        return UserError(f"{flag} is a flag of T5X's; {t5x_lines.FLAGS[flag]}")
    names = sorted(name for name in known if name.startswith("--"))
    near = difflib.get_close_matches(flag, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help shows what there is"
    return UserError(f"unknown flag {flag}; {hint}")
