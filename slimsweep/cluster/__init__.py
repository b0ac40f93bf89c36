"""The Ray cluster and the jobs on it. No other part of slimsweep imports Ray."""

import os

GCS_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which Ray ends a process whose cluster's head is gone


def set_ray_defaults() -> None:
    """Set slimsweep's defaults for Ray's environment variables; variables that are set already keep their values.

    Ray reads them when it is imported or started, and so do the processes that it starts: call this before Ray is imported.
    """
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",  # Ray sends no usage data
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Ray notices the end of a training; its 2 s add up
        # Ray Train's default for its own processes. Ray lets processes be shared only where all variables are the same.
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent with verbose=0; the new one prints a banner
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Tune treats Ctrl+C as the sweep's end; run.py says how to go on
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # slimsweep writes rows and curves itself
        GCS_SECONDS: "90",  # its 60 s, and the time in which a driver ends by itself (`alive`)
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # tensors in huge pages: 5 % faster training steps on CPUs
    }.items():
        os.environ.setdefault(name, value)
