"""Where the person's part lives. Torch-free, tokenizer-free. Imports only `sideplug.contract`."""
