"""Mutation testing: do the tests notice when the code is broken?

    pip install ".[test]" cosmic-ray
    python -m tests.mutation                       # the files that training and patches go through
    python -m tests.mutation maskedgrad/rows/rows.py    # some of them

Breaks one file at a time in one place at a time, runs the tests of that file,
first those that run the broken line, and prints for each file how many mutants
were killed, and each that survived as a diff. The mutants are those of
cosmic-ray, and a few more (see `StatementRemover`). A temporary copy is broken,
never the files themselves.

Each mutant is tested in a fork of this process, which has imported TensorFlow
but none of maskedgrad, and has run nothing. Needs an operating system that
forks. No part of the suite: it takes its time.
"""

import argparse
import ast
import difflib
import gc
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CI"] = "1"  # each mutant meets the same Hypothesis examples, see `conftest.py`

import hypothesis
import keras  # noqa: F401 - the forks find it imported
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword

ROOT = Path(__file__).parents[1]
# What takes this many times as much of a processor as the tests of its file counts as killed.
MOST_TIMES_AS_LONG = 2
SECONDS_TO_START = 60  # comes on top
SECONDS_PER_MUTANT = 900  # for what waits for ever

# The tests of each file.
TESTS = {
    "maskedgrad/rows/rows.py": [
        "tests/test_rows.py",
        "tests/test_fuzz.py::test_rows_that_a_config_makes_up_are_not_allocated",
    ],
    "maskedgrad/rows/ids.py": ["tests/test_rows.py"],
    "maskedgrad/rows/text.py": ["tests/test_rows.py"],
    "maskedgrad/messages/__init__.py": ["tests/test_rows.py"],
    "maskedgrad/rows/gradients.py": [
        "tests/masking/test_gradients.py",
        "tests/masking/test_along_axis.py::test_gradients_are_masked_along_any_axis",
        "tests/test_messages.py",
    ],
    "maskedgrad/masking/gradients.py": [
        "tests/masking/test_gradients.py",
        "tests/masking/test_along_axis.py::test_rows_along_any_axis_train_as_if_alone[SGD]",
    ],
    "maskedgrad/masking/expansion.py": ["tests/masking/test_expansion.py"],
    "maskedgrad/masking/selection.py": [
        "tests/masking/test_selection.py",
        "tests/masking/test_gradients.py",
    ],
    "maskedgrad/masking/compact.py": [
        "tests/masking/test_lazy.py",
        "tests/masking/test_along_axis.py",
        "tests/masking/test_row_changes.py",
        "tests/masking/test_row_learning_rates.py",
    ],
    "maskedgrad/masking/masking.py": [
        "tests/masking/test_cases.py",
        "tests/masking/test_lazy.py",
        "tests/masking/test_optimizer.py",
        "tests/masking/test_row_changes.py",
        "tests/masking/test_saved_state.py",
        "tests/test_graph.py::test_no_read_of_a_whole_table_lasts_until_its_rows_are_written",
        "tests/test_messages.py",
    ],
    "maskedgrad/masking/trial.py": ["tests/masking/test_lazy.py"],
    "maskedgrad/masking/state.py": [
        "tests/masking/test_along_axis.py",
        "tests/masking/test_cases.py",
        "tests/masking/test_lazy.py",
        "tests/masking/test_row_changes.py",
        "tests/masking/test_saved_state.py",
    ],
    "maskedgrad/masking/inner.py": [
        "tests/masking/test_cases.py",
        "tests/masking/test_lazy.py",
        "tests/masking/test_optimizer.py",
    ],
    "maskedgrad/masking/row_ids.py": ["tests/masking/test_saved_state.py"],
    "maskedgrad/masking/tables.py": [
        "tests/masking/test_optimizer.py",
        "tests/test_graph.py::test_a_table_whose_rows_are_read_or_written_is_neither_moved_nor_copied",
        "tests/test_patch.py",
    ],
    "maskedgrad/masking/variables.py": [
        "tests/masking/test_cases.py",
        "tests/masking/test_lazy.py",
        "tests/masking/test_row_changes.py",
        "tests/masking/test_optimizer.py",
    ],
    "maskedgrad/rows/targets.py": ["tests/masking/test_targets.py"],
    "maskedgrad/rows/paths.py": ["tests/masking/test_targets.py"],
    "maskedgrad/rows/saved.py": [
        "tests/masking/test_found_again.py",
        "tests/masking/test_saved_state.py",
    ],
    "maskedgrad/rows/asked.py": ["tests/masking/test_optimizer.py"],
    "maskedgrad/rows/multipliers.py": ["tests/masking/test_row_learning_rates.py"],
    "maskedgrad/masking/optimizer.py": [
        "tests/masking/test_optimizer.py",
        "tests/masking/test_changes_in_fit.py",
        "tests/masking/test_lazy.py",
        "tests/masking/test_row_changes.py",
        "tests/masking/test_row_learning_rates.py",
        "tests/masking/test_saved_state.py",
        "tests/masking/test_targets.py",
        "tests/test_fuzz.py::test_a_config_of_an_optimizer_that_lacks_something",
        "tests/test_graph.py::test_a_step_is_smaller_than_the_table_that_is_named_by_its_path",
        "tests/test_graph.py::test_a_function_that_may_make_no_variable_trains_all_the_same",
        "tests/test_graph.py::test_a_step_that_builds_the_model_is_smaller_than_the_table",
        "tests/test_graph.py::test_a_tied_table_is_neither_moved_nor_copied",
        # Training of many kinds, which says no more of this file than what is left.
        *("-k", "not rows_that_join and not a_row_moves and not each_row and not compiled_again"),
    ],
    "maskedgrad/model.py": [
        "tests/test_model.py",
        "tests/test_summary.py::test_a_masked_model_has_it_as_its_own_summary",
        "tests/test_graph.py::test_a_step_is_smaller_than_the_table_that_is_named_by_its_path",
        "tests/test_graph.py::test_a_step_of_a_model_built_once_compiled_is_smaller_than_the_table",
        # One way of running and of scaling the loss; all of them take minutes. And no training
        # by other code than this file's, or of other tables.
        *(
            "-k",
            "not (any_model or at_all or by_hand or regularizer or tied or kernel or twice)"
            " or eager and functional or graph-inf-outside",
        ),
    ],
    "maskedgrad/patches/patch.py": [
        "tests/test_patch.py",
        "tests/masking/test_along_axis.py::test_a_row_patch_holds_rows_of_the_first_axis_only",
        # These compare times, or take theirs over what the other files of the patch do.
        *("-k", "not switch_nor_a_prediction and not flipped_bit and not chunks"),
    ],
}

