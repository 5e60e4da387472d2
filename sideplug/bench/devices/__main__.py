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
    """Of this program: getrusage's peak would be that of whoever started it, if that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = sys.stdout
    sys.stdout = sys.stderr  # whoever prints must not be taken for an answer
    device = importlib.import_module(f"sideplug.bench.devices.{kind}").make(**settings)
    tell: Any = lambda answer: print(json.dumps(answer), file=answers, flush=True)  # noqa: E731
    tell("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        what = asked.pop("do")
        if what == "cost":
            tell({"peak_rss_mb": round(peak_mb(), 1), "cpu_s": time.process_time()})
        else:
            tell(getattr(device, what)(**asked))


if __name__ == "__main__":
    try:
        main()
    except SideplugError as error:
        say(f"sideplug bench: {sys.argv[1]}: {error}")
        sys.exit(error.exit_code)
