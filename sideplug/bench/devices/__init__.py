"""What runs on a person's device, a process of its own for each system: python -m sideplug.bench.devices KIND SETTINGS.

It reads a request a line (JSON) and answers each with a line. A kind is a module with `make(settings)`, which returns
the device: `reply(prompt, max_tokens, temperature, seed, top_p)` → a Reply (ours) as a dict, and, where the system can
tell, `losses(examples)` → the nats of each token of each reply.
Only what a kind needs is imported, so that a process's memory is the system's.
"""
