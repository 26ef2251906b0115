"""The commands answer at once, in whole numbers, in one line where they refuse; nothing is lost."""

import contextlib
import io
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskedgrad
from maskedgrad.cli import COMMANDS, interrupts_kept, main, verify
from maskedgrad.cli.console import print_table

PROGRAM = [sys.executable, "-m", "maskedgrad"]


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_and_version_do_not_wait_for_tensorflow(arguments):
    ended = run([sys.executable, "-X", "importtime", "-m", "maskedgrad", *arguments])
    assert ended.returncode == 0
    assert "maskedgrad" in ended.stdout
    imported = set(re.findall(r"\| +(\S+)$", ended.stderr, re.M))
    assert "maskedgrad.cli" in imported
    assert not imported & {"tensorflow", "keras"}


def test_no_argument_prints_the_help_and_the_version_is_the_packages():
    assert run(PROGRAM).stdout == run([*PROGRAM, "--help"]).stdout
    assert run([*PROGRAM, "--version"]).stdout == f"maskedgrad {maskedgrad.__version__}\n"


@pytest.mark.processes
def test_a_refusal_is_one_line_with_no_line_of_tensorflows(tmp_path):
    missing = tmp_path / "model.keras"
    ended = run([*PROGRAM, "verify", missing, "--against", missing])
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(r"verify: [^\n]*model\.keras[^\n]*\n", ended.stderr)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("Expected one.\nReceived: two."), 2, "verify: Expected one. Received: two."),
        (FileNotFoundError("no such file"), 2, "verify: no such file"),
        (ImportError("no TensorFlow"), 2, "verify: no TensorFlow"),
        (MemoryError("no room"), 2, "MemoryError: no room"),
    ],
)
def test_what_ends_a_command_is_one_line(error, status, line, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr(verify, "run", fail)
    assert main(["verify", "a.keras", "--against", "b.npy"]) == status
    assert capsys.readouterr().err.endswith(f"{line}\n")


def test_an_interrupt_while_the_module_of_a_command_is_read_is_one_line(monkeypatch, capsys):
    def interrupt(parser):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "add_arguments", interrupt)
    assert main(["verify", "a.keras", "--against", "b.npy"]) == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")


@contextlib.contextmanager
def turned_into_an_import_error():
    try:
        yield
    except BaseException as error:
        raise ImportError("a part of a module") from error


@pytest.mark.parametrize(
    "swallowed",
    [lambda: contextlib.suppress(KeyboardInterrupt), turned_into_an_import_error],
    ids=["caught", "made another error"],
)
def test_an_interrupt_that_an_import_swallows_still_ends_the_command(swallowed):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            interrupts_kept(),
            swallowed(),
        ):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("command", ["demo", "bench"])
@pytest.mark.parametrize("option", ["--figure", "--json"])
def test_what_exists_is_not_overwritten_unasked(command, option, tmp_path, capsys):
    if command == "demo":
        pytest.importorskip("gensim")
    path = tmp_path / "mine.png"
    path.write_text("mine")
    assert main([command, option, str(path)]) == 2
    assert path.read_text() == "mine"
    assert "--replace" in capsys.readouterr().err


CELLS = st.from_regex(r"[0-9]{1,3}(,[0-9]{3}){0,3}(\.[0-9] ± [0-9]\.[0-9] %)?", fullmatch=True)


@given(st.data(), st.integers(60, 100), st.integers(2, 9))
def test_no_number_is_cut_however_narrow_the_terminal(data, width, num_columns):
    from rich.console import Console

    rows = [
        [f"way {row}", *data.draw(st.lists(CELLS, min_size=num_columns, max_size=num_columns))]
        for row in range(2)
    ]
    headings = ["way", *(f"frozen rows\nchanged {place}" for place in range(num_columns))]
    printed = io.StringIO()
    print_table(Console(width=width, file=printed), headings, rows)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(
        any(line.split(" ")[1:3] == name.split(" ") and cell in line for line in lines)
        for name, *cells in rows
        for cell in cells
    ), "each cell stands in a line with the name of its row"
    assert "…" not in printed.getvalue()
