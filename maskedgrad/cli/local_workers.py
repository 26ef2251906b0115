"""Several workers on this machine: processes that train together, on loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def local_workers(
    command: Sequence[str], options: Sequence[Mapping[str, Any]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """A context in which a command runs as several workers that know of each other.

    Equivalent to the command on as many machines, each with its own `TF_CONFIG`
    in the environment. Whoever is still running when the context is left is
    killed.

    Args:
        command: the program and its arguments.
        options: for each worker what `subprocess.Popen` is to be given for it. The
            first is the chief.

    Yields:
        The processes, in the order of their workers.

    Example:

    >>> import sys
    >>> show = "import json, os; print(json.loads(os.environ['TF_CONFIG'])['task'])"
    >>> with local_workers([sys.executable, "-c", show], 2 * [{"stdout": -1}]) as workers:
    ...     [worker.communicate()[0].decode().strip() for worker in workers]
    ["{'type': 'worker', 'index': 0}", "{'type': 'worker', 'index': 1}"]
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(options))]
    with contextlib.ExitStack() as stack:
        workers = []
        for index, of_worker in enumerate(options):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": {"worker": addresses}, "task": task})
            environment = {**os.environ, "TF_CONFIG": config}
            worker = subprocess.Popen(command, env=environment, **of_worker)  # noqa: S603
            workers.append(stack.enter_context(worker))
            stack.callback(worker.kill)
        yield workers


def run_as_workers(num_workers: int, arguments: Sequence[str]) -> int:
    """Runs a command of maskedgrad as several workers, of which the first is seen.

    Args:
        num_workers: how many.
        arguments: the command and its options.

    Returns:
        The exit status: 0 if that of all is.
    """
    command = [sys.executable, "-m", "maskedgrad", *arguments]
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(num_workers - 1)
        ]
        seen = [{}, *({"stdout": output, "stderr": subprocess.STDOUT} for output in outputs)]
        # Workers inherit what is ignored here. So Ctrl-C reaches this process alone, which ends
        # them; else each would print that it was interrupted.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            workers = stack.enter_context(local_workers(command, seen))
        finally:
            signal.signal(signal.SIGINT, handler)
        statuses = [worker.wait() for worker in workers]
        # The first worker prints to the terminal. Another is quoted only if the first did not fail.
        failed = [output for output, status in zip(outputs, statuses[1:], strict=True) if status]
        if failed and not statuses[0]:
            failed[0].seek(0)
            sys.stderr.write(failed[0].read())
    return max(abs(status) for status in statuses)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
