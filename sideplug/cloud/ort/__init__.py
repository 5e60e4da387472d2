"""A model on a CPU through ONNX Runtime: its config is a blueprint, that becomes graphs, slots hold the KV caches."""
