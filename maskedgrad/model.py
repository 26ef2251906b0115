"""`MaskedModel` and `MaskedTrainStep`: a `train_step` that masks gradients."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from maskedgrad.counting import print_summary
from maskedgrad.distribute.steps import MultiWorkerSteps, returned
from maskedgrad.masking.optimizer import MaskedOptimizer, masked_optimizer_in


class MaskedTrainStep(MultiWorkerSteps):
    """Gives any `keras.Model` class a `train_step` that masks gradients.

    Put it first among the bases. Equivalent to the `train_step` of Keras, but
    for one thing: each table's gradient is cut to its trainable rows before
    anything looks at it, so that a `LossScaleOptimizer` around the
    `MaskedOptimizer` sees nothing of frozen rows either.

    Example:

    >>> class MaskedSequential(MaskedTrainStep, keras.Sequential):
    ...     pass
    >>> model = MaskedSequential([words := keras.layers.Embedding(5, 2)])
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> logs = model.train_on_batch(np.array([[0, 1]]), np.ones((1, 2, 2)))
    """

    _num_row_changes = 0

    def compile(self, optimizer=None, *args, trainable_rows=None, **kwargs):
        """`keras.Model.compile`, with one more argument.

        Without any argument nothing is compiled. A task of `keras_hub` calls
        it so when it is made, and every row would train.

        Args:
            optimizer: a `MaskedOptimizer`, an optimizer around one, or, if
                `trainable_rows` is given, the optimizer to wrap.
            trainable_rows: a mapping from target to rows, as
                `MaskedOptimizer` takes it.
            *args: as for `keras.Model.compile`.
            **kwargs: as for `keras.Model.compile`.

        Raises:
            ValueError: neither `optimizer` nor `trainable_rows` says which
                rows train, or both do.
        """
        if optimizer is None and trainable_rows is None and not args and not kwargs:
            return
        if trainable_rows is not None:
            optimizer = MaskedOptimizer(optimizer or "rmsprop", trainable_rows)
        elif masked_optimizer_in(optimizer) is None:
            raise ValueError(
                "The optimizer masks nothing, so every row would train. Received: "
                f"optimizer={optimizer!r}. Say which rows train, by "
                "`compile(..., trainable_rows={layer: ids})` or by "
                "`MaskedOptimizer(optimizer, trainable_rows={layer: ids})`; "
                "a `MultiOptimizer` goes inside of the `MaskedOptimizer`."
            )
        if self.built:
            masked_optimizer_in(optimizer).prepare(self.trainable_variables)
        super().compile(optimizer, *args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that is being loaded. Called by Keras."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def summary(  # noqa: PLR0917 - the signature of Keras
        self,
        line_length=None,
        positions=None,
        print_fn=None,
        expand_nested=False,
        show_trainable=False,
        layer_range=None,
    ):
        """`keras.Model.summary`, which counts trainable rows. See `maskedgrad.summary`."""
        print_summary(
            self,
            super().summary,
            print_fn=print_fn,
            line_length=line_length,
            positions=positions,
            expand_nested=expand_nested,
            show_trainable=show_trainable,
            layer_range=layer_range,
        )

    def fit(self, *args, **kwargs):
        """`keras.Model.fit`. Refuses callbacks that do nothing for a masked table."""
        # Whose signature names the arguments; that of `MultiWorkerSteps` takes any.
        _check_callbacks(super(MultiWorkerSteps, self).fit, args, kwargs)
        return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`. Refuses callbacks that do nothing for a masked table."""
        _check_callbacks(super().evaluate, args, kwargs)
        return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """`keras.Model.predict`. Refuses callbacks that do nothing for a masked table."""
        _check_callbacks(super().predict, args, kwargs)
        return super().predict(*args, **kwargs)

    def train_step(self, data):
        """One step of training. Called by `fit` and `train_on_batch`.

        Args:
            data: a batch, as `keras.Model.train_step` takes it.

        Returns:
            The values of the metrics, by name.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.built:
            # Before the tables are read, since what is read after is read sparsely.
            self._build_optimizer()
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        self._build_optimizer()
        masked_optimizer = masked_optimizer_in(self.optimizer)
        self.optimizer.apply(*masked_optimizer.select_trainable(gradients, variables))
        self._track_loss(loss, x)
        return returned(self.compute_metrics(x, y, y_pred, sample_weight=sample_weight))

    def make_train_function(self, force=False):
        """Called by Keras. A function that was traced for other rows is made anew."""
        changes = masked_optimizer_in(self.optimizer).num_row_changes
        stale = changes > 1 and changes != self._num_row_changes
        self._num_row_changes = changes
        return super().make_train_function(force=force or stale)

    def _build_optimizer(self) -> None:
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        masked_optimizer_in(self.optimizer).build(self.trainable_variables)

    def _track_loss(self, loss, x) -> None:
        # Keras divides the loss by the number of replicas; what it shows is the whole.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch_size = tf.shape(next(leaf for leaf in tf.nest.flatten(x) if leaf is not None))[0]
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * tf.cast(replicas, loss.dtype), sample_weight=batch_size)


class MaskedModel(MaskedTrainStep, keras.Model):
    """A `keras.Model` whose `train_step` masks gradients.

    Used as `keras.Model` is: `MaskedModel(inputs, outputs)`, or a subclass of
    it with a `call`. See `MaskedTrainStep`.

    Example:

    >>> inputs = keras.Input((3,), dtype="int32")
    >>> words = keras.layers.Embedding(5, 2)
    >>> model = MaskedModel(inputs, words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    """

    def __init__(self, *args, **kwargs):
        if _are_functional(args, kwargs):
            # Keras would put its functional class among the bases of this
            # class itself, and no subclass with a `call` could be made after.
            if type(self) is MaskedModel:
                self.__class__ = MaskedFunctional
            if not issubclass(type(self), _functional_class()):
                type(self).__bases__ += (_functional_class(),)
        super().__init__(*args, **kwargs)


@keras.saving.register_keras_serializable(package="maskedgrad")
class MaskedFunctional(MaskedModel):
    """What `MaskedModel(inputs, outputs)` makes, as `keras.Model` makes a functional model."""


def _check_callbacks(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    # The `fit` of a task of `keras_hub` takes callbacks among other keywords.
    named = inspect.signature(method).bind(*args, **kwargs).arguments
    callbacks = kwargs.get("callbacks", named.get("callbacks"))
    for callback in tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)):
        if type(callback) is keras.callbacks.SwapEMAWeights:
            raise ValueError(
                "`keras.callbacks.SwapEMAWeights` swaps the variables that the optimizer holds, "
                "and a masked table is not among them. Received: that callback. Use "
                "`maskedgrad.callbacks.SwapEMAWeights`, which swaps the table's rows too."
            )


def _are_functional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) == 2 or ((len(args) == 1 or "inputs" in kwargs) and "outputs" in kwargs)


@functools.cache
def _functional_class() -> type[keras.Model]:
    inputs = keras.Input((), name="inputs")
    return type(keras.Model(inputs, inputs, name="functional"))