# For each comparison its opposite, and those that differ from it in one of `<`, `=` and `>`.
COMPARISONS = {
    "Eq": {"NotEq", "LtE", "GtE"},
    "NotEq": {"Eq", "Lt", "Gt"},
    "Lt": {"GtE", "LtE", "NotEq"},
    "LtE": {"Gt", "Lt", "Eq"},
    "Gt": {"LtE", "GtE", "NotEq"},
    "GtE": {"Lt", "Gt", "Eq"},
    "Is": {"IsNot"},
    "IsNot": {"Is"},
}
# Arithmetic becomes other arithmetic. Shifts, powers and bits break more, and are found sooner; so
# are `~1` and `not 1` for `-1`. An `|` is that of a type here.
ARITHMETIC = {"Add": {"Sub", "Mul"}, "Sub": {"Add", "Mul"}, "Mul": {"Add", "Div"}}


class StatementRemover(Operator):
    """Leaves out a statement that calls, returns or raises.

    cosmic-ray has no such operator, and a wrapper's code is calls for the most part.
    """

    def mutation_positions(self, node):
        if node.type == "simple_stmt":
            statement = node.children[0]
            if statement.type in {"atom_expr", "return_stmt", "raise_stmt"}:
                yield statement.start_pos, statement.end_pos

    def mutate(self, node, index):
        first = node.get_first_leaf()
        node.children[0] = Keyword("pass", first.start_pos, first.prefix)
        return node

    @classmethod
    def examples(cls):
        return ()


def operators() -> list[Operator]:
    chosen = [get_operator(name) for name in operator_names() if is_chosen(name.split("/")[-1])]
    return [cls() for cls in [*chosen, StatementRemover] if not cls.arguments()]


def is_chosen(name: str) -> bool:
    kind, *change = name.split("_")
    if kind == "ReplaceComparisonOperator":
        return change[1] in COMPARISONS[change[0]]
    if kind == "ReplaceBinaryOperator":
        return change[1] in ARITHMETIC.get(change[0], ())
    if kind == "ReplaceUnaryOperator":
        return change[0] == "Delete"
    return True


class Meaning(ast.NodeTransformer):
    """Leaves out what mutants must not differ in alone: annotations, ways to negate, assertions."""

    negated = {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}  # noqa: RUF012

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node):
        return self.generic_visit(ast.Assign([node.target], node.value or ast.Constant(None)))

    def visit_keyword(self, node):
        # Of a `zip`, an assertion which no input makes fail.
        return None if node.arg == "strict" else self.generic_visit(node)

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        match node:
            case ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), operand)):
                return operand
            case ast.UnaryOp(ast.Not(), ast.Compare(left, [op], right)) if type(op) in self.negated:
                return ast.Compare(left, [self.negated[type(op)]()], right)
        return node


def meaning(source: str) -> str:
    return ast.dump(Meaning().visit(ast.parse(source)))


