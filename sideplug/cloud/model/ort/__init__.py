"""A model on a CPU through ONNX Runtime: its config is a blueprint, that becomes graphs, slots hold the KV caches."""

import os

# ONNX Runtime's wheels send usage data to their maker, from 1.31 on Linux too. A cloud that keeps nothing of anybody
# does not either; it has to be said before the library is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
