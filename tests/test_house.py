"""How the package is built: rooms on floors, with arrows that only point down.

A room is a module or a package at the top level of `maskedgrad`. These tests
read the source, every import in it: those inside of functions too, and those
for type checkers. `docs/maintaining.md` tells what is in each room.
"""

import ast
import graphlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

import maskedgrad

PACKAGE = Path(maskedgrad.__file__).parent
TESTS = Path(__file__).parent
HEART = PACKAGE / "masking"


def syntax_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SYNTAX = {module_name(path): syntax_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    imported = set()
    for node in ast.walk(SYNTAX[module]):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in SYNTAX else node.module for name in names}
    return imported & SYNTAX.keys() - {module}


def room_of(module: str) -> str:
    """The room that a module is in; the door, `__init__`, for the package itself."""
    return [*module.split("."), "__init__"][1]


def arrows() -> dict[str, set[str]]:
    """For each room the other rooms that it imports from."""
    rooms: dict[str, set[str]] = {room_of(module): set() for module in SYNTAX}
    for module in SYNTAX:
        rooms[room_of(module)] |= {room_of(other) for other in imports_of(module)}
    return {room: others - {room} for room, others in rooms.items()}


def floors(rooms: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, from 1: the one above the highest that it imports from."""
    found: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(rooms).static_order():
        found[room] = 1 + max((found[other] for other in rooms[room]), default=0)
    return found


def test_there_are_at_most_sixteen_rooms():
    assert len(arrows()) <= 16, sorted(arrows())


def test_rooms_stand_on_seven_floors_and_arrows_point_down():
    """A cycle of rooms has no floors: `graphlib.CycleError` shows it."""
    found = floors(arrows())
    assert max(found.values()) <= 7, found


def test_a_name_of_the_trunk_brings_in_no_room_that_its_own_does_without():
    rooms, reached = arrows(), {}
    for room in graphlib.TopologicalSorter(rooms).static_order():
        reached[room] = {room}.union(*(reached[other] for other in rooms[room]))
    *trunk, _, _ = looked_in = maskedgrad._WITH_NAMES
    assert looked_in[-2:] == ("vectors", "patches")
    for place, room in enumerate(trunk):
        assert set(trunk[:place]) <= reached[room], room


def test_a_cycle_of_rooms_is_seen():
    with pytest.raises(graphlib.CycleError):
        floors({"masking": {"model"}, "model": {"masking"}})


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter({module: imports_of(module) for module in SYNTAX}).prepare()


def test_the_wings_are_not_in_each_others_way():
    """Each can be taken away, and the others still stand."""
    wings = {"callbacks", "patches", "vectors", "testing"}
    between = {wing: arrows()[wing] & wings for wing in wings}
    assert not any(between.values()), between


def test_distribute_knows_nothing_of_tables():
    assert arrows()["distribute"] == set()


# What is documented as `maskedgrad.x.y`. Each must be there after `import maskedgrad` alone.
PUBLIC_ROOMS = {"callbacks", "patches", "reports", "rows", "testing", "vectors"}
EXTRAS = {"gensim", "hypothesis", "safetensors"}  # Keras imports matplotlib and rich itself
SEEN_BY_USERS = """
import sys, maskedgrad
print(*dir(maskedgrad))
print(*sys.modules)
for room in sys.argv[1:]:
    assert getattr(maskedgrad, room).__name__ == f"maskedgrad.{room}"
assert not hasattr(maskedgrad, "sorcery")
"""


@pytest.fixture(scope="module")
def seen_by_users() -> tuple[set[str], set[str]]:
    """What `dir(maskedgrad)` shows, and which modules are imported, in a process of its own.

    In this one other tests have imported more.
    """
    command = [sys.executable, "-c", SEEN_BY_USERS, *sorted(PUBLIC_ROOMS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names, modules = printed.splitlines()
    return set(names.split()), set(modules.split())


@pytest.mark.processes
def test_users_see_public_names_alone(seen_by_users):
    names, _ = seen_by_users
    assert names == {*maskedgrad.__all__, *PUBLIC_ROOMS}


def test_type_checkers_read_of_the_names_that_python_finds():
    """They read the imports below `if TYPE_CHECKING`, which Python does not run."""
    (block,) = [node for node in SYNTAX["maskedgrad"].body if isinstance(node, ast.If)][:1]
    imports = [(node.module, alias.name) for node in block.body for alias in node.names]
    names = {name for _, name in imports}
    assert names == {*maskedgrad.__all__, "testing"} - {"__version__"}
    for module, name in imports:
        found = getattr(importlib.import_module(module), name)
        assert getattr(maskedgrad, name) is found, name


@pytest.mark.processes
def test_an_import_needs_no_extra(seen_by_users):
    _, modules = seen_by_users
    assert not modules & EXTRAS
    assert "maskedgrad.testing" not in modules


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # Python's way to say that there is none
try:
    import maskedgrad
except ImportError as error:
    print(error)
"""


@pytest.mark.processes
def test_a_python_without_tensorflow_is_told_what_to_install():
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'pip install "maskedgrad[tensorflow]"' in printed


def test_an_old_tensorflow_is_refused(monkeypatch):
    monkeypatch.setattr(tf, "__version__", "2.9.1")
    with pytest.raises(ImportError, match=r"2\.18 or newer\. Received: TensorFlow 2\.9\.1"):
        maskedgrad.version.check_tensorflow()


LAZILY = """
import sys
import maskedgrad
print(*sys.modules)
missing = [name for name in maskedgrad.__all__ if not hasattr(maskedgrad, name)]
assert not missing, missing
"""


@pytest.mark.processes
def test_a_command_finds_the_package_whole_when_it_needs_it(tmp_path):
    """A program of this name is taken for the command, and imports names as they are used."""
    program = tmp_path / "maskedgrad"
    program.write_text(LAZILY)
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "tensorflow" not in ended.stdout.split()


def test_a_star_takes_what_needs_no_extra():
    assert set(maskedgrad.__all__) & PUBLIC_ROOMS == PUBLIC_ROOMS - {"testing"}


@pytest.mark.parametrize("path", sorted(HEART.glob("*.py")), ids=lambda path: path.name)
def test_a_file_of_the_heart_has_at_most_400_lines(path):
    assert num_lines(path) <= 400


def test_the_heart_has_at_most_2657_lines():
    """Of which steps on touched rows, and the trials that tell who can make them, are 450.

    And 180 are what a tied output needs: rows of a gradient that is never made, and reads of the
    table that are no copies. By them its step costs six tenths of what it did. And 230 are what
    spares a step the gradients of tokens whose rows are frozen: 1.3 times a frozen table, not 1.45.
    """
    assert sum(map(num_lines, HEART.glob("*.py"))) <= 2657


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def is_private(name: str) -> bool:
    return name.strip("_") != "" and name.startswith("_") and not name.endswith("__")


def private_names_defined(tree: ast.AST) -> set[str]:
    """What is defined under a private name: functions, classes, attributes and constants."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return set(filter(is_private, names))


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What is read of other objects, by attribute, import, or a text such as `setattr` takes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def test_no_private_name_of_the_heart_is_used_outside():
    of_heart = set().union(*(private_names_defined(syntax_of(each)) for each in HEART.glob("*.py")))
    used = []
    for path in [*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py")]:
        if path.parent.name == "masking":
            continue
        # What a file defines under the same name is its own.
        foreign = of_heart - private_names_defined(tree := syntax_of(path))
        used += [(path.name, line, name) for line, name in names_used(tree) if name in foreign]
    assert used == []
