"""Parts side by side, or one network: steps, epochs, checkpoints, processes."""
