"""llama.cpp's own server, by xllamacpp: in this process, or in a process of its own that prints its URL.

    python -m sideplug.bench.rivals.llama_server GGUF SLOTS THREADS

Test: sideplug bench --part decode --quick
"""

from __future__ import annotations

import argparse
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTEXT = 1024  # tokens of a slot, for a server of its own


def start(gguf: Path, slots: int, context: int, threads: int) -> Any:
    """Return a running server of this GGUF file, with so many slots of so many tokens each."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel, params.n_ctx, params.port = slots, context * slots, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def completion(url: str, ids: list[int], tokens: int, **settings: Any) -> Iterator[str]:
    """Yield the text of each token as the server sends it. Nothing is cached between prompts."""
    body = {"prompt": ids, "n_predict": tokens, "cache_prompt": False, "stream": True, **settings}
    request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=600) as reply:
        for line in reply:
            if line.startswith(b"data:") and (event := json.loads(line[5:])).get("tokens"):
                yield event["content"]


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("slots", type=int)
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    server = start(options.gguf, options.slots, CONTEXT, options.threads)
    print(json.dumps({"url": server.listening_address}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
