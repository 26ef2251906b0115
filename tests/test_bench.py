"""`python -m maskedgrad bench`: what it reports is what it measured."""

import argparse
import json
import sys

import keras
import numpy as np
import pytest

from maskedgrad.cli import bench, bench_work, main
from maskedgrad.cli.bench_report import FLOOR, Result, draw, ratio
from maskedgrad.cli.bench_work import Case, PeakMemory, changed_rows, trainable_ids, work
from maskedgrad.cli.bench_worker import WAYS, batches_of, build, measure, training_time
from tests.features import needs

TINY = ["--rows", "60", "--width", "8", "--batch", "4", "--length", "5", "--trainable", "3"]
CASE = Case(FLOOR, 60, 8, 4, 5, 3, "adam", "pool", False, 1)


def options_of(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


def run_bench(tmp_path, *arguments):
    path = tmp_path / "bench.json"
    assert main(["bench", *TINY, "--rounds", "1", "--json", str(path), *arguments]) == 0
    results = json.loads(path.read_text())["results"]
    return {result["case"]["way"]: result["measurements"][0] for result in results}


@pytest.mark.processes
def test_it_measures_what_each_way_costs_and_what_it_leaks(tmp_path, capsys):
    figure = tmp_path / "bench.svg"
    ways = [FLOOR, "maskedgrad", "maskedgrad, stock Model", "table trainable"]
    measured = run_bench(tmp_path, "--figure", str(figure), "--ways", *ways)
    assert b"<svg" in figure.read_bytes()
    assert "60 rows x 8" in capsys.readouterr().out
    assert list(measured) == ways
    assert all(measurement["step"] > 0 for measurement in measured.values())
    assert [measured[way]["changed_rows"] for way in ways[:3]] == [0, 0, 0]
    assert measured["table trainable"]["changed_rows"] > 0
    # Adam keeps two numbers for each number that trains, and sends one. Ids are state too.
    floor = measured[FLOOR]
    for way, rows, ids in [
        ("maskedgrad", 3, 3),
        ("maskedgrad, stock Model", 3, 3),
        ("table trainable", 60, 0),
    ]:
        state = 2 * rows * 8 * 4 + ids * 8
        assert measured[way]["state_bytes"] - floor["state_bytes"] == state
    for way in ways[1:3]:
        assert measured[way]["replica_bytes"] - floor["replica_bytes"] == 3 * 8 * 4


@pytest.mark.processes
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=[needs("Input", "ragged")] if model == "ragged" else [])
        for model in bench.MODELS
    ],
)
@pytest.mark.parametrize("way", ["maskedgrad", "maskedgrad, stock Model"])
def test_frozen_rows_keep_their_bits_in_every_model(way, model, monkeypatch):
    monkeypatch.setattr(bench_work, "MOST", 6)
    assert measure(CASE._replace(way=way, model=model)).changed_rows == 0


def test_steps_of_one_call_are_counted_apart(monkeypatch):
    monkeypatch.setattr(bench_work, "MOST", 6)
    case = CASE._replace(way="maskedgrad", steps_per_execution=4)
    matrix, tokens = work(case)
    model = build(case, matrix, keras.optimizers.Adam()).model
    assert training_time(model, batches_of(tokens, case), 4) > 0
    assert int(model.optimizer.iterations) in [(5 + calls) * 4 for calls in (5, 6)]
    assert measure(case).changed_rows == 0


@pytest.mark.processes
def test_a_sweep_measures_each_value(tmp_path):
    path, figure = tmp_path / "sweep.json", tmp_path / "sweep.png"
    options = [
        "--sweep",
        "trainable",
        "--rounds",
        "1",
        "--json",
        str(path),
        "--figure",
        str(figure),
    ]
    assert main(["bench", *TINY, *options, "--ways", "maskedgrad"]) == 0
    results = json.loads(path.read_text())["results"]
    assert [result["case"]["trainable"] for result in results] == [3, 30]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_noise_is_not_drawn_as_a_steep_curve():
    """A step that takes a tenth longer lies a tenth of the figure higher, at the most."""
    pytest.importorskip("matplotlib")
    results = [Result({"way": FLOOR, "rows": n}, [{"step": s}]) for n, s in [(10, 1), (99, 1.1)]]
    (axes,) = draw(results, "rows").axes
    low, high = axes.transAxes.inverted().transform(
        axes.transData.transform([(10, 1e3), (99, 1.1e3)])
    )
    assert 0 < high[1] - low[1] <= 0.1


