"""What the callbacks see of a training, and what they change in it."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, Rows, callbacks
from maskedgrad.callbacks import frozen_rows
from maskedgrad.callbacks.trainable_rows import log_names
from maskedgrad.masking.inner import moving_averages
from maskedgrad.testing import assert_same_bits, bits, row_sets, tables
from tests.devices import mirrored_strategy

NUM_ROWS, WIDTH, LENGTH = 12, 3, 4
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
X = RANDOM.integers(0, NUM_ROWS, size=(8, LENGTH))
Y = RANDOM.normal(size=(8, 1)).astype("float32")
BASES = [pytest.param(keras.Model, marks=pytest.mark.thorough), MaskedModel]


def small_model(base=MaskedModel, ids=(2, 7), optimizer="sgd", **options):
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
    model = base(inputs, keras.layers.Dense(1, name="head")(pooled))
    model.compile(MaskedOptimizer(optimizer, {words: list(ids)}), loss="mse", **options)
    return model, words


def unbuilt_model():
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    model = keras.Sequential([words, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
    model.compile(MaskedOptimizer("adamw", {words: [2, 7]}), loss="mse")
    return model, words


def two_tables(base=MaskedModel, **options):
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    tags = keras.layers.Embedding(NUM_ROWS, 2, name="tags")
    joined = keras.layers.Concatenate()([words(inputs), tags(inputs)])
    model = base(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(joined)))
    model.compile(MaskedOptimizer("adamw", {words: [2], tags: [3, 4]}), loss="mse", **options)
    return model, words, tags


def fit(model, *used, epochs=2, batch_size=4, **options):
    options = {"batch_size": batch_size, "epochs": epochs, "shuffle": False, **options}
    return model.fit(X, Y, verbose=0, callbacks=list(used), **options).history


class At(keras.callbacks.Callback):
    """Does something when an epoch begins."""

    def __init__(self, epoch, action):
        super().__init__()
        self._epoch, self._action = epoch, action

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._epoch:
            self._action()


class Snapshots(keras.callbacks.Callback):
    """Keeps a table as it is when training begins and when each epoch ends."""

    def __init__(self, layer):
        super().__init__()
        self._layer = layer
        self.tables = []

    def on_train_begin(self, logs=None):
        self.tables = [self._layer.get_weights()[0]]

    def on_epoch_end(self, epoch, logs=None):
        self.tables.append(self._layer.get_weights()[0])


def assign_rows(variable, ids, values, axis=0):
    table = variable.numpy()
    np.moveaxis(table, axis, 0)[ids] = values
    variable.assign(table)


# FrozenRowsCheck


class Checked:
    """A check that is told of epochs, without training in between."""

    def __init__(self, model):
        self.check = callbacks.FrozenRowsCheck()
        self.check.set_model(model)
        self.check.on_train_begin()
        self.check.on_epoch_begin(0)

    def end_epoch(self):
        self.check.on_epoch_end(0)


class TableLayer(keras.layers.Layer):
    """A table of any rank and dtype."""

    def __init__(self, values):
        super().__init__()
        dtype = keras.backend.standardize_dtype(values.dtype)
        self.table = self.add_weight(shape=values.shape, dtype=dtype, name="table")
        self.table.assign(values)

    def call(self, ids):
        return keras.ops.take(self.table, ids, axis=0)


def model_around(table):
    layer = TableLayer(table.values)
    inputs = keras.Input((2,), dtype="int32")
    model = MaskedModel(inputs, layer(inputs))
    model.compile("sgd", loss="mse", trainable_rows={layer: table.ids})
    model.optimizer.build(model.trainable_variables)
    return model, layer.table


@given(data=st.data())
def test_any_bits_that_flip_in_frozen_rows_are_found(data):
    table = data.draw(tables())
    assume(len(table.frozen))
    model, variable = model_around(table)
    row_bytes = table.values[:1].nbytes
    # Of few rows too there is more than one chunk then.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frozen_rows, "CHUNK_BYTES", data.draw(st.integers(1, 3 * row_bytes)))
        checked = Checked(model)
        checked.end_epoch()
        flips = st.tuples(st.sampled_from(table.frozen.tolist()), st.integers(0, 8 * row_bytes - 1))
        flipped = data.draw(st.sets(flips, min_size=1, max_size=3))
        changed = bits(table.values).reshape(len(table.values), -1).view("uint8").copy()
        for row, bit in flipped:
            changed[row, bit // 8] ^= 1 << bit % 8
        variable.assign(changed.view(table.values.dtype).reshape(table.values.shape))
        rows = sorted({row for row, _ in flipped})
        with pytest.raises(RuntimeError, match=f"rows {', '.join(map(str, rows))}\\)"):
            checked.end_epoch()
        checked.end_epoch()  # it is said once


@given(data=st.data())
def test_trainable_rows_may_change(data):
    table = data.draw(tables())
    model, variable = model_around(table)
    checked = Checked(model)
    raw = np.random.default_rng(0).bytes(table.values[table.ids].nbytes)
    row_shape = table.values.shape[1:]
    values = np.frombuffer(raw, table.values.dtype).reshape(len(table.ids), *row_shape)
    assign_rows(variable, table.ids, values)
    checked.end_epoch()


def test_zero_that_becomes_minus_zero_is_found():
    model, words = small_model()
    assign_rows(words.embeddings, [3], 0.0)
    checked = Checked(model)
    assign_rows(words.embeddings, [3], -0.0)
    with pytest.raises(RuntimeError, match=r"1 of 'words/embeddings' \(rows 3\)"):
        checked.end_epoch()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_two_signs_that_flip_do_not_cancel(dtype):
    row = np.linspace(1, 2, 24).astype(dtype)
    signs = 1 - 2 * (np.eye(24)[:, np.newaxis] + np.eye(24)[np.newaxis])
    pairs = (row * signs).astype(dtype)[~np.eye(24, dtype=bool)]
    prints = frozen_rows.row_fingerprints(
        np.concatenate([row[np.newaxis], pairs]), frozen_rows.fingerprint_weights(row.nbytes)
    )
    assert (prints[1:] != prints[0]).all()


def test_entries_along_another_axis_are_checked():
    model, words = small_model()
    tags = keras.layers.Dense(5, name="tags")
    tagged = MaskedModel(model.inputs, tags(model.outputs[0]))
    tagged.compile("sgd", loss="mse", trainable_rows={words: [2], AlongAxis(tags, -1): [1, 4]})
    checked = Checked(tagged)
    assign_rows(tags.kernel, [1, 4], 9.0, axis=1)
    assign_rows(tags.bias, [1, 4], 9.0)
    checked.end_epoch()
    assign_rows(tags.kernel, [0, 4], 7.0, axis=1)
    with pytest.raises(RuntimeError, match=r"1 of 'tags/kernel' \(rows 0\)"):
        checked.end_epoch()


def test_it_says_which_tables_changed_and_where():
    model, _, tags = two_tables()
    checked = Checked(model)
    assign_rows(tags.embeddings, [0, 1, 2, 5, 6, 7, 8], 1.0)
    with pytest.raises(RuntimeError) as raised:
        checked.end_epoch()
    assert "7 of 'tags/embeddings' (rows 0, 1, 2, 5, 6, ...)" in str(raised.value)
    assert "words" not in str(raised.value)


def test_a_mirrored_table_is_checked():
    with mirrored_strategy().scope():
        model, words = small_model()
        model.optimizer.build(model.trainable_variables)
        checked = Checked(model)
        checked.end_epoch()
        assign_rows(words.embeddings, [3], 0.0)
        with pytest.raises(RuntimeError, match="rows 3"):
            checked.end_epoch()


@pytest.mark.parametrize("make_model", [small_model, unbuilt_model, two_tables])
@pytest.mark.parametrize("every", [None, 1])
def test_training_that_leaves_frozen_rows_alone_passes(make_model, every):
    model, *_ = make_model()
    fit(model, callbacks.FrozenRowsCheck(every))


@pytest.mark.parametrize("check_first", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_training_in_which_other_rows_train_in_turn_passes(base, check_first):
    model, _ = small_model(base, optimizer="adamw", run_eagerly=True)
    used = [callbacks.UnfreezeSchedule({0: [1], 1: [1, 3], 3: [5]}), callbacks.FrozenRowsCheck(1)]
    fit(model, *reversed(used) if check_first else used, epochs=5)


@pytest.mark.parametrize("make_model", [small_model, unbuilt_model])
@pytest.mark.parametrize(("every", "when"), [(None, "end of epoch 1"), (2, "before step 2 ")])
def test_an_assignment_stops_the_training(make_model, every, when):
    model, words = make_model()
    assignment = At(1, lambda: assign_rows(words.embeddings, [4, 7], 0.0))
    with pytest.raises(RuntimeError, match=f"{when}.*: frozen.*1 of '.*words.*rows 4"):
        fit(model, callbacks.FrozenRowsCheck(every), assignment, epochs=3, batch_size=2)


def test_another_optimizer_on_the_same_table_is_found():
    model, words = small_model(keras.Model, run_eagerly=True)
    other = keras.Sequential([keras.Input((LENGTH,)), words])
    other.compile("sgd", loss="mse")

    def train_other():
        other.train_on_batch(np.full((1, LENGTH), 9), np.ones((1, LENGTH, WIDTH)))

    with pytest.raises(RuntimeError, match="rows 9"):
        fit(model, callbacks.FrozenRowsCheck(), At(0, train_other))


def test_weights_that_are_loaded_when_training_begins_are_not_a_change(tmp_path):
    model, words = small_model()
    saved = tmp_path / "model.weights.h5"
    model.save_weights(saved)
    words.set_weights([MATRIX + 1])
    loading = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: model.load_weights(saved))
    fit(model, callbacks.FrozenRowsCheck(), loading)


def test_what_is_assigned_between_two_trainings_is_not_a_change():
    model, words = small_model()
    check = callbacks.FrozenRowsCheck()
    fit(model, check)
    words.set_weights([MATRIX + 1])
    fit(model, check)


def test_rows_that_a_checkpoint_of_tensorflow_restores_are_seen(tmp_path):
    model, words = small_model(ids=[0, 1], run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    saved = checkpoint.save(str(tmp_path / "saved"))
    model.set_trainable_rows({words: [2, 3]})
    monitor = callbacks.TrainableRowsMonitor()
    used = [callbacks.FrozenRowsCheck(), monitor, At(1, lambda: checkpoint.restore(saved))]
    fit(model, *used, batch_size=8)
    assert model.optimizer.trainable_rows == {"words/embeddings": Rows([0, 1], NUM_ROWS)}
    assert [row.id for row in monitor.report(count=0).rows] == [0, 1]


@pytest.mark.parametrize("base", BASES)
def test_rows_that_trained_in_between_are_compared_from_then_on(base):
    model, words = small_model(base, ids=[0, 1])
    model.optimizer.build(model.trainable_variables)
    checked = Checked(model)
    model.optimizer.set_trainable_rows({words: [1, 2]})
    checked.check.on_train_batch_begin(0)
    assign_rows(words.embeddings, [0, 1, 2], 5.0)
    checked.end_epoch()
    assign_rows(words.embeddings, [0, 1, 2], 6.0)
    with pytest.raises(RuntimeError, match=r"1 of .* \(rows 0\)"):
        checked.end_epoch()


def test_rows_that_are_frozen_throughout_are_compared_while_others_change():
    model, words = small_model(ids=[0, 1])
    model.optimizer.build(model.trainable_variables)
    checked = Checked(model)
    model.optimizer.set_trainable_rows({words: [1, 2]})
    checked.check.on_train_batch_begin(0)
    assign_rows(words.embeddings, [0, 1, 2, 3], 5.0)
    with pytest.raises(RuntimeError, match=r"1 of .* \(rows 3\)"):
        checked.end_epoch()


def test_nothing_is_compared_once_where_rows_may_have_trained_unseen():
    model, words = small_model(ids=[0])
    model.optimizer.build(model.trainable_variables)
    checked = Checked(model)
    for ids in ([1], [2]):
        model.optimizer.set_trainable_rows({words: ids})
    assign_rows(words.embeddings, [1], 5.0)
    checked.end_epoch()
    assign_rows(words.embeddings, [1], 6.0)
    with pytest.raises(RuntimeError, match="rows 1"):
        checked.end_epoch()


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_step_count_that_is_none_is_refused(every, error):
    with pytest.raises(error, match="Received: every="):
        callbacks.FrozenRowsCheck(every)


ALL = [
    callbacks.FrozenRowsCheck,
    callbacks.TrainableRowsMonitor,
    lambda: callbacks.UnfreezeSchedule({0: [1]}),
]


@pytest.mark.parametrize("make", ALL, ids=["check", "monitor", "schedule"])
def test_a_model_that_masks_nothing_is_refused(make):
    model, _ = small_model(keras.Model)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="Compile it with a `MaskedOptimizer`"):
        fit(model, make())


# UnfreezeSchedule


@settings(max_examples=4)
@given(
    schedule=st.dictionaries(st.integers(0, 3), row_sets(NUM_ROWS), min_size=1, max_size=3),
    first=st.integers(0, 2),
)
@pytest.mark.parametrize("base", BASES)
def test_a_row_moves_in_the_epochs_in_which_it_trains_and_in_no_other(base, schedule, first):
    # Decay moves each row that trains, looked up or not, and momentum would go on after.
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    model, words = small_model(base, [0], optimizer, jit_compile=False)
    snapshots = Snapshots(words)
    used = [snapshots, callbacks.UnfreezeSchedule(schedule)]
    fit(model, *used, epochs=4, initial_epoch=first)
    for place, epoch in enumerate(range(first, 4)):
        begun = [each for each in schedule if each <= epoch]
        expected = schedule[max(begun)] if begun else [0]
        before, after = snapshots.tables[place : place + 2]
        moved = (bits(before) != bits(after)).any(axis=1)
        assert np.flatnonzero(moved).tolist() == expected


def test_rows_are_given_by_target_where_there_are_several():
    model, words, tags = two_tables(run_eagerly=True)
    rows = {0: {words: [1], tags: [1]}, 1: {words: [2, 3], tags: slice(None)}}
    fit(model, callbacks.UnfreezeSchedule(rows), epochs=2)
    assert [list(each) for each in model.optimizer.trainable_rows.values()] == [
        [2, 3],
        list(range(NUM_ROWS)),
    ]


def test_a_model_that_its_first_batch_builds_follows_the_schedule():
    model, words = unbuilt_model()
    schedule = callbacks.UnfreezeSchedule({0: [1], 1: [4, 5]})
    before = []
    fit(model, schedule, At(1, lambda: before.append(words.get_weights()[0])))
    moved = (bits(before[0]) != bits(words.get_weights()[0])).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [4, 5]


def test_a_scaled_optimizer_follows_the_schedule():
    model, words = small_model(run_eagerly=True)
    masked = MaskedOptimizer("adamw", {words: [2]})
    model.compile(keras.optimizers.LossScaleOptimizer(masked), loss="mse", run_eagerly=True)
    fit(model, callbacks.UnfreezeSchedule({1: [1, 4]}))
    assert masked.trainable_rows == {"words/embeddings": Rows([1, 4], NUM_ROWS)}


@pytest.mark.parametrize("base", BASES)
def test_training_goes_on_from_a_backup_as_if_it_had_not_stopped(base, tmp_path):
    def train(*more):
        keras.utils.set_random_seed(1)
        model, _ = small_model(base, [1], "adamw", run_eagerly=True)
        fit(model, callbacks.UnfreezeSchedule({0: [1], 1: [1, 4, 5], 3: [4]}), *more, epochs=4)
        return model

    def crash():
        raise InterruptedError

    uninterrupted = train()
    with pytest.raises(InterruptedError):
        train(callbacks.BackupAndRestore(tmp_path), At(2, crash))
    with pytest.warns(UserWarning, match="Rows come with their state"):
        resumed = train(callbacks.BackupAndRestore(tmp_path))
    for one, other in zip(uninterrupted.get_weights(), resumed.get_weights(), strict=True):
        assert_same_bits(one, other, "a weight")


def test_a_backup_holds_weights_and_not_averages(tmp_path):
    averaging = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
    model, words = small_model(optimizer=averaging, run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    weights = words.get_weights()[0]
    swap, backup = (
        callbacks.SwapEMAWeights(swap_on_epoch=True),
        callbacks.BackupAndRestore(tmp_path),
    )
    for each in (swap, backup):
        each.set_params({"epochs": 3})
        each.set_model(model)
    swap.on_epoch_end(0)
    averages = words.get_weights()[0]
    assert (averages != weights).any()
    backup.on_epoch_end(0)
    assert_same_bits(words.get_weights()[0], averages, "what the model goes on with")
    swap.on_epoch_begin(1)
    words.set_weights([MATRIX])
    backup.on_train_begin()
    assert_same_bits(words.get_weights()[0], weights, "the backup")


@pytest.mark.thorough
@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
def test_training_goes_on_from_weights_and_not_from_averages_in_each_order(place, tmp_path):
    def train(*more):
        keras.utils.set_random_seed(1)
        averaging = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
        model, _ = small_model(optimizer=averaging, run_eagerly=True)
        used = [callbacks.SwapEMAWeights(swap_on_epoch=True)]
        used.insert(place, callbacks.BackupAndRestore(tmp_path))
        fit(model, *used, *more)
        return model

    def crash():
        raise InterruptedError

    uninterrupted = train()
    with pytest.raises(InterruptedError):
        train(At(1, crash))
    for one, other in zip(uninterrupted.get_weights(), train().get_weights(), strict=True):
        assert_same_bits(one, other, "a weight")


def test_a_schedule_is_what_was_given_whatever_becomes_of_what_gave_it():
    model, _ = small_model()
    schedule = callbacks.UnfreezeSchedule({0: (ids := [1])})
    ids.append(3)
    schedule.set_model(model)
    schedule.on_train_begin()
    schedule.on_epoch_begin(0)
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer.trainable_rows == {"words/embeddings": Rows([1], NUM_ROWS)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([NUM_ROWS], "must be below 12"),
        (Rows([1], 5), "of the length of the table"),
        (slice(0, 0), "no row at all"),
        ({"head/kernel": [1]}, "must name the tables that have trainable rows"),
        (
            {"words/embeddings": [1], "head/kernel": [0]},
            "must name the tables that have trainable rows",
        ),
        ({"other": [1]}, "matches none"),
    ],
    ids=str,
)
@pytest.mark.parametrize("built", [False, True])
def test_rows_that_do_not_fit_are_refused_before_anything_changes(rows, message, built):
    model, words = small_model()
    if built:
        model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=f"The rows of epoch 7: .*{message}"):
        fit(model, callbacks.UnfreezeSchedule({0: [5], 7: rows}))
    (now,) = model.optimizer.trainable_rows.values()
    assert list(now) == [2, 7]
    assert_same_bits(words.embeddings, MATRIX, "the table")


def test_rows_alone_are_refused_where_there_are_several_targets():
    model, *_ = two_tables()
    with pytest.raises(ValueError, match=r"The rows of epoch 2: .*'words'.*'tags'"):
        fit(model, callbacks.UnfreezeSchedule({2: [5]}))


@pytest.mark.parametrize(
    ("schedule", "error"),
    [
        ([3], TypeError),
        ({}, ValueError),
        ({-1: [3]}, ValueError),
        ({1.0: [3]}, ValueError),
        ({True: [3]}, ValueError),
        ({0: "3"}, TypeError),
        ({0: [3, 3]}, ValueError),
        ({0: {}}, ValueError),
        ({0: {3: [3]}}, TypeError),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(schedule, error):
    with pytest.raises(error, match="Received"):
        callbacks.UnfreezeSchedule(schedule)


# TrainableRowsMonitor

LOGGED = ["moved", "moved_max", "unmoved"]


@pytest.mark.parametrize("base", BASES)
def test_the_logs_hold_how_far_rows_moved_since_training_began(base, tmp_path):
    model, words = small_model(base, optimizer="adamw")
    snapshots, log = Snapshots(words), tmp_path / "log.csv"
    used = [callbacks.TrainableRowsMonitor(), snapshots, keras.callbacks.CSVLogger(str(log))]
    history = fit(model, *used, epochs=3)
    start, *ends = (table[[2, 7]].astype("float64") for table in snapshots.tables)
    distances = [np.sqrt(((end - start) ** 2).sum(axis=1)) for end in ends]
    # Another order of a handful of additions in float64.
    np.testing.assert_allclose(history["words_moved"], np.mean(distances, axis=1), rtol=1e-12)
    np.testing.assert_allclose(history["words_moved_max"], np.max(distances, axis=1), rtol=1e-12)
    assert np.min(distances) > 0
    with log.open() as file:
        written = [float(line["words_moved"]) for line in csv.DictReader(file)]
    assert written == history["words_moved"]


def test_rows_that_join_are_measured_from_where_training_began():
    model, words = small_model(optimizer="adamw", run_eagerly=True)
    used = [callbacks.TrainableRowsMonitor(), callbacks.UnfreezeSchedule({1: [2, 5], 2: [5, 7]})]
    history = fit(model, *used, epochs=3)
    moves = words.get_weights()[0].astype("float64") - MATRIX
    expected = np.linalg.norm(moves, axis=1)
    np.testing.assert_allclose(history["words_moved"][2], expected[[5, 7]].mean(), rtol=1e-12)
    np.testing.assert_allclose(history["words_moved_max"][2], expected[[5, 7]].max(), rtol=1e-12)


def test_each_training_begins_anew():
    model, _ = small_model(optimizer=keras.optimizers.SGD(0.0))
    monitor = callbacks.TrainableRowsMonitor()
    fit(model, monitor)
    model.get_layer("words").set_weights([MATRIX + 1])
    assert fit(model, monitor)["words_moved"] == [0.0, 0.0]


def test_entries_along_another_axis_are_measured():
    words, inputs = keras.layers.Embedding(NUM_ROWS, WIDTH), keras.Input((LENGTH,), dtype="int32")
    head = keras.layers.Dense(5, name="head", use_bias=False)
    model = MaskedModel(inputs, head(keras.layers.GlobalAveragePooling1D()(words(inputs))))
    model.compile("adamw", loss="mse", trainable_rows={AlongAxis(head, -1): [1, 4]})
    before = head.kernel.numpy().astype("float64")
    history = fit(model, callbacks.TrainableRowsMonitor(), epochs=1)
    moves = np.linalg.norm(head.kernel.numpy() - before, axis=0)[[1, 4]]
    # Another order of a handful of additions in float64.
    np.testing.assert_allclose(history["head_moved"], moves.mean(), rtol=1e-12)
    np.testing.assert_allclose(history["head_moved_max"], moves.max(), rtol=1e-12)


def test_each_table_has_names_of_its_own():
    model, *_ = two_tables(run_eagerly=True)
    history = fit(model, callbacks.TrainableRowsMonitor(), epochs=1)
    names = {f"{table}_{what}" for table in ("words", "tags") for what in LOGGED}
    assert set(history) == {"loss", *names}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["words/embeddings"], ["words"]),
        (["model/words/embeddings"], ["words"]),
        (["table"], ["table"]),
        (
            ["a/words/embeddings", "b/words/embeddings"],
            ["a_words_embeddings", "b_words_embeddings"],
        ),
        (["head/kernel", "head/bias"], ["head_kernel", "head_bias"]),
        (["w/e", "w/e", "tags/e"], ["w_e_0", "w_e_1", "tags"]),
    ],
)
def test_names_are_those_of_layers_or_else_of_paths(paths, names):
    assert log_names(paths) == names


def test_a_model_that_its_first_batch_builds_is_measured_from_its_second():
    model, words = unbuilt_model()
    after = []
    noting = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after.append(words.get_weights()[0])
    )
    history = fit(model, noting, callbacks.TrainableRowsMonitor())
    moves = [(each - after[0].astype("float64"))[[2, 7]] for each in (after[1], after[3])]
    expected = np.linalg.norm(moves, axis=2).mean(axis=1)
    # Another order of a handful of additions in float64.
    np.testing.assert_allclose(history["words_moved"], expected, rtol=1e-12)


def test_a_loop_that_keeps_no_logs_is_told_nothing():
    model, _ = small_model()
    monitor = callbacks.TrainableRowsMonitor()
    monitor.set_model(model)
    fit(model, monitor)
    assert monitor.on_epoch_end(0) is None
    monitor.on_epoch_end(0, logs := {})
    assert sorted(logs) == [f"words_{what}" for what in LOGGED]


def test_a_copy_that_a_killed_process_left_beside_a_backup_goes(tmp_path):
    model, _ = small_model()
    backup = callbacks.BackupAndRestore(tmp_path)
    backup.set_model(model)
    backup.on_epoch_end(0)
    (tmp_path / "before-0.weights.h5").write_bytes(b"cut off")
    backup.on_train_begin()
    assert [path.name for path in tmp_path.iterdir()] == ["latest.weights.h5"]


def test_a_model_that_its_first_batch_builds_has_no_backup(tmp_path):
    model, _ = unbuilt_model()
    with pytest.raises(ValueError, match="built before `fit` is called"):
        fit(model, callbacks.BackupAndRestore(tmp_path))


def test_averages_are_not_swapped_where_there_are_none():
    model, _ = small_model(optimizer="adam")
    with pytest.raises(ValueError, match="with `use_ema=True`"):
        fit(model, callbacks.SwapEMAWeights())


@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
def test_rows_are_frozen_at_their_weights_and_not_at_averages_in_each_order(place):
    tables = []
    for swaps in (False, True):
        averaging = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
        model, words = small_model(ids=[2, 7], optimizer=averaging, run_eagerly=True)
        model.layers[-1].set_weights([np.ones((WIDTH, 1)), np.zeros(1)])
        used = [callbacks.SwapEMAWeights(swap_on_epoch=True)] if swaps else []
        used.insert(place, callbacks.UnfreezeSchedule({1: [7, 3]}))
        noted = At(2, lambda tables=tables, words=words: tables.append(words.get_weights()[0]))
        fit(model, *used, noted, epochs=3)
    assert (tables[0][2] != MATRIX[2]).any()  # the row that was frozen after it had trained
    assert_same_bits(tables[1][[2, 7, 3]], tables[0][[2, 7, 3]], "rows in the last epoch")


def test_averages_are_back_in_place_where_a_change_of_rows_is_refused():
    model, words = small_model(optimizer=keras.optimizers.SGD(0.5, use_ema=True), run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    swap = callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    averages = words.get_weights()[0]

    def refuse():
        with model.optimizer.around_row_changes():
            assert (words.get_weights()[0] != averages).any()
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refuse()
    assert_same_bits(words.get_weights()[0], averages, "the averages")


def averaging():
    return keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)


class Locked(keras.Variable):
    """A variable of a user's class that can refuse other values."""

    is_locked = False

    def assign(self, value):
        if self.is_locked:
            raise PermissionError("locked")
        super().assign(value)


