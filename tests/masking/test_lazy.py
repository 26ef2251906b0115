"""A lazy step is the inner optimizer's step on the rows that a batch touches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer
from maskedgrad.testing import assert_same_bits, optimizer_classes
from tests.devices import mirrored_strategy
from tests.features import exported, needs_muon, some_optimizer_classes

NUM_ROWS, WIDTH = 20, 3
# What steps rows one by one; a class of Keras that is not here is tried, and must be refused.
LAZY = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lion",
    "Nadam",
    "RMSprop",
    "SGD",
    "ScheduleFreeAdamW",
]
# Each second in the default lane.
SOME_LAZY = [
    pytest.param(
        *each.values, marks=[*each.marks, *[pytest.mark.thorough] * (place % 2)], id=each.id
    )
    for place, each in enumerate(exported(f"optimizers.{name}") for name in LAZY)
]
REFUSED = {"Adafactor", "Lamb", "Muon"}


def table_of(values=None, name="table"):
    if values is None:
        values = np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH))
    return keras.Variable(values, name=name, dtype="float32")


def slices_of(ids, random, num_rows=NUM_ROWS):
    ids = np.asarray(ids, "int64")
    values = random.normal(size=(len(ids), WIDTH)).astype("float32")
    return tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([num_rows, WIDTH]))


class AloneOnTouchedRows:
    """What the law says: the inner optimizer on a table of the touched rows, with their state."""

    def __init__(self, make, values):
        self.make, self.values = make, np.array(values, "float32")
        # One entry for each row of the whole table; of shape (V, D) as the state of a table is.
        self.state = None
        self.others = None

    def step(self, slices):
        ids = slices.indices.numpy()
        _, first = np.unique(ids, return_index=True)
        touched = ids[np.sort(first)]
        if not len(touched):  # a step counts; Keras makes none on tensors without rows
            self.step_on_a_row_that_is_not_there()
            return
        optimizer, table = self.make(), table_of(self.values[touched])
        optimizer.build([table])
        of_rows = [tuple(v.shape) == (len(touched), WIDTH) for v in optimizer.variables]
        self.state = self.state or self.fresh_state()
        for variable, has_rows, value in zip(optimizer.variables, of_rows, self.state, strict=True):
            variable.assign(value[touched] if has_rows else value)
        places = {row: place for place, row in enumerate(touched)}
        gradient = tf.math.unsorted_segment_sum(
            slices.values, tf.constant([places[row] for row in ids], tf.int64), len(touched)
        )
        optimizer.apply([gradient], [table])
        self.values[touched] = table.numpy()
        for place, (variable, has_rows) in enumerate(
            zip(optimizer.variables, of_rows, strict=True)
        ):
            if has_rows:
                self.state[place][touched] = variable.numpy()
            else:
                self.state[place] = variable.numpy()

    def step_on_a_row_that_is_not_there(self):
        optimizer, row = self.make(), table_of(np.zeros((1, WIDTH)))
        optimizer.build([row])
        state = self.state or self.fresh_state()
        for variable, value in zip(optimizer.variables, state, strict=True):
            if tuple(variable.shape) != (1, WIDTH):
                variable.assign(value)
        optimizer.apply([tf.zeros((1, WIDTH))], [row])
        self.state = [
            value if tuple(variable.shape) == (1, WIDTH) else variable.numpy()
            for variable, value in zip(optimizer.variables, state, strict=True)
        ]

    def fresh_state(self):
        fresh = self.make()
        fresh.build([table_of(self.values)])
        return [variable.numpy() for variable in fresh.variables]


def test_each_optimizer_of_keras_is_lazy_or_refused():
    lazy = set()
    for cls in optimizer_classes():
        optimizer = MaskedOptimizer(cls(), {"table": [1, 2, 5]}, lazy=True)
        if cls.__name__ in REFUSED:
            with pytest.raises(ValueError, match="lazy"):
                optimizer.build([table_of()])
            assert not optimizer.inner_optimizer.built
        else:
            optimizer.build([table_of()])
            lazy.add(cls.__name__)
    assert lazy <= set(LAZY), "a class that is new: it is lazy, so let the law draw it"


@pytest.mark.parametrize("cls", SOME_LAZY)
@given(data=st.data())
def test_a_lazy_step_is_a_step_on_the_touched_rows_alone(cls, data):
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "weight_decay": st.just(0.1),
                "clipvalue": st.just(0.5),
                "learning_rate": st.sampled_from([0.01, 0.5]),
            },
        )
    )

    def make():
        return cls(**options)

    seed = data.draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    trainable = np.sort(random.choice(NUM_ROWS, random.integers(2, NUM_ROWS + 1), replace=False))
    table, before = table_of(), table_of().numpy()
    optimizer = MaskedOptimizer(make(), {"table": trainable}, lazy=True)
    alone = AloneOnTouchedRows(make, before)
    apply = optimizer.apply
    if data.draw(st.booleans(), label="in a graph"):
        optimizer.build([table])
        apply = tf.function(lambda slices, variables: optimizer.apply([slices], [table]))
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        ids = random.choice(NUM_ROWS, random.integers(1, 12))
        slices = slices_of(ids, random)
        apply([slices] if apply == optimizer.apply else slices, [table])
        kept = np.isin(ids, trainable)
        if kept.any():
            alone.step(
                tf.IndexedSlices(slices.values[kept], tf.constant(ids[kept]), slices.dense_shape)
            )
        else:  # a step on no rows counts
            alone.step(slices_of([], random))
        # A row is stepped among others, in lanes of the processor whose last bits differ; Ftrl
        # then takes numbers from each other that are almost the same.
        np.testing.assert_allclose(table.numpy(), alone.values, rtol=1e-4, atol=1e-5)
        frozen = np.setdiff1d(np.arange(NUM_ROWS), trainable)
        assert_same_bits(table.numpy()[frozen], before[frozen], "frozen rows")


def lazy_adam(values, steps):
    """Adam of Kingma and Ba, algorithm 1, on the rows of each step alone, in NumPy."""
    rate, beta_1, beta_2, epsilon = 0.1, 0.9, 0.999, 1e-7
    values, m, v = np.array(values, "float64"), np.zeros(values.shape), np.zeros(values.shape)
    for t, (ids, gradients) in enumerate(steps, start=1):
        rows = np.unique(ids)
        summed = np.zeros(values.shape)
        np.add.at(summed, ids, gradients)
        m[rows] += (1 - beta_1) * (summed[rows] - m[rows])
        v[rows] += (1 - beta_2) * (summed[rows] ** 2 - v[rows])
        scale = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        values[rows] -= scale * m[rows] / (np.sqrt(v[rows]) + epsilon)
    return values


def random_steps(count, seed=0):
    random = np.random.default_rng(seed)
    return [slices_of(random.integers(0, NUM_ROWS, 8), random) for _ in range(count)]


def test_lazy_adam_is_that_of_the_paper_on_touched_rows():
    table, steps = table_of(), random_steps(6)
    expected = lazy_adam(table.numpy(), [(s.indices.numpy(), s.values.numpy()) for s in steps])
    optimizer = MaskedOptimizer(keras.optimizers.Adam(0.1), {"table": slice(None)}, lazy=True)
    for slices in steps:
        optimizer.apply([slices], [table])
    # float32 beside float64: some units in the last place of each of six steps.
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_lazy_adam_is_the_sparse_adam_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    table, steps = table_of(), random_steps(6)
    parameter = torch.nn.Parameter(torch.tensor(table.numpy()))
    theirs = torch.optim.SparseAdam([parameter], lr=0.1, eps=1e-7)
    ours = MaskedOptimizer(keras.optimizers.Adam(0.1), {"table": slice(None)}, lazy=True)
    for slices in steps:
        ours.apply([slices], [table])
        indices = torch.from_numpy(slices.indices.numpy())[None]
        parameter.grad = torch.sparse_coo_tensor(
            indices, torch.from_numpy(slices.values.numpy()), tuple(table.shape)
        )
        theirs.step()
    # The two add their epsilon in other places.
    np.testing.assert_allclose(table.numpy(), parameter.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [keras.optimizers.SGD, keras.optimizers.Adagrad])
@given(data=st.data())
def test_rows_that_are_idle_anyway_are_left_alone_to_the_same_bits(cls, data):
    """Slices are stepped on touched rows, and a dense gradient of the same numbers on all."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    ids = np.sort(random.choice(NUM_ROWS, random.integers(1, NUM_ROWS), replace=False))
    tables = table_of(), table_of()
    optimizers = [MaskedOptimizer(cls(0.1), {"table": ids}) for _ in tables]
    for _ in range(3):
        slices = slices_of(random.integers(0, NUM_ROWS, 6), random)
        for optimizer, table, gradient in zip(
            optimizers, tables, [slices, tf.convert_to_tensor(slices)], strict=True
        ):
            optimizer.apply([gradient], [table])
    assert_same_bits(tables[0], tables[1], "the table")
    for one, other in zip(*(optimizer.variables for optimizer in optimizers), strict=True):
        assert_same_bits(one, other, one.path)


