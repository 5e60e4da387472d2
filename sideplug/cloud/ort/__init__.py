"""A model on a CPU through ONNX Runtime: config → blueprint, weights → blocks, both → graph; slots hold the KV caches."""
