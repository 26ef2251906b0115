"""`MaskedModel` and `MaskedTrainStep`: a `train_step` that masks gradients."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from typing_extensions import override

from maskedgrad.distribute.steps import MultiWorkerSteps
from maskedgrad.masking.of_model import masked_optimizer_in, masked_outermost
from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.reports.counting import print_summary
from maskedgrad.rows import RowLearningRates, TrainableRows

__all__ = ["MaskedModel", "MaskedTrainStep"]

WITHOUT_OPTIMIZER = (
    " A file without an optimizer, as Keras writes it after `model.save('model.h5')`, is loaded by "
    "`compile=False`."
)


def _completed_like(method: Callable[..., Any]) -> Callable[[Any], Any]:
    """Gives a function that hands on what it is given the signature of `method`.

    A prompt that completes asks `inspect.signature`. Arguments that the
    function names itself take the place of those of `method`, or come last.
    """

    def with_signature(function: Any) -> Any:
        of_method, own = inspect.signature(method), inspect.signature(function).parameters
        named = {
            name: parameter
            for name, parameter in own.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        parameters = {**of_method.parameters, **named}
        function.__signature__ = of_method.replace(parameters=list(parameters.values()))
        return function

    return with_signature


class MaskedTrainStep(MultiWorkerSteps):
    """Gives any `keras.Model` class a `train_step` that masks gradients.

    Put it first among the bases. Equivalent to the `train_step` of the class
    after it, which is that of Keras or its own: the optimizer, a
    `MaskedOptimizer`, cuts each table's gradient to its trainable rows.

    Example:

    >>> class MaskedSequential(MaskedTrainStep, keras.Sequential):
    ...     pass
    >>> model = MaskedSequential([words := keras.layers.Embedding(5, 2)])
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> logs = model.train_on_batch(np.array([[0, 1]]), np.ones((1, 2, 2)))
    """

    optimizer: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        # Else Keras's own `compile` comes first, and takes an optimizer that masks nothing.
        if keras.Model in order[: order.index(MaskedTrainStep)]:
            raise TypeError(
                "`MaskedTrainStep` must come before `keras.Model`, whose methods it replaces. "
                f"Received: {cls.__name__} with the bases "
                f"{[base.__name__ for base in cls.__bases__]}. Put `MaskedTrainStep` first."
            )

    if TYPE_CHECKING:
        # What Keras takes, by name, and whatever else the class that comes after takes.
        def compile(  # noqa: PLR0917 - the signature of Keras
            self,
            optimizer: Any = None,
            loss: Any = None,
            loss_weights: Any = None,
            metrics: Any = None,
            weighted_metrics: Any = None,
            run_eagerly: bool = False,
            steps_per_execution: int = 1,
            jit_compile: bool | str = "auto",
            auto_scale_loss: bool = True,
            *args: Any,
            trainable_rows: TrainableRows | None = None,
            row_learning_rates: RowLearningRates | None = None,
            **kwargs: Any,
        ) -> None:
            """`keras.Model.compile`, with `trainable_rows` and `row_learning_rates`."""

    else:

        @_completed_like(keras.Model.compile)
        def compile(
            self, optimizer=None, *args, trainable_rows=None, row_learning_rates=None, **kwargs
        ):
            """`keras.Model.compile`, with two more arguments.

            A `LossScaleOptimizer` around a `MaskedOptimizer` is moved inside of it, so
            that it sees what trains and nothing else; also the one that Keras adds by
            itself under `mixed_float16`.

            Without any argument nothing is compiled: a task of `keras_hub` calls it
            so when it is made, before anybody can say which rows train.

            Args:
                optimizer: a `MaskedOptimizer`, a loss scaler around one, or, if
                    `trainable_rows` is given, the optimizer to wrap.
                trainable_rows: a mapping from target to rows, as
                    `MaskedOptimizer` takes it.
                row_learning_rates: a mapping from target to multipliers, as
                    `MaskedOptimizer` takes it.
                *args: as for `keras.Model.compile`.
                **kwargs: as for `keras.Model.compile`.

            Raises:
                ValueError: neither `optimizer` nor `trainable_rows` says which
                    rows train, or both do; or another optimizer is around the
                    `MaskedOptimizer`.
            """
            rows = trainable_rows, row_learning_rates
            is_empty = not args and not kwargs and all(each is None for each in rows)
            if optimizer is None and is_empty:
                return
            optimizer = masked_outermost(_with_rows(optimizer, *rows))
            if self.built:
                optimizer.prepare(self.trainable_variables)
            # By itself Keras chooses XLA where there is a GPU, and saves what it chose.
            if optimizer.lazy and kwargs.get("jit_compile", [*args, *["auto"] * 7][6]) == "auto":
                args, kwargs = _with_false("jit_compile", 6, args, kwargs)
            if isinstance(optimizer.inner_optimizer, keras.optimizers.LossScaleOptimizer):
                # Else Keras adds a second one under `mixed_float16`.
                args, kwargs = _with_false("auto_scale_loss", 7, args, kwargs)
            super().compile(optimizer, *args, **kwargs)
            if self.optimizer is not optimizer:  # Keras has added a loss scaler
                self.optimizer = masked_outermost(self.optimizer)

    def set_trainable_rows(self, trainable_rows: TrainableRows) -> None:
        """Changes which rows train from the next step on.

        Equivalent to `model.optimizer.set_trainable_rows(trainable_rows)`; see
        `MaskedOptimizer.set_trainable_rows`.
        """
        if masked_optimizer_in(getattr(self, "optimizer", None)) is None:
            raise ValueError(
                "A model must be compiled before other rows are chosen. Received: the model "
                f"{self.name!r}, which is not. Call `model.compile(...)` first."
            )
        self.optimizer.set_trainable_rows(trainable_rows)

    @override
    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def summary(  # noqa: PLR0917 - the signature of Keras
        self,
        line_length: int | None = None,
        positions: Sequence[float] | None = None,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Sequence[str] | None = None,
    ) -> None:
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

    # As in `MultiWorkerSteps`, type checkers see those of the class that comes after.
    if not TYPE_CHECKING:

        @_completed_like(keras.Model.fit)
        def fit(self, *args, **kwargs):
            """`keras.Model.fit`. Refuses callbacks that do nothing for a masked table."""
            # The class after `MultiWorkerSteps`, whose own `fit` takes any arguments.
            _check_callbacks(super(MultiWorkerSteps, self).fit, args, kwargs)
            return super().fit(*args, **kwargs)

        @_completed_like(keras.Model.evaluate)
        def evaluate(self, *args, **kwargs):
            """`keras.Model.evaluate`. Refuses callbacks that do nothing for a masked table."""
            _check_callbacks(super().evaluate, args, kwargs)
            return super().evaluate(*args, **kwargs)

        @_completed_like(keras.Model.predict)
        def predict(self, *args, **kwargs):
            """`keras.Model.predict`. Refuses callbacks that do nothing for a masked table."""
            _check_callbacks(super().predict, args, kwargs)
            return super().predict(*args, **kwargs)

    @override
    def train_step(self, data: Any) -> dict[str, Any]:
        """Makes one step of training, for `fit` and `train_on_batch`.

        Args:
            data: a batch, as `keras.Model.train_step` takes it.

        Returns:
            The values of the metrics, by name.
        """
        # Before the model is called, since only lookups that are traced after it read sparsely.
        if self.built and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().train_step(data)

    @override
    def make_train_function(self, force: bool = False) -> None:
        if not isinstance(self.optimizer, (MaskedOptimizer, type(None))):
            raise ValueError(
                "The optimizer of a masked model must be a `MaskedOptimizer`, or every row would "
                f"train. Received: {self.optimizer!r}, which was assigned to `optimizer` of the "
                f"model {self.name!r}. Give optimizers to `compile`."
            )
        # The function renews itself if it was traced for another number of rows than train now.
        made = self.train_function
        super().make_train_function(force=force)
        if self.train_function is not made:
            self.train_function = self._renewed_for_other_lengths(self.train_function)

    def _renewed_for_other_lengths(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        traced_for: tuple[int | None, ...] = ()

        def train_function(iterator: Any) -> Any:
            nonlocal traced_for
            lengths = self.optimizer.fixed_lengths
            if traced_for and traced_for != lengths:
                self.make_train_function(force=True)
                return self.train_function(iterator)
            logs = function(iterator)
            traced_for = lengths or self.optimizer.fixed_lengths  # the first call builds it
            return logs

        return train_function


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

    if TYPE_CHECKING:
        # What Keras takes and nothing else, which is less than the mixin takes. Written out, since
        # Keras itself has no types.
        @override
        def compile(  # type: ignore[override]
            self,
            optimizer: Any = None,
            loss: Any = None,
            loss_weights: Any = None,
            metrics: Any = None,
            weighted_metrics: Any = None,
            run_eagerly: bool = False,
            steps_per_execution: int = 1,
            jit_compile: bool | str = "auto",
            auto_scale_loss: bool = True,
            *,
            trainable_rows: TrainableRows | None = None,
            row_learning_rates: RowLearningRates | None = None,
        ) -> None:
            """`keras.Model.compile`, with `trainable_rows` and `row_learning_rates`."""

        @override
        def fit(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            epochs: int = 1,
            verbose: int | str = "auto",
            callbacks: Any = None,
            validation_split: float = 0.0,
            validation_data: Any = None,
            shuffle: bool = True,
            class_weight: Mapping[int, float] | None = None,
            sample_weight: Any = None,
            initial_epoch: int = 0,
            steps_per_epoch: int | None = None,
            validation_steps: int | None = None,
            validation_batch_size: int | None = None,
            validation_freq: int = 1,
        ) -> keras.callbacks.History:
            """`keras.Model.fit`."""

        @override
        def evaluate(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            verbose: int | str = "auto",
            sample_weight: Any = None,
            steps: int | None = None,
            callbacks: Any = None,
            return_dict: bool = False,
            **kwargs: Any,
        ) -> Any:
            """`keras.Model.evaluate`."""

        @override
        def predict(
            self,
            x: Any,
            batch_size: int | None = None,
            verbose: int | str = "auto",
            steps: int | None = None,
            callbacks: Any = None,
        ) -> Any:
            """`keras.Model.predict`."""

    def __init__(self, *args: Any, **kwargs: Any):
        if _are_functional(args, kwargs):
            # Keras would put its functional class among the bases of this
            # class itself, and no subclass with a `call` could be made after.
            # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/models/model.py#L1135
            if type(self) is MaskedModel:
                self.__class__ = MaskedFunctional
            if not issubclass(type(self), _functional_class()):
                type(self).__bases__ += (_functional_class(),)
        super().__init__(*args, **kwargs)


@keras.saving.register_keras_serializable(package="maskedgrad")
class MaskedFunctional(MaskedModel):
    """What `MaskedModel(inputs, outputs)` makes, as `keras.Model` makes a functional model."""


def _with_false(
    name: str, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of which the one that has this name, and this place, is False."""
    if len(args) > place:
        return (*args[:place], False, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: False}