class MovesAllRows(keras.optimizers.SGD):
    """Moves rows that have no gradient, in each n-th step."""

    def __init__(self, every=1, **kwargs):
        super().__init__(**kwargs)
        self.every = every

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        is_due = (self.iterations + 1) % self.every == 0
        self.assign(variable, keras.ops.where(is_due, variable * 0.5, variable))


class StepsNoSmallTable(MovesAllRows):
    """Moves rows that have no gradient, but of ten rows or more; of fewer it says nothing."""

    def update_step(self, gradient, variable, learning_rate):
        if (variable.shape[0] or 10) < 10:
            raise ValueError
        super().update_step(gradient, variable, learning_rate)


class BuildsNoSmallTable(MovesAllRows):
    """The same, and says nothing as soon as it is built."""

    def build(self, variables):
        if any(variable.shape[0] < 10 for variable in variables):
            raise ValueError
        super().build(variables)


class MixesRows(keras.optimizers.SGD):
    """Moves each row by the mean of all rows' gradients too."""

    def update_step(self, gradient, variable, learning_rate):
        mean = keras.ops.mean(gradient, axis=0, keepdims=True)
        super().update_step(gradient + mean, variable, learning_rate)


class InFloat32(keras.optimizers.SGD):
    """Does not cast its numbers to the dtype of what it trains, as many do not."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, tf.constant(0.5) * tf.convert_to_tensor(gradient))


class MixesRowsInFloat32(MixesRows):
    """As `MixesRows`, in one dtype."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * tf.constant(0.5), variable, learning_rate)


