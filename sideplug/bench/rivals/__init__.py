"""The rivals' code: llama.cpp's server, transformers, PEFT's training and batches. Each has its own process."""