def _with_rows(
    optimizer: Any,
    trainable_rows: TrainableRows | None,
    row_learning_rates: RowLearningRates | None,
) -> Any:
    """The optimizer for `compile`: a `MaskedOptimizer`, or one that wraps it."""
    if trainable_rows is not None:
        return MaskedOptimizer(
            optimizer or "rmsprop", trainable_rows, row_learning_rates=row_learning_rates
        )
    if row_learning_rates is not None:
        raise ValueError(
            "`row_learning_rates` must come with `trainable_rows`, or be given to the "
            f"`MaskedOptimizer`. Received: row_learning_rates={row_learning_rates!r}"
        )
    if masked_optimizer_in(optimizer) is None:
        raise ValueError(
            "The optimizer masks nothing, so every row would train. Received: "
            f"optimizer={optimizer!r}. Say which rows train, by "
            "`compile(..., trainable_rows={layer: ids})` or by "
            "`MaskedOptimizer(optimizer, trainable_rows={layer: ids})`; "
            "a `MultiOptimizer` goes inside of the `MaskedOptimizer`."
            + (WITHOUT_OPTIMIZER if optimizer is None else "")
        )
    return optimizer


def _check_callbacks(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        # The `fit` of a task of `keras_hub` takes callbacks among other keywords.
        named = inspect.signature(method).bind(*args, **kwargs).arguments
    except TypeError:
        return  # `method` says the same, and its name
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
    # Keras 3.12.4 refuses a model whose inputs are its outputs.
    outputs = keras.layers.Identity(name="outputs")(inputs)
    return type(keras.Model(inputs, outputs, name="functional"))