@pytest.mark.parametrize(
    "make",
    [
        MovesAllRows,
        lambda: MovesAllRows(every=5),
        StepsNoSmallTable,
        BuildsNoSmallTable,
        MixesRows,
        InFloat32,
        MixesRowsInFloat32,
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.SGD(0.1, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.1, use_ema=True),
        lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.1),
    ],
)
def test_the_trial_tells_who_moves_rows_without_a_gradient(make):
    """What it takes for idle would be stepped otherwise on slices than on a dense gradient."""
    tables, random = (table_of(), table_of()), np.random.default_rng(0)
    optimizers = [MaskedOptimizer(make(), {"table": range(3, 18)}) for _ in tables]
    for _ in range(6):
        slices = slices_of([4, 5, 5], random)
        optimizers[0].apply([slices], [tables[0]])
        optimizers[1].apply([tf.convert_to_tensor(slices)], [tables[1]])
    assert_same_bits(tables[0], tables[1], "the table")


@pytest.mark.parametrize("clipvalue", [0.5, 0.1])
def test_an_optimizer_that_is_told_to_decay_later_decays_all_rows(clipvalue):
    table = table_of()
    optimizer = MaskedOptimizer(keras.optimizers.SGD(0.1, clipvalue=0.5), {"table": [1, 2]})
    optimizer.build([table])
    optimizer.inner_optimizer.clipvalue = clipvalue
    optimizer.inner_optimizer.weight_decay = 0.5
    before = table.numpy()
    optimizer.apply([slices_of([1], np.random.default_rng(0))], [table])
    assert (table.numpy()[2] != before[2]).all()


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (MixesRows, "depends on other rows"),
        (MixesRowsInFloat32, "depends on other rows"),
        (StepsNoSmallTable, "cannot: ValueError"),
        (BuildsNoSmallTable, "cannot: ValueError"),
        (lambda: keras.optimizers.Adam(use_ema=True), "use_ema"),
        (lambda: keras.optimizers.Adam(gradient_accumulation_steps=2), "accumulation"),
    ],
)
def test_what_has_no_lazy_meaning_is_refused_before_anything_is_built(inner, match):
    optimizer = MaskedOptimizer(inner(), {"table": [1, 2]}, lazy=True)
    with pytest.raises(ValueError, match=match):
        optimizer.build([table_of()])
    assert not optimizer.built
    assert not optimizer.inner_optimizer.built


