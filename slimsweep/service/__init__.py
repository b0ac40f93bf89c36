"""The web application over a folder of runs: `slimsweep serve`. It knows no Ray: `slimsweep.cluster.serving` deploys it."""
