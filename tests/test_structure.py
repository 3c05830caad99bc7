"""The import rule, size limits and forbidden things, measured on the source itself."""

import ast
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "instructrec_jax"
TASKS = f"{PACKAGE}.tasks"  # the folder tasks/, whose files alone import each other relatively
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Level and column of every part of the package. A part may import parts of lower levels, but the
# TensorFlow column ("tf") and the JAX column ("jax") never meet below the stages.
LEVELS = {
    "records": (0, ""),
    "errors": (0, ""),
    "seeds": (0, ""),
    "files": (0, ""),
    "manifest": (0, ""),
    "damage": (0, ""),
    "database": (0, ""),
    "settings": (0, ""),
    "tokenizer": (0, ""),
    "progress": (0, ""),
    "workers": (0, ""),
    "tasks": (0, ""),
    "data": (1, ""),
    "instructions": (1, ""),
    "metrics": (1, ""),
    "models": (1, "jax"),
    "parallel": (1, "jax"),
    "pipeline": (2, "tf"),
    "training": (2, "jax"),
    "scoring": (2, "jax"),
    "generation": (2, "jax"),
    "requests": (2, ""),
    "scores": (2, ""),
    "serving": (3, "jax"),
    "baselines": (2, "jax"),
    "checkpoints": (2, "jax"),
    "teacher": (2, ""),
    "report": (2, ""),
    "stages": (3, "both"),
    "cli": (4, ""),
    "__main__": (5, ""),
}
# Parts of one level, of which the first may import the second: records are built from artefact A.
BESIDE = {("instructions", "data")}
JAX_PARTS = {part for part, (_, column) in LEVELS.items() if column == "jax"} | {"baselines"}
# Third-party packages that may be imported in some parts only.
HOMES = {
    "gin": {"cli"},
    "argparse": {"cli"},
    "openai": {"teacher"},
    "tenacity": {"teacher"},
    "sqlite3": {"database"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "pydantic": {"serving"},
    "prometheus_client": {"serving"},
    "usearch": {"serving"},
    "sqlalchemy": {"serving"},
    "psycopg": {"serving"},
    "qdrant_client": {"serving"},
    "tensorflow": {"pipeline"},
    "tensorflow_datasets": {"pipeline"},
    "tensorflow_text": {"pipeline"},
    "seqio": {"pipeline"},
    "sentencepiece": {"tokenizer"},
    "pyarrow": {"data", "metrics", "generation", "requests", "scores", "teacher"},
    "jax": JAX_PARTS | {"stages"},
    "flax": JAX_PARTS,
    "optax": {"training", "checkpoints", "baselines", "stages"},
    "orbax": {"checkpoints"},
    "tensorstore": {"checkpoints"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "rich": {"report", "progress"},
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "t5x", "torch"}
FORBIDDEN_TEXT = re.compile(
    r"\b(?:allow_pickle|yaml\.load|torch\.load|fp16|float16(?!_)|TODO|FIXME|XXX)\b"
)
FILE_LIMITS = {"instructrec_jax/models/t5.py": 600}
MAX_FILE_LINES, MAX_TEMPLATE_LINES, MAX_FUNCTION_LINES = 400, 500, 70
MAX_ARGUMENTS = 8
MAX_POSITIONAL = 4  # two is the habit; interfaces of other packages and array maths take more
# Places that name what is forbidden in order to refuse it, with the words they may use.
ALLOWED_TEXT = {
    "fp16": {"instructrec_jax/models/t5.py"},
    "float16": {"instructrec_jax/models/t5.py", "instructrec_jax/checkpoints/safetensors.py"},
}


def sources() -> list[Path]:
    return sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "tasks").rglob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """The part of the package a file belongs to: "models" of instructrec_jax/models/t5.py."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> list[tuple[str, int]]:
    """Every dotted name that a file imports, with its line; `from a import b` gives "a.b"."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"{TASKS}.{node.module or ''}".rstrip(".") if node.level else node.module
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def violations(part: str, imported: str) -> str | None:
    """Says what is wrong with a part of the package importing a module; None if nothing is."""
    root, _, rest = imported.partition(".")
    if f"{imported}.".startswith(f"{TASKS}."):
        return "the package never imports tasks"
    if root != PACKAGE:
        homes = HOMES.get(root)
        return f"{root} belongs to {sorted(homes)}" if homes and part not in homes else None
    other = rest.split(".")[0]
    if other == part or other not in LEVELS:
        return None  # a sibling in the same package, or a name of the package itself
    (level, column), (other_level, other_column) = LEVELS[part], LEVELS[other]
    if other_level >= level and level != 0 and (part, other) not in BESIDE:
        return f"{other} is not below {part}"
    if other_level > level:
        return f"{other} is above {part}"
    if {column, other_column} == {"tf", "jax"}:
        return "the TensorFlow and the JAX column meet only in stages"
    return None


PACKAGE_FILES = [path for path in sources() if path.is_relative_to(ROOT / PACKAGE)]


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_point_down(path):
    if path == ROOT / PACKAGE / "__init__.py":
        assert {
            module.split(".")[1] for module, _ in imported_modules(ast.parse(path.read_text()))
        } == {"serving"}
        return
    part = part_of(path)
    assert part in LEVELS, f"{part} has no level in DESIGN section 4"
    wrong = [
        f"line {line}: imports {module}: {problem}"
        for module, line in imported_modules(ast.parse(path.read_text()))
        if (problem := violations(part, module))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("part", "module", "allowed"),
    [
        ("metrics", "instructrec_jax.errors", True),
        ("metrics", "instructrec_jax.models.t5", False),
        ("models", "instructrec_jax.parallel.mesh", False),
        ("training", "instructrec_jax.scoring.scorer", False),
        ("pipeline", "instructrec_jax.models.t5", False),
        ("pipeline", "instructrec_jax.data.prepared", True),
        ("stages", "instructrec_jax.pipeline.loader", True),
        ("stages", "instructrec_jax.cli.main", False),
        ("stages", "gin", False),
        ("pipeline", "instructrec_jax.tasks.mixtures", False),
        ("scoring", "tensorflow", False),
        ("files", "instructrec_jax.errors", True),
        ("files", "instructrec_jax.data.prepared", False),
    ],
)
def test_the_rule_itself_tells_right_from_wrong(part, module, allowed):
    assert (violations(part, module) is None) == allowed


def module_of(path: Path) -> str:
    """Returns the dotted name of a source file: "instructrec_jax.models.t5"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = (PACKAGE, *parts) if parts[0] == "tasks" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of_each_module() -> dict[str, set[str]]:
    """Returns, for every module, the dotted names it imports or names as "module:function"."""
    modules = {module_of(path): path for path in sources()}
    found = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        names = {name for name, _ in imported_modules(tree)}
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        named = {text.partition(":")[0] for text in texts if isinstance(text, str)} & set(modules)
        names |= {name for name in named if not name.startswith(f"{TASKS}.")}  # data, as users' are
        # "a.b.c" is a module, or a name in the module "a.b".
        found[module] = {n if n in modules else n.rpartition(".")[0] for n in names} | names
    return found


def test_no_module_is_imported_by_nobody():
    imports = imports_of_each_module()
    texts = [path.read_text() for path in (ROOT / "gin").rglob("*.gin")]
    named_in_gin = {
        f"{package}.{name}"
        for text in texts
        for package, name in re.findall(r"^from (\S+) import (\w+)", text, re.MULTILINE)
    }
    entries = {PACKAGE, f"{PACKAGE}.__main__", f"{PACKAGE}.cli.main", TASKS}
    imported = set().union(*imports.values()) | named_in_gin
    # A package with code of its own is imported where one of its modules is.
    imported |= {name.rpartition(".")[0] for name in imported}
    task_modules = {module for module in imports if module.startswith(f"{TASKS}.")}
    assert sorted(imports.keys() - imported - entries - task_modules) == []


@pytest.mark.parametrize("part", ["serving", "scoring", "requests", "instructions", "generation"])
def test_texts_become_scores_without_tensorflow(part):
    imports = imports_of_each_module()
    waiting = [module for module in imports if module.startswith(f"{PACKAGE}.{part}")]
    reached: set[str] = set()
    assert waiting
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports.get(module, set())
    roots = {module.split(".")[0] for module in reached}
    assert not roots & {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_nothing_forbidden_is_imported_or_written(path):
    tree = ast.parse(path.read_text())
    for module, line in imported_modules(tree):
        assert module.split(".")[0] not in FORBIDDEN_MODULES, f"line {line}: {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"line {node.lineno}: {node.func.id}"
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        for word in FORBIDDEN_TEXT.findall(text):
            assert name_of(path) in ALLOWED_TEXT.get(word, set()), f"line {number}: {text.strip()}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_stay_small(path):
    lines = len(path.read_text().splitlines())
    template_limit = MAX_TEMPLATE_LINES if name_of(path).startswith("tasks/") else MAX_FILE_LINES
    assert lines <= FILE_LIMITS.get(name_of(path), template_limit)
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                wrong.append(f"{node.name} (line {node.lineno}) has {length} lines")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_functions_take_few_arguments(path):
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        positional = [*node.args.posonlyargs, *node.args.args]
        if positional and positional[0].arg in ("self", "cls"):
            positional = positional[1:]
        number = len(positional) + len(node.args.kwonlyargs)
        if number > MAX_ARGUMENTS:
            wrong.append(f"{node.name} (line {node.lineno}) takes {number} arguments")
        if len(positional) > MAX_POSITIONAL and not node.name.startswith("_"):
            wrong.append(f"{node.name} (line {node.lineno}) takes {len(positional)} by position")
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
    code = (
        "import sys, instructrec_jax; "
        "sys.exit(bool({'jax', 'tensorflow', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_folder_gin_does_not_hide_the_package_gin():
    assert not list((ROOT / "gin").rglob("*.py"))
    code = "import gin; print(gin.__file__); gin.parse_config"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "gin")


def test_setup_names_its_packages_and_no_git_address():
    text = (ROOT / "setup.py").read_text()
    assert 'include=["instructrec_jax*"]' in text
    assert "git+" not in text + (ROOT / "pyproject.toml").read_text()


def test_constraints_pin_every_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.split("==")[0].lower().replace("-", "_") for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines)
    assert len(set(names)) == len(names)
    listed = PROJECT["project"]["dependencies"]
    required = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in listed}
    assert required and required <= set(names)


def test_task_modules_have_one_name():
    """A plain "tasks.NAME" is found in a checkout alone, and a user's own folder would hide it."""
    plain = re.compile(r"(?<![\w.\\])tasks\.(?:mixtures|pairwise|t5x)\b|from tasks import")
    written = [*sources(), *(ROOT / "gin").rglob("*.gin"), ROOT / "README.md"]
    found = [name_of(path) for path in written if plain.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_comments_hold_no_code_that_was_switched_off():
    wrong = []
    for path in sources():
        with path.open("rb") as stream:
            for token in tokenize.tokenize(stream.readline):
                code = token.string.removeprefix("#").strip()
                if token.type == tokenize.COMMENT and re.match(
                    r"(?:def |class |import |from \w+ import |return |if .*:$|\w+ = \w+\()", code
                ):
                    wrong.append(f"{name_of(path)}:{token.start[0]}: {code}")
    assert not wrong, "\n".join(wrong)


def test_word_lists_and_rules_are_installed_with_the_package():
    globs = PROJECT["tool"]["setuptools"]["package-data"][PACKAGE]
    declared = {path for glob in globs for path in (ROOT / PACKAGE).glob(glob)}
    data = {
        path
        for path in (ROOT / PACKAGE).rglob("*.*")
        if path.suffix in (".txt", ".json", ".toml", ".typed", ".css", ".html", ".jinja", ".js")
    }
    assert data and data == declared