def test_an_optimizer_of_one_dtype_can_be_lazy():
    table, before = table_of(), table_of().numpy()
    optimizer = MaskedOptimizer(InFloat32(), {"table": range(3, 18)}, lazy=True)
    optimizer.apply([slices_of([4, 5, 5, 1], np.random.default_rng(0))], [table])
    assert np.flatnonzero((table.numpy() != before).any(axis=1)).tolist() == [4, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.1, clipnorm=0.5),
        lambda: InFloat32(clipnorm=0.5),
        pytest.param(
            lambda: keras.optimizers.Muon(0.1, exclude_embeddings=False, clipnorm=0.5),
            marks=needs_muon(),
        ),
    ],
    ids=["Adam", "InFloat32", "Muon"],
)
def test_slices_of_all_rows_are_clipped_as_stock_optimizers_clip_them(make):
    """By the norm of slices that may repeat a row, which is not that of their sum."""
    slices = slices_of([4, 5, 5], np.random.default_rng(0))
    tables, optimizers = (
        (table_of(), table_of()),
        (MaskedOptimizer(make(), {"table": slice(None)}), make()),
    )
    for table, optimizer in zip(tables, optimizers, strict=True):
        optimizer.apply([slices], [table])
    assert_same_bits(*tables, "the table")


def test_rows_along_another_axis_are_refused():
    kernel = keras.Variable(np.ones((3, 8)), name="kernel")
    with pytest.raises(ValueError, match="another axis"):
        MaskedOptimizer("adam", {AlongAxis("kernel", -1): [1]}, lazy=True).build([kernel])


def model_of(optimizer, base=MaskedModel, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    model = base(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs))))
    model.compile(optimizer(words), loss="mse", **options)
    return model, words


X = np.random.default_rng(1).integers(0, 12, (24, 3))
Y = np.ones((24, 1))


def lazily(words):
    return MaskedOptimizer(keras.optimizers.Adam(0.1), {words: range(4, NUM_ROWS)}, lazy=True)


@pytest.mark.parametrize("base", [keras.Model, MaskedModel])
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}, {}])
def test_rows_that_no_batch_looks_up_keep_their_bits(base, options):
    model, words = model_of(lazily, base, **{"jit_compile": False, **options})
    before = words.get_weights()[0]
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == sorted({*X.ravel()} & {*range(4, NUM_ROWS)})


