"""Latency of models on a device: how it is timed, and what a structure costs in milliseconds there."""
