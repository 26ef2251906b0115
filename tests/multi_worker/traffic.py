"""What workers send each other in a step, read off the graph that is traced for it."""

import keras
import numpy as np
import tensorflow as tf

from maskedgrad import MaskedModel, pretrained_embedding
from maskedgrad.cli.recipes import StockModel

WIDTH, IDS, BATCH, LENGTH = 4, [3, 7, 11], 8, 5


def collective_shapes(strategy, sizes=(10_000, 1_000_000)):
    """For each way to train and number of rows: what each collective of a step takes in.

    Returns:
        A dict from the name of the way, then from the number of rows, to a list
        of `[kind, dtype, shape]`, with -1 for a length that is known in the step only.
    """
    return {
        way: {str(num_rows): _shapes(_step(strategy, way, num_rows)) for num_rows in sizes}
        for way in ("maskedgrad", "table trainable", "table trainable, dense gradient")
    }


def _step(strategy, way, num_rows):
    with strategy.scope():
        # What a regularizer adds to the gradient of a table is dense.
        regularizer = "l2" if way.endswith("dense gradient") else None
        words = pretrained_embedding(
            np.zeros((num_rows, WIDTH), "float32"), name="words", embeddings_regularizer=regularizer
        )
        inputs = keras.Input((LENGTH,), dtype="int32")
        pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
        outputs = keras.layers.Dense(1)(pooled)
        if way == "maskedgrad":
            model = MaskedModel(inputs, outputs)
            model.compile("adam", loss="mse", trainable_rows={words: IDS})
        else:
            model = StockModel(inputs, outputs)
            model.compile("adam", loss="mse")
        model.optimizer.build(model.trainable_variables)
    batch = np.zeros((BATCH // 2, LENGTH), "int32"), np.zeros((BATCH // 2, 1), "float32")

    @tf.function
    def step():
        strategy.run(model.train_step, args=(batch,))

    return step.get_concrete_function().graph


def _shapes(graph):
    operations = list(graph.get_operations())
    for function in graph._functions.values() if hasattr(graph, "_functions") else []:
        operations += function.graph.get_operations()
    return [
        [operation.type, value.dtype.name, [-1 if n is None else n for n in value.shape]]
        for operation in operations
        if operation.type.startswith("Collective") and not operation.type.endswith("InitV2")
        for value in operation.inputs[:1]
    ]
