"""What a run leaves in its folder: figures, ledger, checkpoints, over all its starts."""
