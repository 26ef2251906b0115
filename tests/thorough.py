"""The `thorough` profile over all property tests, and how many cases it drew.

    python -m tests.thorough --seed 1

Runs every test that Hypothesis draws for, and prints how many cases passed, by
file and in all. Fails where a test does. Arguments after `--` go to pytest. No
part of the suite: it takes its time.
"""

import argparse
import collections
import re
import subprocess
import sys
from collections.abc import Iterable

COMMAND = [
    *(sys.executable, "-m", "pytest", "-m", "hypothesis", "--hypothesis-profile=thorough"),
    *("--hypothesis-show-statistics", "-q", "-p", "no:cacheprovider"),
]
TEST = re.compile(r"^(tests/\S+\.py)::\S+:$")
CASES = re.compile(r"^ +- (\d+) passing")


def count_cases(lines: Iterable[str]) -> collections.Counter[str]:
    """How many cases passed, by file, of what Hypothesis prints of its statistics.

    >>> lines = ["tests/test_a.py::test_b[c]:", "    - 12 passing, 0 failing, and 3 invalid"]
    >>> count_cases(lines)["tests/test_a.py"]
    12
    """
    counts: collections.Counter[str] = collections.Counter()
    file = ""
    for line in lines:
        if test := TEST.match(line):
            file = test[1]
        if cases := CASES.match(line):
            counts[file] += int(cases[1])
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args()
    command = [*COMMAND, f"--hypothesis-seed={options.seed}", *options.pytest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        lines = []
        for line in tests.stdout or ():
            lines.append(line.rstrip("\n"))
            print(line, end="", flush=True)
    counts = count_cases(lines)
    for file, count in sorted(counts.items()):
        print(f"{count:9,}  {file}")
    print(f"{counts.total():9,}  cases, seed {options.seed}")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
