"""Training, evaluation and use of Video Mobile-Formers, as functions; `vmf` is their command."""

from vmf.training.checkpoint import Weights, load_weights, save_weights
from vmf.training.config import TrainConfig
from vmf.training.evaluate import EvalResult, evaluate
from vmf.training.interrupt import Stopped
from vmf.training.loop import TrainResult, train
from vmf.training.setup import resumed_config

__all__ = [
    "EvalResult",
    "Stopped",
    "TrainConfig",
    "TrainResult",
    "Weights",
    "evaluate",
    "load_weights",
    "resumed_config",
    "save_weights",
    "train",
]
