"""The version of maskedgrad, which setup.cfg reads too, and what it needs of TensorFlow."""

import re

__version__ = "0.1.0"

OLDEST_TENSORFLOW = (2, 18)


def check_tensorflow() -> None:
    """Raises an `ImportError` if TensorFlow is not there, or is too old.

    pip does not see to it: there are builds of TensorFlow under other names.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise _needs_tensorflow(f"a Python without it ({error})") from error
    if tuple(map(int, re.findall(r"\d+", tf.__version__)[:2])) < OLDEST_TENSORFLOW:
        raise _needs_tensorflow(f"TensorFlow {tf.__version__}")


def _needs_tensorflow(received: str) -> ImportError:
    return ImportError(
        f"maskedgrad needs TensorFlow {'.'.join(map(str, OLDEST_TENSORFLOW))} or newer. "
        f'Received: {received}. Install it: pip install "maskedgrad[tensorflow]", or a build of '
        "your own, such as tensorflow-cpu"
    )