@pytest.mark.parametrize("options", [{}, {"jit_compile": "auto"}])
def test_keras_does_not_choose_xla_for_a_lazy_model(options, monkeypatch):
    gpu = tf.config.PhysicalDevice(name="/physical_device:GPU:0", device_type="GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [gpu])
    stock, _ = model_of(lambda words: "adam", keras.Model)
    assert stock.jit_compile
    model, _ = model_of(lazily, **options)
    assert not model.jit_compile
    assert model.get_compile_config()["jit_compile"] is False
    model, _ = model_of(lazily, jit_compile=True)
    with pytest.raises(ValueError, match="jit_compile=False"):
        model.fit(X, Y, verbose=0)


@pytest.mark.filterwarnings("ignore:Rows come with their state")
def test_a_lazy_model_goes_on_where_it_was_saved(tmp_path):
    model, _ = model_of(lazily)
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    weights, _ = model_of(
        lambda words: MaskedOptimizer(keras.optimizers.Adam(0.1), {words: [1]}, lazy=True)
    )
    weights.optimizer.build(weights.trainable_variables)
    weights.load_weights(tmp_path / "model.weights.h5")
    assert loaded.optimizer.lazy is True
    for each in (model, loaded, weights):
        each.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        assert_same_bits(each.get_weights()[0], model.get_weights()[0], "the table")


def test_rows_change_and_keep_the_state_that_they_had():
    model, words = model_of(lazily)
    stays, _ = model_of(lazily)
    for each in (model, stays):
        each.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    model.set_trainable_rows({words: range(2, 9)})
    inner = [each.optimizer.inner_optimizer.variables for each in (model, stays)]
    for after, before in zip(*inner, strict=True):
        if "words" in after.path:
            assert_same_bits(after.numpy()[2:], before.numpy()[:5], after.path)
            assert not after.numpy()[:2].any()
    before = words.get_weights()[0]
    model.fit(X, Y, batch_size=4, verbose=0)
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == list(range(2, 9))


def test_a_row_moves_by_its_share_of_a_lazy_step():
    tables, random = (table_of(), table_of()), np.random.default_rng(0)
    slow, whole = (
        MaskedOptimizer(keras.optimizers.Adam(0.1), {"table": range(2, 9)}, None, rates, lazy=True)
        for rates in ({"table": {0.5: [3, 5]}}, None)
    )
    before, slices = tables[0].numpy(), slices_of([3, 4, 4, 15], random)
    slow.apply([slices], [tables[0]])
    whole.apply([slices], [tables[1]])
    step, full = tables[0].numpy() - before, tables[1].numpy() - before
    assert_same_bits(tables[0].numpy()[4], tables[1].numpy()[4], "a row that has the whole rate")
    # A difference of float32 numbers of about 1.
    np.testing.assert_allclose(step[3], full[3] / 2, atol=1e-6)
    assert not np.delete(step, [3, 4], axis=0).any()


def test_replicas_step_the_rows_that_any_of_them_looks_up():
    one, words = model_of(lazily)
    with mirrored_strategy().scope():
        two, mirrored = model_of(lazily)
    for model in (one, two):
        model.fit(X, Y, batch_size=8, shuffle=False, epochs=2, verbose=0)
    # Replicas add their halves of a sum of gradients.
    np.testing.assert_allclose(
        words.get_weights()[0], mirrored.get_weights()[0], rtol=1e-4, atol=1e-5
    )
    values = mirrored.embeddings.value.values
    assert_same_bits(values[0], values[1], "the table on two devices")


class AllRowsThen(keras.callbacks.Callback):
    """Lets some rows train, then all, then some again."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def on_epoch_begin(self, epoch, logs=None):
        rows = slice(None) if epoch == 1 else range(4, 9)
        self.model.optimizer.set_trainable_rows({self.words: rows})


@pytest.mark.parametrize("name", ["adam", "sgd", "ftrl"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_come_and_go(name, jit_compile):
    model, words = model_of(lambda words: MaskedOptimizer(name, {words: [4]}))
    model.compile(model.optimizer, loss="mse", jit_compile=jit_compile)
    tables = []
    for epochs in (0, 1, 2):
        if epochs < 2:
            model.fit(
                X,
                Y,
                epochs=epochs + 1,
                initial_epoch=epochs,
                verbose=0,
                callbacks=[AllRowsThen(words)],
            )
        else:
            model.fit(X, Y, epochs=3, initial_epoch=2, verbose=0, callbacks=[AllRowsThen(words)])
        tables.append(words.get_weights()[0])
    some_to_all = (tables[1] != tables[0]).any(axis=1)
    all_to_some = (tables[2] != tables[1]).any(axis=1)
    assert some_to_all[sorted({*X.ravel()})].all()
    assert np.flatnonzero(all_to_some).tolist() == list(range(4, 9))


@pytest.mark.parametrize(("name", "lazy"), [("adam", True), ("adagrad", False)])
def test_each_of_two_tables_is_stepped_with_its_own_state(name, lazy):
    """As by an optimizer of its own. Their batches look up other rows, at other places."""
    rows, looked_up = [range(3, 18), range(1, 9)], [[17, 4, 4, 9], [2, 7]]
    together, alone = [[table_of(name=each) for each in ("one", "other")] for _ in range(2)]
    given = [{table.path: ids} for table, ids in zip(together, rows, strict=True)]
    optimizer = MaskedOptimizer(name, given[0] | given[1], lazy=lazy)
    of_each = [MaskedOptimizer(name, each, lazy=lazy) for each in given]
    random = np.random.default_rng(0)
    for _ in range(3):
        slices = [slices_of(ids, random) for ids in looked_up]
        optimizer.apply(slices, together)
        for single, each, table in zip(of_each, slices, alone, strict=True):
            single.apply([each], [table])
    for one, other in zip(together, alone, strict=True):
        assert_same_bits(one, other, one.path)


@pytest.mark.parametrize("cls", some_optimizer_classes())
def test_all_rows_train_as_in_a_stock_model(cls):
    masked, words = model_of(lambda words: MaskedOptimizer(cls(), {words: slice(None)}))
    stock, table = model_of(lambda words: cls(), keras.Model)
    for model in (masked, stock):
        model.optimizer.build(model.trainable_variables)
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert_same_bits(words.get_weights()[0], table.get_weights()[0], "the table")


class KeepsOtherStateForMany(keras.optimizers.SGD):
    """Keeps state of other shapes for a table of ten rows or more."""

    def __init__(self, of_few, of_many):
        super().__init__(0.1)
        self.shapes_of = lambda num_rows: of_many if num_rows >= 10 else of_few(num_rows)

    def build(self, variables):
        super().build(variables)
        shapes = [shape for each in variables for shape in self.shapes_of(each.shape[0])]
        self.counts = [self.add_variable(shape, name="count") for shape in shapes]


@pytest.mark.parametrize(
    ("of_few", "of_many"),
    [
        (lambda n: [(n,)], [(1,)]),
        (lambda n: [(1,)], [(1,), (1,)]),
        (lambda n: [(1,), (1,)], [(1,)]),
    ],
    ids=["another shape", "more", "less"],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_state_that_is_chosen_by_size_is_not_taken_for_that_of_rows(lazy, of_few, of_many):
    table, random = table_of(), np.random.default_rng(0)
    inner = KeepsOtherStateForMany(of_few, of_many)
    optimizer = MaskedOptimizer(inner, {"table": range(2, 18)}, lazy=lazy)
    if lazy:
        with pytest.raises(ValueError, match="lazy"):
            optimizer.build([table])
        return
    before = table.numpy()
    optimizer.apply([slices_of([3, 3, 4], random)], [table])
    moved = (table.numpy() != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [3, 4]


@pytest.mark.parametrize("lazy", [False, True])
def test_steps_with_and_without_a_table_are_made_in_one_graph(lazy):
    slices = tf.IndexedSlices(tf.ones((3, WIDTH)), tf.constant([1, 5, 0]), tf.constant([6, WIDTH]))

    def table_after(run):
        table, other = table_of(np.ones((6, WIDTH))), table_of(np.ones((1, WIDTH)), "other")
        optimizer = MaskedOptimizer("sgd", {"table": [1, 2, 5]}, lazy=lazy)
        optimizer.build([table, other])

        def steps():
            optimizer.apply([tf.ones((1, WIDTH))], [other])
            optimizer.apply([slices], [table])
            optimizer.apply([None, tf.ones((1, WIDTH))], [table, other])

        run(steps)()
        return table.numpy()

    table = table_after(tf.function(autograph=False))
    assert np.flatnonzero((table != 1).any(axis=1)).tolist() == [1, 5]
    assert_same_bits(table, table_after(lambda steps: steps), "the table")
