"""The fuzzers of `tests/test_fuzz.py`, each with as many cases as are asked for.

    python -m tests.fuzz --cases 100000 --seed 1

Prints how many cases each has read, and ends with the first that fails. Names
after the options choose among them. No part of the suite: it takes its time.

Hypothesis makes each case of random bytes, and keeps nothing of it, so that
many cost neither memory nor the time to look for ones that are new.
"""

import argparse
import ctypes
import signal
import sys
import time

import numpy as np
import tensorflow as tf

from tests import test_fuzz

MOST_BYTES = 2**12  # of which a case is made
MOST_SECONDS = 60  # that a case may take
MOST_MEMORY = 2**30  # more than there is in use at first
ARENA_MAX = -8  # glibc's M_ARENA_MAX
CASES_A_CACHE = 1000


def fuzzers() -> dict[str, object]:
    """The tests that draw what is read, by name."""
    return {
        name.removeprefix("test_"): test
        for name, test in vars(test_fuzz).items()
        if name.startswith("test_") and hasattr(test, "hypothesis")
    }


def stop(*_: object) -> None:
    raise TimeoutError(f"a case takes more than {MOST_SECONDS} seconds")


def run(test, num_cases: int, seed: list[int]) -> None:
    """Runs a test on so many cases."""
    random, cases = np.random.default_rng(seed), 0
    while cases < num_cases:
        signal.alarm(MOST_SECONDS)
        if not cases % CASES_A_CACHE:
            # TensorFlow keeps a kernel for each name that a variable has ever had, and this drops
            # them: https://github.com/tensorflow/tensorflow/issues/19671
            tf.random.set_seed(0)
        # A case that needs more bytes than it is given is none.
        cases += test.hypothesis.fuzz_one_input(random.bytes(MOST_BYTES)) is not None
    signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(fuzzers()))
    options = parser.parse_args()
    tests = fuzzers()
    signal.signal(signal.SIGALRM, stop)
    if sys.platform == "linux":
        # What bounds memory counts addresses, and glibc sets 64 MiB of them aside for a new thread.
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
    with test_fuzz.bounded_memory(MOST_MEMORY):
        for name in options.names or tests:
            start = time.process_time()
            run(tests[name], options.cases, [options.seed, *name.encode()])
            seconds = time.process_time() - start
            print(f"{options.cases:9,}  {name}  {seconds:.0f} s, seed {options.seed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
