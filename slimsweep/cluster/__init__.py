"""The Ray cluster and the jobs on it: the only room that knows Ray."""

import os


def set_ray_defaults() -> None:
    """Set in the environment what slimsweep wants of Ray; what a person has set stays.

    Ray reads these when it is imported or started, and so do the processes that it starts: call this before Ray is imported.
    """
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a training is noticed; Ray's 2 s add up in short runs
        "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old output is silent; the new one prints a banner
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would take Ctrl+C for the sweep's end; ours says how to go on
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our rows and curves are the record
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # workers' tensors in huge pages: a twentieth of a training step on CPUs
    }.items():
        os.environ.setdefault(name, value)
