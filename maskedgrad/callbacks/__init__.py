"""Keras callbacks for training that masks rows."""

from maskedgrad.callbacks.backup import BackupAndRestore
from maskedgrad.callbacks.frozen_rows import FrozenRowsCheck
from maskedgrad.callbacks.swap_ema_weights import SwapEMAWeights
from maskedgrad.callbacks.trainable_rows import TrainableRowsMonitor
from maskedgrad.callbacks.unfreeze import UnfreezeSchedule

__all__ = [
    "BackupAndRestore",
    "FrozenRowsCheck",
    "SwapEMAWeights",
    "TrainableRowsMonitor",
    "UnfreezeSchedule",
]