class Scale(keras.layers.Layer):
    """A layer whose variable is of a class of the user's."""

    def build(self, shape):
        self.scale = Locked(np.ones(shape[-1:]), name="scale")

    def call(self, inputs):
        return inputs * self.scale


def averaged_model():
    """A model that has trained for some steps, so that its averages are not its weights."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    scale = Scale()
    pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
    model = MaskedModel(inputs, keras.layers.Dense(1)(scale(pooled)))
    model.compile(MaskedOptimizer(averaging(), {words: [2, 7]}), loss="mse", run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    return model, scale.scale


def all_values(model):
    return [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]


def assert_all_same(model, expected, when):
    for variable, value in zip(all_values(model), expected, strict=True):
        assert_same_bits(variable, value, when)


@pytest.mark.parametrize("of_average", [False, True], ids=["a weight", "an average"])
def test_all_averages_are_swapped_or_none(of_average):
    model, scale = averaged_model()
    pairs = list(moving_averages(model.optimizer.inner_optimizer))
    place = [variable is scale for variable, _ in pairs].index(True)
    assert 0 < place < len(pairs) - 1  # others are swapped before it
    _, average = pairs[place]
    before = all_values(model)
    refusing = average if of_average else scale
    refusing.__class__ = Locked
    refusing.is_locked = True
    swap = callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(PermissionError):
        model.evaluate(X, Y, callbacks=[swap], verbose=0)
    assert_all_same(model, before, "refused")
    refusing.is_locked = False
    model.evaluate(X, Y, callbacks=[swap], verbose=0)
    assert_all_same(model, before, "after an evaluation")
    swap.set_params({"epochs": 1})
    swap.on_epoch_end(4)
    averages = all_values(model)
    average.__class__ = Locked
    average.is_locked = True
    with pytest.raises(PermissionError):
        swap.on_epoch_end(0)
    assert_all_same(model, averages, "averages that cannot be kept")


def fails(*args, **kwargs):
    raise RuntimeError("an evaluation that ends in an error")


@pytest.mark.parametrize("again", ["evaluate", "fit"])
def test_averages_are_taken_out_when_a_callback_is_used_again_after_an_error(again):
    model, _ = averaged_model()
    before, swap = model.get_weights(), callbacks.SwapEMAWeights()
    failing = keras.callbacks.LambdaCallback()
    failing.on_test_batch_end = fails
    with pytest.raises(RuntimeError, match="ends in an error"):
        model.evaluate(X, Y, callbacks=[swap, failing], verbose=0)
    assert (model.get_weights()[0] != before[0]).any()
    if again == "evaluate":
        model.evaluate(X, Y, callbacks=[swap], verbose=0)
    else:
        fit(model, swap, epochs=0)
    for weight, value in zip(model.get_weights(), before, strict=True):
        assert_same_bits(weight, value, "weights, not averages")


def test_averages_of_an_optimizer_before_are_taken_out_after_an_error_too():
    model, _ = averaged_model()
    before, swap = all_values(model), callbacks.SwapEMAWeights()
    first = model.optimizer
    failing = keras.callbacks.LambdaCallback()
    failing.on_test_batch_end = fails
    with pytest.raises(RuntimeError, match="ends in an error"):
        model.evaluate(X, Y, callbacks=[swap, failing], verbose=0)
    words = model.get_layer("words")
    model.compile(MaskedOptimizer(averaging(), {words: [2, 7]}), loss="mse", run_eagerly=True)
    swap.set_model(model)
    after = [variable.numpy() for variable in (*model.weights, *first.variables)]
    for value, expected in zip(after, before, strict=True):
        assert_same_bits(value, expected, "weights and averages in their places")
    with first.around_row_changes():
        assert_same_bits(model.get_weights()[0], before[0], "nothing is swapped any more")


def test_all_averages_are_swapped_or_none_where_a_table_cannot_be_written(monkeypatch):
    inputs = keras.Input((LENGTH,), dtype="int32")
    tables = [
        keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name=name)
        for name in ("first", "all", "last")
    ]
    first, whole, last = tables
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Add()([t(inputs) for t in tables]))
    model = MaskedModel(inputs, keras.layers.Dense(1)(pooled))
    rows = {first: [2, 7], whole: slice(None), last: [3, 7]}
    model.compile(MaskedOptimizer(averaging(), rows), loss="mse", run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    before, swap = all_values(model), callbacks.SwapEMAWeights(swap_on_epoch=True)
    swap.set_params({"epochs": 1})

    def refuses(*args, **kwargs):
        raise MemoryError("no room for a copy of the table")

    def refused(use, expected, when):
        with monkeypatch.context() as context:
            context.setattr(last.embeddings.value, "scatter_update", refuses)
            with pytest.raises(MemoryError):
                use()
        assert_all_same(model, expected, when)

    refused(lambda: model.evaluate(X, Y, callbacks=[swap], verbose=0), before, "refused")
    swap.on_test_begin()
    averages = all_values(model)
    assert (averages[0] != before[0]).any()
    refused(swap.on_test_end, averages, "averages that cannot be taken out")
    refused(lambda: swap.on_epoch_end(0), averages, "averages that cannot be kept")
    swap.on_test_end()
    assert_all_same(model, before, "after an evaluation")


def test_weights_that_are_assigned_after_a_training_stay_when_other_rows_are_chosen():
    model, words = small_model(optimizer=averaging(), run_eagerly=True)
    fit(model, callbacks.SwapEMAWeights(swap_on_epoch=True))
    words.set_weights([MATRIX + 1])
    model.set_trainable_rows({words: [3, 7]})
    assert_same_bits(words.get_weights()[0], MATRIX + 1, "assigned")


def test_a_callback_serves_a_model_that_is_compiled_anew():
    model, words = small_model(optimizer=averaging(), run_eagerly=True)
    swap = callbacks.SwapEMAWeights(swap_on_epoch=True)
    fit(model, swap)
    trained = words.get_weights()[0]
    stopped = keras.optimizers.SGD(0.0, use_ema=True)
    model.compile(MaskedOptimizer(stopped, {words: [2, 7]}), loss="mse", run_eagerly=True)
    fit(model, swap)
    np.testing.assert_allclose(words.get_weights()[0], trained, rtol=1e-6)


def test_a_training_that_is_stopped_early_ends_with_averages():
    tables = []
    for swaps in ([], [callbacks.SwapEMAWeights(swap_on_epoch=True)]):
        model, words = small_model(optimizer=averaging(), run_eagerly=True)
        model.layers[-1].set_weights([np.ones((WIDTH, 1)), np.zeros(1)])
        stops = keras.callbacks.EarlyStopping("loss", min_delta=9, patience=1)
        assert len(fit(model, stops, *swaps, epochs=5)["loss"]) < 5
        tables.append(words.get_weights()[0])
    assert_same_bits(*tables, "averages")
