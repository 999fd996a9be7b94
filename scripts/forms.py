"""Writes `.github/docs/forms.md`: small modules of many forms, each divided, trained and merged, or refused."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.machine import machine
from tests.networks.forms import FORMS, Verdict, judge

PAGE = Path(__file__).resolve().parents[1] / ".github" / "docs" / "forms.md"
HEAD = """# Forms of modules

Written by `scripts/forms`, on: {machine}.

{divided} modules are divided, and {refused} are refused with a sentence. Each has hidden layers of 8 units
(`tests/networks/forms.py`); its two parts train for two steps and are merged. *Gradient* is how far the gradients in a
single part of everything are from the module's, relative to the largest. *Mean* is how far the outputs of what is
merged are from the mean of the parts', relative to it: of the module, or of `handle.whole()` where that alone is the
mean.

| a module | gradient | mean | of | refused, because |
|---|---:|---:|---|---|
"""


def row(form: str, verdict: Verdict) -> str:
    """A line of the table."""
    if verdict.refused:
        return f"| {form} | | | | {verdict.refused} |"
    gradient, mean = (f"{value:.0e}" if value else "0" for value in (verdict.gradient, verdict.mean))
    return f"| {form} | {gradient} | {mean} | {'the module' if verdict.exact else '`whole()`'} | |"


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    verdicts = {form: judge(form) for form in FORMS}
    refused = sum(bool(verdict.refused) for verdict in verdicts.values())
    about = ", ".join(f"{name} {value}" for name, value in machine("torch", "onnx").items())
    rows = "\n".join(row(form, verdict) for form, verdict in verdicts.items())
    head = HEAD.format(machine=about, divided=len(verdicts) - refused, refused=refused)
    PAGE.write_text(head + rows + "\n")


if __name__ == "__main__":
    main()
