"""What is minimised over what was kept: the rows to train on (`rows`), and the `terms` of the loss."""
