"""A device's process: see the package."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from sideplug.contract.errors import SideplugError
from sideplug.terminal import say


def peak_mb() -> float:
    """Return this program's peak memory. getrusage's would be that of whoever started it, if that is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Answer requests until standard input ends."""
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = sys.stdout
    sys.stdout = sys.stderr  # whoever prints must not be taken for an answer
    device = importlib.import_module(f"sideplug.bench.devices.{kind}").make(**settings)

    def tell(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    tell("ready")
    for line in sys.stdin:
        request = json.loads(line)
        method = request.pop("do")
        if method == "cost":
            tell({"peak_rss_mb": round(peak_mb(), 1), "cpu_s": time.process_time()})
        else:
            tell(getattr(device, method)(**request))


if __name__ == "__main__":
    try:
        main()
    except SideplugError as error:
        say(f"sideplug bench: {sys.argv[1]}: {error}")
        sys.exit(error.exit_code)
