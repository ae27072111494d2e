"""The architecture as tests: who may import whom, no cycles, what is public, and what stays out of the code.

Nothing is executed to find imports: the sources are parsed, and imports inside functions, under
``TYPE_CHECKING`` and through ``import_module("...")`` count like any other.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = "eroseal"
MAX_LINES = 400
# The one module that is built, not parsed; without it its import fails and hashlib takes over.
NATIVE = frozenset({f"{PACKAGE}.crypto._native", f"{PACKAGE}.build._scan"})

# A unit is a package or module directly below eroseal; "" is eroseal/__init__.py. A unit imports from lower
# floors and from itself, never sideways.
FLOORS: dict[str, int] = {
    "": 0,
    "errors": 0,
    "limits": 0,
    "readat": 0,
    "format": 1,
    "crypto": 2,
    "tree": 3,
    "trust": 3,
    "image": 4,
    "seal": 5,
    "store": 5,
    "build": 6,
    "report": 7,
    "cli": 8,
    "__main__": 9,
}
# The ground floor is the exception to "never sideways": errors are raised, and limits named, by everyone.
GROUND_ORDER = ("limits", "errors", "readat")

# What a unit may import besides the standard library and eroseal itself.
THIRD_PARTY: dict[str, frozenset[str]] = {
    "format": frozenset({"google_crc32c", "xxhash"}),
    "crypto": frozenset({"cryptography"}),
    "trust": frozenset({"cryptography", "msgspec"}),  # the policy holds certificates and public keys
    "tree": frozenset({"zstandard"}),
    "store": frozenset({"httpx2", "msgspec", "obstore", "stamina", "zstandard"}),
    "build": frozenset({"distributed"}),  # an extra, imported by name when a cluster is asked for
    "report": frozenset({"msgspec"}),
    "cli": frozenset({"click", "click_man", "msgspec", "rich"}),
}

# Rules do no I/O: formats are bytes to values, and the verifier is handed its clock and its readers.
NO_IO: dict[str, frozenset[str]] = {
    "format": frozenset({"io", "os", "pathlib", "random", "secrets", "socket", "subprocess", "tempfile", "time"}),
    "trust": frozenset({"random", "secrets", "socket", "subprocess", "tempfile", "time"}),
}

# Paths of one machine, and addresses that a lock file must not pin. Put together here, so as not to match.
FORBIDDEN_TEXT = re.compile(
    r"(?<![\w.})\]*])/(?:work|root|home/\w+)/" + r"|files\." + r"pythonhosted|pypi\." + r"org/simple"
)


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement or call, resolved to a dotted name."""

    target: str
    line: int
    in_function: bool


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed source file."""

    name: str
    path: Path
    is_package: bool
    tree: ast.Module
    lines: int

    @property
    def unit(self) -> str:
        return unit_of(self.name)

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def unit_of(name: str) -> str:
    """Give the part below eroseal that a dotted name belongs to."""
    return [*name.split("."), ""][1]


@cache
def modules() -> dict[str, Module]:
    """Parse everything below src/eroseal."""
    found = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, is_package, ast.parse(text, str(path)), text.count("\n"))
    return found


def imports_of(module: Module) -> list[Import]:
    """Give every import of a module, however well hidden."""
    return list(_walk_imports(module, module.tree, in_function=False))


def _walk_imports(module: Module, node: ast.AST, *, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for target in _targets(module, child):
            yield Import(target, child.lineno, inside)  # type: ignore[attr-defined]
        yield from _walk_imports(module, child, in_function=inside)


def _targets(module: Module, node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(names=names):
            base = _absolute(module, node)
            # "from package import module" imports that module, "from module import name" only the first one.
            return sorted({full if (full := f"{base}.{alias.name}") in modules() else base for alias in names})
        case ast.Call(args=[ast.Constant(value=str(name)), *_]) if called(node) in (
            "import_module",
            "__import__",
        ):
            return [name]
    return []


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join(kept + ([node.module] if node.module else []))


def called(node: ast.Call) -> str:
    """Give the last part of the name that is called."""
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def is_own(target: str) -> bool:
    return target == PACKAGE or target.startswith(PACKAGE + ".")


@cache
def tracked_files() -> list[Path]:
    """Give the files under version control, or all but build products where there is no repository."""
    result = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if result.returncode == 0:
        names = [name.decode() for name in result.stdout.split(b"\0") if name]
        return [path for name in names if (path := ROOT / name).is_file()]
    places = [ROOT / name for name in ("src", "tests", "docs", "scripts", "benchmarks")]
    return [path for place in places for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_every_unit_has_a_floor() -> None:
    assert {module.unit for module in modules().values()} <= FLOORS.keys()
    assert {"", "errors", "limits", "format"} <= {module.unit for module in modules().values()}


def test_imports_go_down() -> None:
    wrong = []
    for module in modules().values():
        for imported in filter(lambda found: is_own(found.target), imports_of(module)):
            target = unit_of(imported.target)
            if not _may_import(module.unit, target):
                wrong.append(f"{module.at(imported.line)} imports {imported.target}")
    assert not wrong, "upwards or sideways:\n" + "\n".join(wrong)


def _may_import(unit: str, target: str) -> bool:
    if unit == target or FLOORS[target] < FLOORS[unit]:
        return True
    if unit in GROUND_ORDER and target in GROUND_ORDER:
        return GROUND_ORDER.index(target) < GROUND_ORDER.index(unit)
    return False


def test_no_import_cycles() -> None:
    graph = {
        name: {imported.target for imported in imports_of(module) if is_own(imported.target)} - {name}
        for name, module in modules().items()
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))
    assert graph


def test_imports_name_modules_that_exist() -> None:
    missing = [
        f"{module.at(imported.line)}: {imported.target}"
        for module in modules().values()
        for imported in imports_of(module)
        if is_own(imported.target) and imported.target not in modules() and imported.target not in NATIVE
    ]
    assert not missing


def test_third_party_imports_are_those_of_the_floor() -> None:
    wrong = []
    for module in modules().values():
        allowed = THIRD_PARTY.get(module.unit, frozenset())
        for imported in imports_of(module):
            top = imported.target.partition(".")[0]
            if top not in sys.stdlib_module_names and top != PACKAGE and top not in allowed:
                wrong.append(f"{module.at(imported.line)} imports {imported.target}")
    assert not wrong, "not for this floor:\n" + "\n".join(wrong)


def test_rules_do_no_io() -> None:
    wrong = []
    for module in modules().values():
        barred = NO_IO.get(module.unit, frozenset())
        wrong += [
            f"{module.at(imported.line)} imports {imported.target}"
            for imported in imports_of(module)
            if imported.target.partition(".")[0] in barred
        ]
        if module.unit == "format":
            wrong += [f"{module.at(node.lineno)} opens a file" for node in calls(module) if called(node) == "open"]
    assert not wrong, "\n".join(wrong)


def calls(module: Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def test_rich_is_imported_lazily() -> None:
    eager = [
        module.at(imported.line)
        for module in modules().values()
        for imported in imports_of(module)
        if imported.target.partition(".")[0] == "rich" and not imported.in_function
    ]
    assert not eager, "rich costs 50 ms, which a script's --json should not pay:\n" + "\n".join(eager)


def test_only_the_command_line_reads_the_environment() -> None:
    names = {"environ", "environb", "getenv", "getenvb"}
    wrong = [
        module.at(node.lineno)
        for module in modules().values()
        if module.unit not in ("cli", "__main__")
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]
    assert not wrong


def test_only_the_command_line_prints() -> None:
    wrong = [
        module.at(node.lineno)
        for module in modules().values()
        if module.unit not in ("cli", "__main__")
        for node in calls(module)
        if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def narrows(test: ast.expr) -> bool:
    """Whether an assertion only tells the type checker what the code knows: `x is not None`, `isinstance(x, T)`."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and isinstance(test.ops[0], ast.IsNot)
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"


