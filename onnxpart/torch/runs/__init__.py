"""Training runs as commands take them: files in, trained files out. Importing it imports all that commands need."""

from onnxpart.torch.runs import estimate, fit, fit_report, goal, progress, recipe, remote_run, task

__all__ = ["estimate", "fit", "fit_report", "goal", "progress", "recipe", "remote_run", "task"]
