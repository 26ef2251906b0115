"""Check that the frozen rows of a saved model are, bit for bit, those of its source.

The exit status is 0 if they are, 1 if a row differs, and 2 if the two cannot
be compared. Rows that the model's MaskedOptimizer trains are left out; where
the model names none, every row counts as frozen. Files are read some rows at a
time, except for a file of words and vectors.
"""

import argparse
import json
import sys
from pathlib import Path

from maskedgrad.cli.options import in_a_shell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to `parser`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a saved model, a .keras file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="SOURCE",
        required=True,
        help="the source of its rows: a .npy file, another .keras file, or vectors in the text "
        "format of GloVe, word2vec or fastText, or in word2vec's binary one",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="PATH",
        help="the words of the model's rows, one a line, for a SOURCE that has words",
    )
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="the table to check (default: those that have trainable rows, else all)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from maskedgrad.cli.verification import compare_files

    try:
        comparisons = compare_files(
            options.model, options.against, options.vocabulary, options.table
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"verify: {in_a_shell(error)}", file=sys.stderr)
        return 2
    is_same = not any(len(comparison.different) for comparison in comparisons)
    if options.json:
        tables = [comparison.to_json() for comparison in comparisons]
        print(json.dumps({"same": is_same, "tables": tables}, indent=2, allow_nan=False))
    else:
        print(*comparisons, sep="\n")
    return 0 if is_same else 1
