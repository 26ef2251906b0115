"""The suite on the oldest and the newest versions that are supported.

    python -m tests.matrix
    python -m tests.matrix --cell oldest -- tests/test_rows.py -x

Each cell gets a virtual environment of its own, with the package, the extra
`test`, and what the cell pins; pip picks the rest. Arguments after `--` go to
pytest. Prints what was tested and what came of it, and fails where a cell
does. A cell whose Python is not on this machine is not run, and said to be so.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ["tensorflow", "keras", "numpy"]
HEADER = ["cell", "Python", "TensorFlow", "Keras", "NumPy", "passed", "failed", "skipped", "time"]
PRINT_VERSIONS = (
    "import importlib.metadata, platform, sys;"
    "print(platform.python_version(), *map(importlib.metadata.version, sys.argv[1:]))"
)


class Cell(NamedTuple):
    """A version of Python, and what is pinned for pip."""

    python: str
    pins: tuple[str, ...] = ()


CELLS = {
    "oldest": Cell("3.10", ("tensorflow==2.18.0", "keras==3.8.0")),
    # What pip gives whoever has the oldest Python: there is no Keras after 3.12 for it, but fixes.
    "newest-of-3.10": Cell("3.10"),
    "newest": Cell("3.13"),
}


class Outcome(NamedTuple):
    """What came of a cell: its versions and counts, or why there are none."""

    failed: bool
    columns: list[str]


def run_cell(cell: Cell, interpreter: str, folder: Path, pytest_arguments: list[str]) -> Outcome:
    """Makes the environment of a cell in a folder, and runs the suite there."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python, report = folder / "bin" / "python", folder / "report.xml"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, ".[test]", *cell.pins], cwd=ROOT, check=False).returncode:
        return Outcome(True, [cell.python, *cell.pins, "could not be installed"])
    versions = subprocess.run(
        [python, "-c", PRINT_VERSIONS, *PACKAGES], check=True, capture_output=True, text=True
    ).stdout.split()
    suite = [python, "-m", "pytest", f"--junitxml={report}", *pytest_arguments]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    status = subprocess.run(suite, cwd=ROOT, env=environment, check=False).returncode
    counts = counted(report) if report.exists() else [f"pytest ended with status {status}"]
    return Outcome(status != 0, [*versions, *counts])


def counted(report: Path) -> list[str]:
    """How many tests passed, failed and were skipped, and in what time, of a report of JUnit."""
    suite = ET.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest wrote it just now
    total, failures, errors, skipped = (
        int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    minutes = f"{float(suite.get('time')) / 60:.0f} min"
    return [*map(str, (total - failed - skipped, failed, skipped)), minutes]


def table(outcomes: Mapping[str, Outcome]) -> str:
    """The outcomes in Markdown."""
    rows = [[name, *outcome.columns] for name, outcome in outcomes.items()]
    padded = [row + [""] * (len(HEADER) - len(row)) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEADER, ["---"] * len(HEADER), *padded))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", action="append", choices=CELLS, help="all if not given")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="VERSION=PATH",
        help="such as 3.10=/opt/bin/python3.10; python3.10 on the PATH if not given",
    )
    parser.add_argument("pytest_arguments", nargs="*", help="what pytest is given, after --")
    options = parser.parse_args()
    paths = dict(each.split("=", 1) for each in options.python)
    outcomes, not_run = {}, []
    for name in options.cell or CELLS:
        cell = CELLS[name]
        interpreter = shutil.which(paths.get(cell.python, f"python{cell.python}"))
        if interpreter is None:
            not_run.append(f"{name} was not run, since there is no Python {cell.python} here")
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcomes[name] = run_cell(cell, interpreter, Path(folder), options.pytest_arguments)
    print(table(outcomes), *not_run, f"{len(outcomes)} cells run, {len(not_run)} not run", sep="\n")
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
