"""Training, evaluation and use of Video Mobile-Formers, as functions; `vmf` is their command."""

from vmf.training.benchmark import BenchResult, bench
from vmf.training.checkpoint import Weights, load_weights, save_weights
from vmf.training.config import TrainConfig
from vmf.training.evaluation import EvalResult, evaluate
from vmf.training.exporting import Exported, export
from vmf.training.interrupt import Stopped
from vmf.training.loop import TrainResult, train
from vmf.training.prediction import Prediction, predict
from vmf.training.setup import resumed_config

__all__ = [
    "BenchResult",
    "EvalResult",
    "Exported",
    "Prediction",
    "Stopped",
    "TrainConfig",
    "TrainResult",
    "Weights",
    "bench",
    "evaluate",
    "export",
    "load_weights",
    "predict",
    "resumed_config",
    "save_weights",
    "train",
]
