"""A rival's cloud: a model by transformers, with one person's LoRA or an exchange at every layer, over a WebSocket.

    python -m sideplug.bench.rivals.hf_cloud MODEL [--adapter DIR] [--per-layer RANK]

--per-layer has PrivateLoRA's traffic (arXiv 2311.14030): in each layer A·x (r numbers each for q, k and v) goes down,
the device multiplies with its M, and M·A·x comes up before the layer goes on; B·(M·A·x) is added. A and B are random
and M is zero: the text is the base's. It is the pattern of a trained one, not its quality.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from sideplug.bench.devices.hf import Transformers


class Exchange:
    """Hooks on q, k and v of every layer: what they add has been at the device and back, once a layer."""

    def __init__(self, lm: Any, rank: int) -> None:
        self.line: ServerConnection | None = None
        self._up: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for layer in lm.model.layers:
            attention = layer.self_attn
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            width = parts[0].in_features
            down = [torch.randn(rank, width, generator=generator) / width**0.5 for _ in parts]
            back = [torch.randn(part.out_features, rank, generator=generator) / rank**0.5 for part in parts]
            attention.register_forward_pre_hook(self._ask(down), with_kwargs=True)
            for name, part, b in zip("qkv", parts, back, strict=True):
                part.register_forward_hook(self._add(name, b))

    def _ask(self, down: list[torch.Tensor]) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            sent = np.stack([(x[0] @ a.T).numpy() for a in down]).astype(np.float16)  # (3, tokens, rank)
            assert self.line is not None
            self.line.send(sent.tobytes())
            message = self.line.recv()
            assert isinstance(message, bytes)
            came = np.frombuffer(message, np.float16).reshape(sent.shape).astype(np.float32)
            self._up = {name: torch.from_numpy(part) for name, part in zip("qkv", came, strict=True)}

        return hook

    def _add(self, name: str, back: torch.Tensor) -> Any:
        return lambda module, args, out: out + (self._up[name] @ back.T)[None]


def main() -> None:
    """Serve one device at a time until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--per-layer", type=int, default=0, metavar="RANK")
    options = parser.parse_args()
    model = Transformers(options.model, options.adapter)
    exchange = Exchange(model.lm, options.per_layer) if options.per_layer else None

    def talk(line: ServerConnection) -> None:
        if exchange:
            exchange.line = line
        with suppress(ConnectionClosed):
            for message in line:
                request = json.loads(message)
                if request.pop("do") == "losses":
                    line.send(json.dumps({"losses": model.losses(**request)}))
                else:
                    model.stream(**request, receive=lambda text: line.send(json.dumps({"text": text})))
                    line.send(json.dumps({"done": True}))

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(json.dumps({"url": f"ws://127.0.0.1:{server.socket.getsockname()[1]}"}), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