def test_functions_do_not_assert() -> None:
    wrong = [
        module.at(node.lineno)
        for module in modules().values()
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Assert) and not narrows(node.test)
    ]
    assert not wrong, "python -O removes assertions; only tables check their own sizes with them"


def test_modules_are_short() -> None:
    long = {module.name: module.lines for module in modules().values() if module.lines > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines"


def test_public_things_have_docstrings() -> None:
    wrong = []
    for module in modules().values():
        if not ast.get_docstring(module.tree):
            wrong.append(module.at(1))
        for node in module.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                wrong.append(f"{module.at(node.lineno)} {node.name}")
    assert not wrong, "without docstring:\n" + "\n".join(wrong)


def test_every_directory_is_a_package() -> None:
    directories = {path.parent for path in (SOURCE / PACKAGE).rglob("*.py")}
    assert not [directory for directory in directories if not (directory / "__init__.py").exists()]


def test_packages_list_what_they_export() -> None:
    wrong = []
    for module in modules().values():
        if not module.is_package or module.name == PACKAGE:
            continue
        imported = importlib.import_module(module.name)
        bound = {
            alias.asname or alias.name
            for node in module.tree.body
            if isinstance(node, ast.ImportFrom) and is_own(_absolute(module, node))
            for alias in node.names
        }
        public = {name for name in bound if not name.startswith("_")}
        listed = getattr(imported, "__all__", [])
        wrong += [f"{module.name}.{name} is listed, but missing" for name in listed if not hasattr(imported, name)]
        wrong += [f"{module.name}.{name} is imported, but not listed" for name in sorted(public - set(listed))]
    assert not wrong, "\n".join(wrong)


def test_listed_names_exist() -> None:
    wrong = []
    for name in modules():
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        listed = list(getattr(module, "__all__", []))
        wrong += [f"{name}.{entry}" for entry in listed if not hasattr(module, entry)]
        wrong += [f"{name}.{entry} twice" for entry in sorted({e for e in listed if listed.count(e) > 1})]
    assert not wrong


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|raise NotImplemented" + "Error")
    wrong = [
        module.at(number)
        for module in modules().values()
        for number, line in enumerate(module.path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong


def test_every_test_asserts() -> None:
    silent = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        silent += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not _asserts(node)
        ]
    assert not silent, "tests without an assertion:\n" + "\n".join(silent)


def _asserts(function: ast.FunctionDef) -> bool:
    helpers = re.compile(r"^(raises|fail)$|assert|check|expect|refuse|same|verif")
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and helpers.search(called(node)) is not None)
        for node in ast.walk(function)
    )


def test_files_name_no_machine() -> None:
    wrong = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            if FORBIDDEN_TEXT.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_locks_pin_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    requirements = re.findall(r"^[a-z0-9][^ ]*==[^ ]+(?: ;[^\\]*)? \\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(requirements) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE)) > 0
