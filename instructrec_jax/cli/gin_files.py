"""Gin files: where they are found, and the statements in them.

They are read with gin's own parser, and nothing is imported or bound: gin itself keeps no places,
lets the last of two definitions win and resolves includes by a search path of its own.
"""

import dataclasses
import io
import logging
import tokenize
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from instructrec_jax import files
from instructrec_jax.cli import t5x_lines
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.settings import address_problem

logger = logging.getLogger(__name__)
COMMAND_LINE = "the command line"
FOREIGN = "t5x"  # the folder of files for T5X's own programs
_OVERLAYS = {"overlays", "presets"}
_REQUIRED = "gin.REQUIRED"
_PACKAGE = Path(__file__).resolve().parents[1]
_NO_GIN = (SyntaxError, tokenize.TokenError, RecursionError, MemoryError, ValueError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One line `key = value` of a gin file.

    Attributes:
      key: macro name, or full name of a configurable and its argument.
      scope: of the configurable, "" for none.
      is_macro: whether the key is a macro.
      is_required: whether the value only says that someone else must give one.
      source: file, or `COMMAND_LINE`.
      line: line in the file.
      macros: names of the macros in the value.
      references: full names of the configurables in the value.
    """

    key: str
    scope: str
    is_macro: bool
    is_required: bool
    source: str
    line: int
    macros: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where the statement stands, as a message names it."""
        return self.source if self.source == COMMAND_LINE else f"{self.source} line {self.line}"

    @property
    def scoped_key(self) -> str:
        """The key after its scope."""
        return f"{self.scope}/{self.key}" if self.scope else self.key

    @property
    def may_override(self) -> bool:
        """Whether the statement may replace what another file defines."""
        return self.source == COMMAND_LINE or not _OVERLAYS.isdisjoint(Path(self.source).parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GinText:
    """A gin file without what it includes, or one binding of the command line.

    Attributes:
      source: the file as messages name it, or `COMMAND_LINE`.
      lines: its lines, those of includes left blank.
      statements: its bindings.
      imports: the modules that it imports, by the names that it gives them.
    """

    source: str
    lines: tuple[str, ...]
    statements: tuple[Statement, ...]
    imports: dict[str, config_parser.ImportStatement]

    def stream(self, *, without: Sequence[Statement] = ()) -> io.StringIO:
        """Returns the text as gin reads it, the lines of some statements left blank."""
        lines = list(self.lines)
        for statement in without:
            lines[statement.line - 1] = ""
        stream = io.StringIO("\n".join(lines) + "\n")
        vars(stream)["name"] = self.source  # gin's messages name it
        return stream


def home() -> Path:
    """Returns the folder that holds our `gin` folder: the installed package, or the checkout."""
    return _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent


def shipped_files() -> list[Path]:
    """Returns the paths of all shipped gin files that the command takes."""
    found = (home() / "gin").rglob("*.gin")
    return sorted(path for path in found if path.parent.name != FOREIGN)


def find_gin_file(
    name: str, search_paths: Sequence[str] = (), *, includer: Path | None = None
) -> Path:
    """Returns the absolute path of a gin file.

    Args:
      name: path as the user gave it; relative to a search path, to the working folder, or to where
        ours are.
      search_paths: folders that come first.
      includer: the file that includes it. One of ours includes ours, whatever files of the same
        name the other folders hold.

    Raises:
      UserError: if there is no such file, or it is one for T5X's own programs.
    """
    if problem := address_problem([name, *search_paths]):
        raise UserError(f"a gin file {problem}")
    is_ours = includer is not None and includer.is_relative_to(home() / "gin")
    others = [*map(Path, search_paths), Path.cwd()]
    for root in [home(), *others] if is_ours else [*others, home()]:
        path = root / name
        try:
            is_file = path.is_file()
        except OSError as error:
            raise UserError(f"gin file {name[:80]!r} cannot be read: {error.strerror}") from None
        if is_file:
            if path.resolve().parent == home() / "gin" / FOREIGN:
                raise UserError(
                    f"{name} is for T5X's own programs, and its head says how they run it; "
                    "`instructrec` takes the files of gin/models, gin/mixtures and gin/runs"
                )
            return path.resolve()
    if name in t5x_lines.FILES:
        raise UserError(f"{name} is a file of T5X's; write {t5x_lines.FILES[name]}")
    known = [str(path.relative_to(home())) for path in shipped_files()]
    raise unknown_name("gin file", name, known)


def read_files(names: Sequence[Path | str], search_paths: Sequence[str] = ()) -> list[GinText]:
    """Returns gin files, each after those that it includes.

    Args:
      names: as for `find_gin_file`.
      search_paths: likewise, also for what they include.

    Raises:
      UserError: where a file is no UTF-8 or no gin, is missing or includes itself.
    """
    paths = [find_gin_file(str(name), search_paths) for name in names]
    return [text for path in paths for text in _read_file(path, search_paths, seen=())]


def read_bindings(bindings: Sequence[str], texts: Sequence[GinText]) -> list[GinText]:
    """Returns "NAME=value" bindings of the command line, which may name what the files import.

    Where two files give one name to two modules, it means the first.

    Raises:
      UserError: where one has no value or is no gin.
    """
    imports = {name: item for text in reversed(texts) for name, item in text.imports.items()}
    used = {name for text in texts for own in text.statements for name in (own.key, *own.macros)}
    found = []
    for binding in bindings:
        name, equals, value = (part.strip() for part in binding.partition("="))
        if not equals or not name or not value or len(binding.splitlines()) > 1:
            raise UserError(f"--gin.{binding} has no value in one line; expected --gin.NAME=VALUE")
        name = _ours(name, imports, used)
        text, _ = _parse(f"{name} = {value}", COMMAND_LINE, imports)
        head = ["from __gin__ import dynamic_registration"]
        head += [item.format() for item in imports.values()]
        moved = [dataclasses.replace(s, line=s.line + len(head)) for s in text.statements]
        found.append(dataclasses.replace(text, lines=(*head, *text.lines), statements=tuple(moved)))
    return found


def _ours(name: str, imports: Container[str], used: Container[str]) -> str:
    """Returns what a binding of the command line is called here, where T5X's means the same.

    Args:
      name: of the binding.
      imports: names of modules in the run's files.
      used: macros in them.

    Raises:
      UserError: for a line of T5X's that is something else here.
    """
    line = t5x_lines.find(name, imports)
    if line is None:
        return name
    if not line.is_taken:
        raise UserError(f"--gin.{name} is a line of T5X's; {line.remedy}")
    ours = next((own for own in line.ours if own in used), line.ours[0])
    logger.info("--gin.%s, a line of T5X's, is taken as %s", name, ours)
    return ours


def _read_file(path: Path, search_paths: Sequence[str], *, seen: tuple[Path, ...]) -> list[GinText]:
    """Returns a file after what it includes, without the macros there that it defines itself."""
    if path in seen:
        raise UserError(f"{path} includes itself; remove the include")
    text, includes = _parse(files.read_text(path), _shown(path), {})
    lines, found = list(text.lines), list[GinText]()
    own = {statement.key for statement in text.statements if statement.is_macro}
    for include in includes:
        included = find_gin_file(include.filename, search_paths, includer=path)
        found += _read_file(included, search_paths, seen=(*seen, path))
        lines[include.location.line_num - 1] = ""
    rest = [
        dataclasses.replace(part, statements=tuple(s for s in part.statements if s.key not in own))
        for part in found
    ]
    return [*rest, dataclasses.replace(text, lines=tuple(lines))]


class _Macro(str):
    """The name of a macro in a value."""


class _Reference(str):
    """The name of a configurable in a value."""


class _Marks(config_parser.ParserDelegate):
    """Leaves the names of macros and configurables in the values that mention them."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        """Returns the name of a configurable, without its scope."""
        return _Reference(scoped_configurable_name.rsplit("/", 1)[-1])

    def macro(self, macro_name: str) -> _Macro:
        """Returns the name of a macro."""
        return _Macro(macro_name)


def _named(value: Any, kind: type[str]) -> Iterator[str]:
    """Yields the names of a kind in a value, at any depth."""
    if isinstance(value, kind):
        yield str(value)
    elif isinstance(value, dict):
        yield from _named([*value, *value.values()], kind)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _named(part, kind)


def _parse(
    text: str, source: str, imports: dict[str, config_parser.ImportStatement]
) -> tuple[GinText, list[config_parser.IncludeStatement]]:
    """Returns the statements of a text, and what it includes."""
    imports, statements, includes = dict(imports), [], []
    try:
        for item in config_parser.ConfigParser(text, _Marks()):
            if isinstance(item, config_parser.ImportStatement):
                if not item.module.startswith("__gin__"):
                    last = item.module.rsplit(".", 1)[-1] if item.is_from else item.module
                    imports[item.alias or last] = item
            elif isinstance(item, config_parser.IncludeStatement):
                includes.append(item)
            elif isinstance(item, config_parser.BindingStatement):
                statements.append(_statement(item, source, imports))
    except _NO_GIN as error:
        raise _syntax_error(error, source, text) from None
    lines = tuple(text.splitlines())
    found = GinText(source=source, lines=lines, statements=tuple(statements), imports=imports)
    return found, includes


def _statement(
    item: Any,
    source: str,
    imports: dict[str, config_parser.ImportStatement],
) -> Statement:
    """Returns what is kept of a binding."""

    def full_name(selector: str) -> str:
        for alias, imported in imports.items():
            if selector.startswith(f"{alias}."):
                return imported.module + selector[len(alias) :]
        return selector

    key = "/".join(filter(None, (item.scope, item.selector)))
    if item.arg_name:
        key = f"{full_name(item.selector)}.{item.arg_name}"
    return Statement(
        key=key,
        scope=item.scope or "",
        is_macro=not item.arg_name,
        is_required=isinstance(item.value, _Macro) and item.value == _REQUIRED,
        source=source,
        line=item.location.line_num,
        macros=tuple(_named(item.value, _Macro)),
        references=tuple(map(full_name, _named(item.value, _Reference))),
    )


def _shown(path: Path) -> str:
    """Returns a path as short as the user could have given it."""
    for root in (Path.cwd(), home()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def _syntax_error(error: Exception, source: str, text: str) -> UserError:
    """Returns the error for a line that is not gin."""
    problem, number = str(error), 1
    if isinstance(error, SyntaxError):
        problem, number = error.msg, error.lineno or 1
    elif isinstance(error, tokenize.TokenError):
        problem, (number, _) = error.args
    elif isinstance(error, RecursionError | MemoryError):
        problem = "brackets are nested too deep"
    if source == COMMAND_LINE:
        return UserError(
            f"--gin.{text[:200].replace(' = ', '=', 1)} is not valid gin ({problem}); strings need "
            "quotes that reach the command, such as --gin.MODEL_DIR='\"runs/a\"'"
        )
    lines = text.splitlines()
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return UserError(f"{source} line {number} is not valid gin ({problem}): {line[:200]!r}")
