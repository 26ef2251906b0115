"""No numbers of a step cross to a GPU and back: what TensorFlow's registry of kernels says."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import kernels, op_def_registry

from maskedgrad import MaskedModel, MaskedOptimizer

NUM_ROWS, WIDTH, BATCH, LENGTH = 1000, 3, 4, 5
# What runs no kernel of its own on a device, or is placed with what it calls.
OF_THE_RUNTIME = {
    *("NoOp", "Placeholder", "Const", "PartitionedCall", "StatefulPartitionedCall"),
    *("If", "StatelessIf", "While", "StatelessWhile", "Assert"),
}


def traced_step(optimizer, rows, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH,), batch_size=BATCH, dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
    model = MaskedModel(inputs, keras.layers.Dense(1)(pooled))
    model.compile(MaskedOptimizer(optimizer, {words: rows}, **options), loss="mse")
    batch = np.ones((BATCH, LENGTH), "int32"), np.ones((BATCH, 1), "float32")
    model.train_on_batch(*batch)
    step = tf.function(model.train_step, autograph=False)
    return step.get_concrete_function(tuple(map(tf.constant, batch)))


def nodes_of(concrete) -> Iterator[node_def_pb2.NodeDef]:
    definition = concrete.graph.as_graph_def(add_shapes=True)
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def fits(kernel: kernel_def_pb2.KernelDef, node: node_def_pb2.NodeDef) -> bool:
    """Whether a kernel of the registry is for the types of a node."""
    return all(
        node.attr[constraint.name].type in constraint.allowed_values.list.type
        for constraint in kernel.constraint
        if node.attr[constraint.name].type != types_pb2.DT_INVALID
    )


def gpu_kernels(node: node_def_pb2.NodeDef) -> list[kernel_def_pb2.KernelDef]:
    registered = kernels.get_registered_kernels_for_op(node.op).kernel
    return [k for k in registered if k.device_type in {"GPU", "DEFAULT"} and fits(k, node)]


def shapes_of(node: node_def_pb2.NodeDef) -> list[tuple[int, ...] | None]:
    """The shapes of what a node computes, -1 for a size that is not known; `None` for no rank."""
    return [
        None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
        for shape in node.attr["_output_shapes"].list.shape
    ]


def results_in_host_memory(node: node_def_pb2.NodeDef) -> list[str]:
    """What a node computes on the host, whatever its kernel: more than shapes and scalars."""
    definition = op_def_registry.get(node.op)
    names = [result.name for result in definition.output_arg]
    found = []
    for kernel in gpu_kernels(node):
        found.append(
            [
                f"{node.op} {node.name} {name} {shape}"
                for name, shape in zip(names, shapes_of(node), strict=False)
                if name in kernel.host_memory_arg and (shape is None or not is_small(shape))
            ]
        )
    return min(found, key=len, default=[])


def is_small(shape: tuple[int, ...]) -> bool:
    return -1 not in shape and np.prod(shape) <= 8


has_gpu_kernels = any(
    kernel.device_type == "GPU"
    for kernel in kernels.get_registered_kernels_for_op("UnsortedSegmentSum").kernel
)


@pytest.mark.skipif(not has_gpu_kernels, reason="this TensorFlow was built without GPU kernels")
@pytest.mark.parametrize("rows", [range(5, 700), [1, 5, 7, 300], slice(None)])
@pytest.mark.parametrize(("name", "options"), [("adam", {}), ("adam", {"lazy": True}), ("sgd", {})])
def test_each_operation_of_a_step_has_a_gpu_kernel(name, options, rows):
    nodes = [n for n in nodes_of(traced_step(name, rows, **options)) if n.op not in OF_THE_RUNTIME]
    assert {node.op for node in nodes} >= {"ResourceGather"}
    assert sorted({node.op for node in nodes if not gpu_kernels(node)}) == []


@pytest.mark.skipif(not has_gpu_kernels, reason="this TensorFlow was built without GPU kernels")
@pytest.mark.parametrize("rows", [range(5, 700), [1, 5, 7, 300], slice(None)])
@pytest.mark.parametrize(("name", "options"), [("adam", {}), ("adam", {"lazy": True}), ("sgd", {})])
def test_nothing_but_scalars_and_shapes_is_computed_on_the_host(name, options, rows):
    step = traced_step(name, rows, **options)
    # But for the tokens, which Keras's lookup and its gradient leave in int32, on the host.
    nodes = [n for n in nodes_of(step) if n.op not in OF_THE_RUNTIME and "/words" not in n.name]
    assert [each for node in nodes for each in results_in_host_memory(node)] == []
