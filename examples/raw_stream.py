"""Hidden states of a frozen model as it writes: any layers, raw. Run `sideplug serve` first; see docs/STATES.md."""

import sys

import numpy as np

from sideplug.device import states

url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
with states.listen(url, layers=[0, 10, 20, 30]) as stream:
    print(f"{stream.model.name}: {stream.model.blocks} blocks, {stream.model.width} wide, tapped at {stream.layers}")
    for step in stream.generate("Name three rivers of Europe.", max_tokens=24):
        norms = np.linalg.norm(step.states, axis=1)
        print(f"{step.position:4} {step.text!r:16}", " ".join(f"{norm:8.1f}" for norm in norms))
