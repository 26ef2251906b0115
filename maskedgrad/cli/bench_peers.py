"""The benchmark's work in PyTorch, measured in a process of its own. See `bench_worker`.

It is run as a script and not as a module, so that this package is not
imported, and TensorFlow with it: one process cannot always hold both.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_work import (
    Case,
    Measurement,
    PeakMemory,
    changed_rows,
    median_time,
    trainable_ids,
    work,
)


def main(arguments: list[str]) -> int:
    """Measures the case that the one argument holds."""
    case = Case(**json.loads(arguments[0]))
    print(json.dumps(measure(case)._asdict()))
    return 0


def measure(case: Case) -> Measurement:
    """Trains the pooled classifier as `case` says, with Adam, and measures it."""
    import torch

    matrix, tokens = work(case)
    words = torch.nn.Embedding.from_pretrained(torch.from_numpy(matrix.copy()), freeze=False)
    words = PEERS[case.way](words, trainable_ids(case))
    hidden, score = torch.nn.Linear(case.width, 64), torch.nn.Linear(64, 1)
    parameters = [
        parameter
        for module in (words, hidden, score)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    are_sparse = getattr(words, "sparse", False)  # the gradients of the table
    optimizers = [torch.optim.Adam(parameters[are_sparse:])]
    if are_sparse:
        optimizers.append(torch.optim.SparseAdam(parameters[:1]))
    batches = torch.from_numpy(tokens).long().split(case.batch)
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (case.batch, 1))).float()

    def features(ids: Any) -> Any:
        return score(torch.relu(hidden(words(ids).mean(dim=1))))

    def step(place: int) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        logits = features(batches[place % len(batches)])
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    def predict(place: int) -> None:
        with torch.no_grad():
            features(batches[place % len(batches)])

    # PEFT has been imported by now, which is none of the step's memory.
    memory = PeakMemory()
    memory.start()
    before = median_time(_seconds_of(predict))
    seconds = median_time(_seconds_of(step))
    peak_bytes = memory.peak()
    after = median_time(_seconds_of(predict))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return Measurement(
        step=seconds,
        predict_before=before,
        predict_after=after,
        evaluate_before=None,
        evaluate_after=None,
        peak_bytes=peak_bytes,
        state_bytes=sum(map(_bytes_of_state, optimizers)),
        replica_bytes=sum(map(_bytes_of_gradient, gradients)),
        changed_rows=changed_rows(matrix, table_of(words, case), case),
    )


def _bytes_of_state(optimizer: Any) -> int:
    # SparseAdam counts its steps in Python.
    values = (value for slots in optimizer.state.values() for value in slots.values())
    return sum(getattr(value, "nbytes", 0) for value in values)


def _bytes_of_gradient(gradient: Any) -> int:
    if not gradient.is_sparse:
        return gradient.nbytes
    gradient = gradient.coalesce()
    return gradient.values().nbytes + gradient.indices().nbytes


def _seconds_of(step: Callable[[int], None]) -> Callable[[int], list[float]]:
    def times(count: int) -> list[float]:
        moments = [time.perf_counter()]
        for place in range(count):
            step(place)
            moments.append(time.perf_counter())
        return np.diff(moments).tolist()

    return times


def frozen(words: Any, ids: np.ndarray) -> Any:
    """A table of which no row trains."""
    return words.requires_grad_(False)


def hooked(words: Any, ids: np.ndarray) -> Any:
    """A table whose gradient a hook multiplies by zeros and ones."""
    import torch

    mask = torch.zeros(len(words.weight), 1)
    mask[torch.from_numpy(ids)] = 1
    words.weight.register_hook(lambda gradient: gradient * mask)
    return words


def sparse(words: Any, ids: np.ndarray) -> Any:
    """All rows, in each step those that a batch looks up, by SparseAdam."""
    words.sparse = True
    return words


def trainable_tokens(words: Any, ids: np.ndarray) -> Any:
    """PEFT's trainable tokens."""
    import peft
    import torch

    model = torch.nn.Sequential()
    model.add_module("words", words)
    config = peft.TrainableTokensConfig(target_modules=["words"], token_indices=ids.tolist())
    return peft.get_peft_model(model, config)


def table_of(words: Any, case: Case) -> np.ndarray:
    """The rows that the model looks up, float32 of shape `(rows, width)`."""
    import torch

    with torch.no_grad():
        return words(torch.arange(case.rows)).numpy()


PEERS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "PyTorch, table frozen": frozen,
    "PyTorch, gradient hook": hooked,
    "PyTorch, SparseAdam": sparse,
    "PyTorch, PEFT trainable tokens": trainable_tokens,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
