"""What training tells at its end: one line, for the command and for the page. What the plugin says is in trial.py.

Test: pytest tests/training/test_report_of_training.py
"""

from __future__ import annotations

from pathlib import Path

from sideplug.training.pipeline import Made


def reached(made: Made) -> str:
    """Return what a new plugin is worth, each figure by its name."""
    figures = made.figures
    if all(figure.gain <= 0 for figure in figures.values()):
        losses = ", ".join(f"{name}: loss {figure.base:.3f}" for name, figure in figures.items())
        return f"nothing that helps ({losses}): the plugin leaves the base as it is"
    return ", ".join(f"{name}: {figure.line}" for name, figure in figures.items())


def line(made: Made, out: Path) -> str:
    """Return one line on what training reached."""
    text = reached(made)
    if made.gated:
        ours, others = made.gated["personal"], made.gated["general"]
        text += (
            f"; the gate opens for {ours['rate']:.0%} of your tokens and for {others['rate']:.1%} of general ones "
            f"(loss there {others['base']:.3f} → {others['gated']:.3f})"
        )
    result = made.result
    return (
        f"learnt from {result.tokens:,} tokens in {result.epochs} epochs, {result.seconds:.0f} s. {text}; "
        f"{made.plugin.size / 1e6:.2f} M parameters in {out}"
    )
