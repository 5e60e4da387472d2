"""Robustness: a cloud that gets wrong bytes, wrong frames, and many devices and lines that misbehave.

test_robustness runs a seeded sample (slow, under three minutes). The whole runs as commands:

    python -m tests.robustness.fuzz      a million and a half messages, 7,000 sessions
    python -m tests.robustness.load      64 sessions for ten minutes
    python -m tests.robustness.hostile   one person beside nine hostile sessions, four minutes
"""
