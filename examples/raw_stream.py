"""Print the norms of a frozen model's hidden states, token by token. Run `sideplug serve` first; see docs/STATES.md."""

import sys

import numpy as np

import sideplug

url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
with sideplug.listen(url, layers=[0, 10, 20, 30]) as listening:
    model = listening.model
    print(f"{model.name}: {model.blocks} blocks, {model.width} wide, tapped at {listening.layers}")
    for step in listening.generate("Name three rivers of Europe.", max_tokens=24):
        norms = np.linalg.norm(step.states, axis=1)
        print(f"{step.position:4} {step.text!r:16}", " ".join(f"{norm:8.1f}" for norm in norms))
