"""Show what row patches hold, compare two, apply one to a saved model in its file, or export one.

The exit status is 0 if all went well, 1 if `diff` finds a difference, and 2 if
something is refused.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from maskedgrad.cli.options import in_a_shell, read_words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to `parser`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    show = _add_action(actions, "show", "what a patch holds")
    show.add_argument("patch", type=Path, metavar="PATCH", help="the file of a row patch")
    show.add_argument("--json", action="store_true", help="print all of it, as JSON")

    diff = _add_action(actions, "diff", "how two patches differ")
    diff.add_argument("first", type=Path, metavar="FIRST", help="the file of a row patch")
    diff.add_argument("second", type=Path, metavar="SECOND", help="the file of another")
    diff.add_argument("--json", action="store_true", help="print all of it, as JSON")

    apply = _add_action(actions, "apply", "apply a patch to a saved model, into a new file")
    apply.add_argument("patch", type=Path, metavar="PATCH", help="the file of a row patch")
    apply.add_argument("model", type=Path, metavar="MODEL", help="a .keras or .weights.h5 file")
    apply.add_argument("new", type=Path, metavar="NEW", help="the new file, of the same kind")
    apply.add_argument(
        "--vocabulary",
        type=Path,
        metavar="PATH",
        help="the words of the model's rows, one a line: rows go to the ids of their words",
    )
    apply.add_argument(
        "--no-strict",
        action="store_true",
        help="do not check that the frozen rows are those that the patch was trained over",
    )
    apply.add_argument(
        "--allow-nonfinite", action="store_true", help="let values be infinite or NaN"
    )
    apply.add_argument("--replace", action="store_true", help="replace NEW if it exists")

    export = _add_action(actions, "export", "write the rows as word vectors, or for PEFT")
    export.add_argument("patch", type=Path, metavar="PATCH", help="the file of a row patch")
    export.add_argument(
        "new",
        type=Path,
        metavar="NEW",
        help="a file of vectors, of a format that its suffix names (.txt, .vec, .bin, .npy ...), "
        "or with --peft a folder",
    )
    export.add_argument(
        "--table", metavar="TABLE", help="the path of the table, if the patch has several"
    )
    export.add_argument(
        "--peft",
        nargs="+",
        metavar="TABLE=MODULE",
        help="write an adapter of PEFT: the PyTorch module that holds each table",
    )
    export.add_argument("--replace", action="store_true", help="replace NEW if it exists")


def _add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    return actions.add_parser(name, help=summary, description=description)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    try:
        return ACTIONS[options.action](options)
    except (ImportError, OSError, ValueError) as error:
        print(f"patch {options.action}: {in_a_shell(error)}", file=sys.stderr)
        return 2


def _show(options: argparse.Namespace) -> int:
    from maskedgrad.cli.patch_report import description, text_of_description
    from maskedgrad.patches.patch import RowPatch

    described = description(RowPatch.load(options.patch))
    print(_json(described) if options.json else text_of_description(described, _width()))
    return 0


def _diff(options: argparse.Namespace) -> int:
    from maskedgrad.cli.patch_report import comparison, text_of_comparison
    from maskedgrad.patches.patch import RowPatch

    compared = comparison(RowPatch.load(options.first), RowPatch.load(options.second))
    print(_json(compared) if options.json else text_of_comparison(compared, _width()))
    return 0 if compared["same"] else 1


def _apply(options: argparse.Namespace) -> int:
    from maskedgrad.cli.patched_file import apply_to_file
    from maskedgrad.patches.patch import RowPatch

    patch = RowPatch.load(options.patch)
    if options.vocabulary and len(patch.tables) > 1:
        raise ValueError(
            "--vocabulary goes with a patch of one table. Received: one of "
            f"{list(patch.tables)}. In Python, `apply_to` takes a vocabulary for each."
        )
    apply_to_file(
        patch,
        options.model,
        options.new,
        strict=not options.no_strict,
        allow_nonfinite=options.allow_nonfinite,
        vocabulary=options.vocabulary and read_words(options.vocabulary),
        replace=options.replace,
    )
    print(
        f"{options.new}: {options.model} with {_rows_of(patch.tables.values())} of {options.patch}"
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from maskedgrad.cli.patch_export import export_adapter, export_vectors
    from maskedgrad.patches.patch import RowPatch

    patch = RowPatch.load(options.patch)
    if options.peft:
        export_adapter(patch, options.new, options.peft, options.replace)
        exported = list(patch.tables.values())
    else:
        exported = [export_vectors(patch, options.new, options.table, options.replace)]
    print(f"{options.new}: {_rows_of(exported)} of {options.patch}")
    return 0


def _rows_of(tables: Iterable[Any]) -> str:
    number = sum(len(table.rows) for table in tables)
    return f"{number:,} {'row' if number == 1 else 'rows'}"


def _width() -> int | None:
    """How wide the terminal is, or `None` where there is none: files have lines of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "show": _show,
    "diff": _diff,
    "apply": _apply,
    "export": _export,
}