def test_it_knows_the_ways_that_it_offers():
    assert sorted(bench.WAYS) == sorted(WAYS)


@pytest.mark.parametrize("sweep", sorted(bench.SWEEPS))
def test_a_sweep_changes_one_thing_and_leaves_rows_to_freeze(sweep):
    cases = bench.cases_of(options_of("--sweep", sweep, "--trainable", "100"), [FLOOR])
    values = [case.pop(sweep) for case in cases]
    assert values == sorted(set(values))
    assert len(values) > 2
    assert all(case == cases[0] for case in cases)
    if sweep == "trainable":
        assert values[-1] == 200_000


def test_no_row_left_to_freeze_is_refused(capsys):
    assert main(["bench", "--rows", "10", "--trainable", "10"]) == 2
    assert "Received: 10 of 10" in capsys.readouterr().err


@pytest.mark.processes
def test_what_a_process_refuses_is_one_line(capsys):
    options = [*TINY, "--rounds", "1", "--ways", FLOOR, "--optimizer", "sorcery"]
    assert main(["bench", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sorcery" in line


def test_the_work_is_the_same_each_time_and_touches_both_kinds_of_rows():
    (matrix, tokens), (again, tokens_again) = work(CASE), work(CASE)
    assert np.array_equal(matrix, again)
    assert np.array_equal(tokens, tokens_again)
    assert tokens.min() >= 1
    are_trainable = np.isin(tokens, trainable_ids(CASE))
    assert 0 < are_trainable.mean() < 1


def test_a_row_has_changed_when_one_of_its_bits_has():
    before, _ = work(CASE)
    after = before.copy()
    after[5, 0] = np.nextafter(after[5, 0], 2)
    after[58] = 9  # trainable
    assert changed_rows(before, after, CASE) == 1


def test_a_ratio_is_that_of_a_round():
    result = Result({}, [{"step": 2.0}, {"step": 30.0}, {"step": 5.0}])
    floor = Result({}, [{"step": 1.0}, {"step": 10.0}, {"step": 1.0}])
    assert ratio(result, floor) == (3.0, 2.0, 5.0)


def test_stop_gradient_freezes_rows_too(monkeypatch):
    monkeypatch.setattr(bench_work, "MOST", 6)
    assert measure(CASE._replace(way="stop_gradient mix")).changed_rows == 0


@pytest.mark.processes
def test_what_is_not_asked_for_is_not_written(capsys):
    assert main(["bench", *TINY, "--rounds", "1", "--ways", FLOOR]) == 0
    printed = capsys.readouterr().out
    assert FLOOR in printed
    assert "The figure is in" not in printed


@pytest.mark.processes
def test_pytorch_is_measured_where_it_is_installed_and_as_it_can_be(capsys, monkeypatch):
    options = [*TINY, "--rounds", "1", "--ways", FLOOR, "--peers"]
    assert main(["bench", *options]) in {0, 1}
    if "not installed" not in capsys.readouterr().out:
        pytest.skip("PyTorch and PEFT are installed, and what is below says that they are not")
    # What looks for them finds them, and what is started then does not.
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: name)
    assert main(["bench", *options, "--optimizer", "sgd"]) == 0
    assert "one step at a time" in capsys.readouterr().out
    assert main(["bench", *options]) == 1
    printed = capsys.readouterr().out
    assert "No module named 'torch'" in printed
    assert "A case failed" in printed
    assert "PyTorch, table frozen" in printed


def test_numbers_that_are_not_positive_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--rows", "0"])
    assert "Expected a whole number above 0. Received: 0" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's way to say that there is none
    with pytest.raises(ImportError, match=r'pip install "maskedgrad\[demo\]"'):
        bench.run(options_of("--figure", str(tmp_path / "figure.png")))


def test_memory_is_not_known_where_a_process_cannot_reset_its_peak(tmp_path):
    class Elsewhere(PeakMemory):
        RESET = tmp_path / "clear_refs"

    memory = Elsewhere()
    memory.start()
    assert memory.peak() is None
