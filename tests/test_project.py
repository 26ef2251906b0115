"""What stands around the code: workflows, hooks and forms say what is done here."""

import configparser
import importlib.metadata
import os
import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import yaml

from tests.matrix import CELLS

ROOT = Path(__file__).parents[1]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
YAML = sorted(
    path
    for path in (*ROOT.glob(".github/**/*"), ROOT / ".pre-commit-config.yaml")
    if path.suffix in {".yml", ".yaml", ".cff"}
)


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_what_is_yaml_can_be_read(path):
    assert read(path)


def test_the_readme_reads_on_an_index():
    """Its links are whole, of the project's home, and what they lead to is in the tree."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    home = setup["metadata"]["url"]
    links = re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    for link in links:
        path = re.fullmatch(rf"{home}/(?:blob|raw)/main/([^#]*)(?:#.*)?", link)
        assert path, link
        assert (ROOT / path[1]).exists(), link
    assert read(".github/CITATION.cff")["repository-code"] == home
    for line in setup["metadata"]["project_urls"].strip().splitlines():
        assert line.split(" = ")[1].startswith(home)


def test_extras_that_messages_name_are_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {
        extra
        for path in (*ROOT.glob("maskedgrad/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md")
        for extras in re.findall(
            r"(?:maskedgrad|\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")
        )
        for extra in extras.split(",")
    }
    extras = setup["options.extras_require"].keys()
    assert named <= extras
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (`[a-z`, ]+`) \|", readme, re.M)
    assert {extra for cell in listed for extra in re.findall("[a-z]+", cell)} == extras


def test_what_is_used_and_not_required_is_what_keras_requires():
    needed = " ".join(importlib.metadata.requires("keras"))
    assert {"rich", "h5py", "ml-dtypes"} <= set(re.findall(r"[\w-]+", needed))


def test_a_push_runs_what_is_run_here():
    assert commands(read(".github/workflows/ci.yml")["jobs"]["ci"]) == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_push_runs_each_cell_of_the_versions_with_its_python():
    job = read(".github/workflows/ci.yml")["jobs"]["versions"]
    cells = {each["cell"]: each["python"] for each in job["strategy"]["matrix"]["include"]}
    assert cells == {name: cell.python for name, cell in CELLS.items()}
    (command,) = commands(job)
    assert command.startswith("python -m tests.matrix --cell ${{ matrix.cell }}")


def test_the_night_is_thorough():
    *_, command = commands(read(".github/workflows/nightly.yml")["jobs"]["thorough"])
    assert command.startswith("python -m tests.thorough --seed")


def test_a_commit_is_checked_as_a_push_is():
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    checks = {re.sub(r" --\S+", "", hook["entry"]) for hook in repo["hooks"]}
    in_ci = {line for line in CI.splitlines() if re.match(r"(ruff|mypy)\b", line)}
    assert checks == {re.sub(r" (\.|--\S+)", "", line) for line in in_ci}


def test_what_programs_and_modules_workflows_name_is_there():
    for path in ROOT.glob(".github/workflows/*.yml"):
        for module in re.findall(r"python -m (tests\.\w+)", path.read_text(encoding="utf-8")):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()


LINK = re.compile(
    r"https://github\.com/[\w-]+/(?P<package>keras|tensorflow)/blob/v(?P<version>[\d.]+)/"
    r"(?P<file>\S+\.py)#L(?P<line>\d+)"
)
# What stands in the line that a comment of the package links to.
LINKED = {
    ("keras", "keras/src/backend/tensorflow/numpy.py"): "def add",
    ("keras", "keras/src/backend/tensorflow/optimizer.py"): "maybe_merge_call|_unique_id",
    ("keras", "keras/src/backend/tensorflow/trainer.py"): "one_step_on_data",
    ("keras", "keras/src/callbacks/backup_and_restore.py"): "_initial_epoch",
    ("keras", "keras/src/layers/layer.py"): "_flatten_layers",
    ("keras", "keras/src/layers/preprocessing/index_lookup.py"): "input_vocabulary is not None",
    ("keras", "keras/src/models/functional.py"): "_layers = self.layers",
    ("keras", "keras/src/models/model.py"): "inject_functional_model_class",
    ("keras", "keras/src/ops/operation.py"): "_inbound_nodes",
    ("keras", "keras/src/optimizers/base_optimizer.py"): "moving_average|not_first_step",
    ("keras", "keras/src/optimizers/loss_scale_optimizer.py"): "loss_scale_factor = None",
    ("keras", "keras/src/saving/saving_lib.py"): "sorted",
    ("tensorflow", "tensorflow/python/distribute/distribute_lib.py"): "all_reduce|grad",
    ("tensorflow", "tensorflow/python/ops/array_ops.py"): "sparse_read",
    ("tensorflow", "tensorflow/python/ops/embedding_ops.py"): "convert_n_to_tensor",
    ("tensorflow", "tensorflow/python/ops/control_flow_ops.py"): "XLAControlFlowContext",
}


def test_comments_link_to_the_lines_that_they_speak_of():
    """In the versions that they name, where these are installed."""
    packages = {"keras": keras, "tensorflow": tf}
    seen = set()
    for path in (ROOT / "maskedgrad").rglob("*.py"):
        for link in LINK.finditer(path.read_text(encoding="utf-8")):
            name, file = link["package"], link["file"]
            seen.add((name, file))
            if importlib.metadata.version(name) == link["version"]:
                folder = Path(packages[name].__file__).parent
                source = (folder / file.partition("/")[2]).read_text(encoding="utf-8")
                line = source.splitlines()[int(link["line"]) - 1]
                assert re.search(LINKED[name, file], line), (path.name, link[0], line)
    assert seen == LINKED.keys()
