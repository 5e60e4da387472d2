"""The fuzzer's command: what the wire's decoder, and a cloud behind a socket, make of bytes and frames that are wrong.

    python -m tests.robustness.fuzz                a minute of decoding in this process, two of sessions with a cloud
    python -m tests.robustness.fuzz --quick        seconds of both
    python -m tests.robustness.fuzz --frames 0 --cases 20000 --seed 7

The same seed gives the same inputs. It fails (exit code 1, one sentence) where a fault is found; the sequences are in
the results: bench/results/fuzz.json (with --quick only where --out says). Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sideplug.bench.meters import machine
from sideplug.terminal import say
from tests.robustness.fuzz_frames import fuzz_frames
from tests.robustness.fuzz_sessions import fuzz_sessions

RESULT = Path("bench/results/fuzz.json")


def main() -> None:
    """Run both, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_500_000, help="messages that are decoded")
    parser.add_argument("--cases", type=int, default=7_000, help="sessions that are played")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="100,000 messages, 600 sessions")
    parser.add_argument("--out", type=Path, help="the results' file")
    options = parser.parse_args()
    if options.quick:
        options.frames, options.cases = 100_000, 600
    out = options.out or (None if options.quick else RESULT)
    decoded, bugs = fuzz_frames(options.frames, options.seed)
    say(f"frames: {decoded['inputs']:,} messages, {decoded['outcomes']}")
    live, failures = fuzz_sessions(options.cases, options.seed)
    result = {"machine": machine(), "seed": options.seed, "decode": decoded, "live": live}
    text = json.dumps(result, indent=2, default=str) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    failures = [f"decode: {bug}" for bug in bugs] + failures
    if failures:
        print(f"{len(failures)} faults, the first: {failures[0][:400]}")
        sys.exit(1)
    print(
        f"{decoded['inputs']:,} messages decoded and {live['inputs']:,} sessions played: none crashed, hung, leaked or "
        f"changed another's text; errors {live['error_codes']}"
    )


if __name__ == "__main__":
    main()
