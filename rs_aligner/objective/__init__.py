"""What is minimised over the rollouts that were kept: from the kept to the rows to train on (`rows`)."""
