"""The section of the configuration that says where trackers log to."""

import re
from typing import Literal

from pydantic import Field, field_validator

from slimsweep.config.fields import Section

TrackerName = Literal["mlflow", "wandb", "tensorboard"]


class Tracking(Section):
    """Where `trackers` log to. What is null comes from each tracker's own environment variables."""

    project: str | None = Field(None, min_length=1)
    """MLflow's experiment and W&B's project; null takes MLFLOW_EXPERIMENT_NAME and WANDB_PROJECT, or slimsweep."""
    mlflow_uri: str | None = Field(None, min_length=1)
    """MLflow's server, such as http://mlflow:5000; null takes MLFLOW_TRACKING_URI, or what MLflow does without it. Passwords
    belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""
    wandb_entity: str | None = Field(None, min_length=1)
    """W&B's team or user; null takes WANDB_ENTITY, or the user's own."""
    tensorboard: str | None = Field(None, min_length=1)
    """Local folder for TensorBoard, with a folder per run in it; null is tensorboard in the run's own folder."""
    models: bool = True
    """Upload the model of each point to MLflow and W&B."""
    wait_seconds: float = Field(60.0, ge=0, allow_inf_nan=False)
    """Longest wait at the end of a run for trackers that still take what it has."""

    @field_validator("mlflow_uri")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and re.search(r"//[^/]*@", value):
            raise ValueError(
                "must hold no user or password, as it is written to the run's folder: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or give the whole address in MLFLOW_TRACKING_URI"
            )
        return value
