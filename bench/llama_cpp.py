"""llama.cpp's server in a process of its own, for bench/decode.py: llama_cpp.py GGUF SLOTS THREADS → its URL."""

from __future__ import annotations

import json
import sys
import threading

import xllamacpp


def main() -> None:
    gguf, slots, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel = slots
    params.n_ctx = 1024 * slots
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.port = 0
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
