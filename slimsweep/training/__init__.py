"""Training and evaluation of one model, data parallel where there is a process group; where results go is the caller's."""

from slimsweep.errors import OutOfTime, TrainingDiverged
from slimsweep.training.criterion import Criterion, Teacher
from slimsweep.training.dense_model import build_dense, check_model, start_of
from slimsweep.training.evaluate import Metrics, evaluate, evaluate_split
from slimsweep.training.loop import State, train
from slimsweep.training.recorder import MemoryRecorder, Recorder, Recorders, Tracker

__all__ = [
    "Criterion",
    "MemoryRecorder",
    "Metrics",
    "OutOfTime",
    "Recorder",
    "Recorders",
    "State",
    "Teacher",
    "Tracker",
    "TrainingDiverged",
    "build_dense",
    "check_model",
    "evaluate",
    "evaluate_split",
    "start_of",
    "train",
]