def mutants_of(source: str) -> Iterator[str]:
    """The mutants of a file's text, each once."""
    seen = {meaning(source)}
    for operator in operators():
        for occurrence in itertools.count():
            try:
                mutant = mutate_code(source, operator, occurrence)
                if mutant is None:
                    break
                meant = meaning(mutant)
            except (AttributeError, SyntaxError):
                # cosmic-ray cannot change `except re.error`, and puts `not` before `rows := ...`.
                continue
            if meant not in seen:
                seen.add(meant)
                yield mutant


class NoShrinking:
    """A pytest plugin: that an example fails is enough, the smallest is not looked for."""

    def pytest_configure(self):
        hypothesis.settings.register_profile(
            "mutation", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
        )
        hypothesis.settings.load_profile("mutation")


class LinesOfTests:
    """A pytest plugin that writes down which lines of a file each test runs, the quickest first."""

    def __init__(self, file: Path, notes: Path):
        self.file, self.notes = str(file), notes
        self.seconds, self.lines = {}, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        lines = self.lines[item.nodeid] = set()

        def trace(frame, event, arg):
            if frame.f_code.co_filename != self.file:
                return None
            lines.add(frame.f_lineno)
            return trace

        began = time.process_time()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.seconds[item.nodeid] = time.process_time() - began

    def pytest_sessionfinish(self):
        tests = sorted(self.lines, key=self.seconds.get)
        lines = {test: sorted(self.lines[test]) for test in tests}
        self.notes.write_text(json.dumps([sum(self.seconds.values()), lines]))


def run_tests(
    folder: Path, tests: list[str], log: Path, plugins: list, most_seconds: int | None
) -> None:
    """In a fork: pytest in the copy, with the copy's code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if most_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (most_seconds, most_seconds))
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    os._exit(pytest.main([*options, *tests], plugins=[NoShrinking(), *plugins]))


def passes(
    folder: Path, tests: list[str], log: Path, *plugins, most_seconds: int | None = None
) -> bool:
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(folder, tests, log, plugins, most_seconds)
    )
    process.start()
    process.join(SECONDS_PER_MUTANT)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


def survivors_of(file: str, folder: Path, log: Path) -> tuple[int, list[str]]:
    """How many mutants a file has, and the diffs of those that pass its tests."""
    notes = log.with_name("lines.json")
    if not passes(folder, TESTS[file], log, LinesOfTests(folder / file, notes)):
        sys.exit(f"The tests of {file} fail without any mutant:\n{log.read_text()}")
    seconds_of_tests, lines_of_tests = json.loads(notes.read_text())
    lines_of = {test: set(lines) for test, lines in lines_of_tests.items()}
    print(f"{file}: {len(lines_of)} tests", flush=True)
    most_seconds = int(MOST_TIMES_AS_LONG * seconds_of_tests + SECONDS_TO_START)
    sys.dont_write_bytecode = True  # it would be taken for that of the next mutant
    source = (ROOT / file).read_text(encoding="utf-8")
    mutants, survivors = list(mutants_of(source)), []
    for index, mutant in enumerate(mutants, start=1):
        (folder / file).write_text(mutant, encoding="utf-8")
        began = time.monotonic()
        changed = changed_lines(source, mutant)
        likely = [test for test, lines in lines_of.items() if lines & changed]
        # What TensorFlow rewrites before it runs it is not seen as a line of the file.
        others = [test for test in lines_of if test not in likely]
        survived = all(
            passes(folder, tests, log, most_seconds=most_seconds)
            for tests in (likely, others)
            if tests
        )
        if survived:
            survivors.append(diff(source, mutant, file))
            print(survivors[-1], flush=True)
        outcome = "survived" if survived else "killed"
        seconds = time.monotonic() - began
        print(f"{file} {index}/{len(mutants)} {outcome} in {seconds:.0f} s", flush=True)
    (folder / file).write_text(source, encoding="utf-8")
    sys.dont_write_bytecode = False
    return len(mutants), survivors


def changed_lines(source: str, mutant: str) -> set[int]:
    """The numbers of the lines of `source` that `mutant` changes."""
    matcher = difflib.SequenceMatcher(None, source.splitlines(), mutant.splitlines())
    return {
        line + 1
        for tag, start, stop, _, _ in matcher.get_opcodes()
        if tag != "equal"
        for line in range(start, stop)
    }


def diff(source: str, mutant: str, file: str) -> str:
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), file, file, "", "", 1)
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE")
    files = parser.parse_args().files
    if unknown := set(files) - set(TESTS):
        parser.error(f"no tests are known of {sorted(unknown)}, but of {list(TESTS)}")
    gc.freeze()  # or each fork's collector walks, and so copies, all that was imported here
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        for part in ("maskedgrad", "tests"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy2(ROOT / "setup.cfg", folder)
        for file in files:
            results[file] = survivors_of(file, folder, Path(temporary, "log"))
    for file, (count, survivors) in results.items():
        print("\n".join(survivors))
        killed = count - len(survivors)
        print(f"{file}: {count} mutants, {killed} killed, {len(survivors)} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
