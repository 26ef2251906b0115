"""What is published: the source archive is whole, and the wheel is sound and typed."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import keras
import pytest

import maskedgrad

ROOT = Path(__file__).parents[1]
FILES = ["setup.cfg", "setup.py", "README.md", "LICENSE"]
HIDDEN_FILES = [".gitignore", ".pre-commit-config.yaml", ".ruff.toml"]
FOLDERS = ["maskedgrad", "tests", "docs", ".ci", ".github"]
LEFT_BEHIND = ["__pycache__", "*_build"]

processes = pytest.mark.processes


def run(*command, cwd):
    """What a program printed, which must have ended well."""
    # The package is to be found where it is installed.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def build(kind, source, folder):
    """The one file that is built from a source tree."""
    program = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", folder]
    run(*program, source, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory):
    """The source archive, built from a copy of this tree: building writes into the tree."""
    source = tmp_path_factory.mktemp("source") / "maskedgrad"
    source.mkdir()
    for file in (*FILES, *HIDDEN_FILES):
        shutil.copy(ROOT / file, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(source_archive, tmp_path_factory):
    """The one folder that is in the source archive."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(source_archive, folder)
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """The wheel, built from a copy of the unpacked source archive."""
    source = tmp_path_factory.mktemp("source_of_wheel") / "maskedgrad"
    shutil.copytree(unpacked, source)
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and all else that this one has."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    variables = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-deps", "--no-index", "--target", packages, wheel, cwd=environment)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return Path(sysconfig.get_path("scripts", "venv", variables)) / "python"


def files_in(folder):
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in paths if not any(map(is_left_behind, path.parts))}


def is_left_behind(name):
    return any(fnmatch(name, pattern) for pattern in LEFT_BEHIND)


@processes
def test_the_source_archive_is_all_that_is_worked_on(unpacked):
    expected = {Path(name) for name in (*FILES, *HIDDEN_FILES)}
    for folder in FOLDERS:
        expected |= {Path(folder) / path for path in files_in(ROOT / folder)}
    by_setuptools = {path for path in files_in(unpacked) if "maskedgrad.egg-info" in path.parts}
    assert files_in(unpacked) - by_setuptools == expected | {Path("PKG-INFO")}


@processes
def test_the_index_takes_what_is_built(source_archive, wheel):
    run(sys.executable, "-m", "twine", "check", "--strict", source_archive, wheel, cwd=ROOT)
    run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=ROOT)


@processes
def test_the_wheel_is_the_package_and_its_plugin(wheel):
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    code = {name for name in names if ".dist-info" not in name.parts[0]}
    package = {Path("maskedgrad") / path for path in files_in(ROOT / "maskedgrad")}
    plugin = Path("maskedgrad/pytest_plugin/__init__.py")
    assert code == package - {plugin} | {Path("maskedgrad_pytest/__init__.py")}


@processes
def test_the_wheel_brings_no_tensorflow_over_another_and_a_command(wheel, installed):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.M)
    names = sorted(name.replace("_", "-") for name in required)  # as one setuptools writes them
    assert names == ["keras", "numpy", "typing-extensions"]
    assert re.search(r"^Requires-Dist: tensorflow[^;\n]*; extra == .tensorflow.$", text, re.M)
    (command,) = installed.parents[1].rglob("bin/maskedgrad")
    version = run(installed, command, "--version", cwd=installed.parent)
    assert version == f"maskedgrad {maskedgrad.__version__}\n"


@processes
def test_tests_run_from_the_source_archive(unpacked):
    """Each file can be collected, so it finds its helpers; and one is run."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    collected = run(*pytest_, "--collect-only", "-m", "", cwd=unpacked)
    test_files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py")}
    assert test_files == {line.split("::")[0] for line in collected.splitlines() if "::" in line}
    program = "import maskedgrad; print(maskedgrad.__file__)"
    assert Path(run(sys.executable, "-c", program, cwd=unpacked)).is_relative_to(unpacked)
    run(*pytest_, "tests/masking/test_gradients.py", cwd=unpacked)


PROGRAM = Path(__file__).parent / "typing" / "user_program.py"


@processes
def test_mypy_knows_what_users_may_do(installed, tmp_path):
    program = shutil.copy(PROGRAM, tmp_path)
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, program,
        cwd=tmp_path)  # fmt: skip


@processes
def test_pyright_knows_what_users_may_do(installed, tmp_path):
    shutil.copy(PROGRAM, tmp_path)
    # What is meant for mypy is not meant for pyright, and an error that is not found is one.
    options = {"enableTypeIgnoreComments": False, "reportUnnecessaryTypeIgnoreComment": True}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(options))
    run(sys.executable, "-m", "pyright", "--pythonpath", installed, cwd=tmp_path)


def declared(name):
    """The arguments of a method of `MaskedModel`, as type checkers read them in its source."""
    module = ast.parse(Path(inspect.getfile(maskedgrad.MaskedModel)).read_text(encoding="utf-8"))
    found = [
        each
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and node.name == "MaskedModel"
        for each in ast.walk(node)
        if isinstance(each, ast.FunctionDef) and each.name == name
    ]
    (method,) = found
    arguments = method.args
    return [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]


ROW_ARGUMENTS = ["trainable_rows", "row_learning_rates"]


@pytest.mark.parametrize("name", ["compile", "fit", "evaluate", "predict"])
def test_a_method_completes_as_that_of_keras_does(name):
    """For type checkers, which read the source, and at a prompt, which asks `inspect`."""
    of_keras = inspect.signature(getattr(keras.Model, name)).parameters
    expected = [*of_keras, *(ROW_ARGUMENTS if name == "compile" else [])]
    assert list(inspect.signature(getattr(maskedgrad.MaskedModel, name)).parameters) == expected
    assert declared(name) == [each for each in expected if each != "kwargs"]
