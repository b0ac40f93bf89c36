"""Experiment trackers: MLflow, W&B, TensorBoard. One module per tracker, named as the configuration names it.

The driver alone talks to them, in a thread per tracker that reads the run's folder (`follow`): what a training records there
(`slimsweep.ledger.recorder`) is what trackers get. So workers neither wait for a tracker nor need its package or passwords, and
what a tracker could not take is sent later.
"""

from slimsweep.trackers.check import check_trackers
from slimsweep.trackers.follow import Tracking

__all__ = ["Tracking", "check_trackers"]
