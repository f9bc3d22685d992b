"""The decoder: draws rollouts from the policy's own weights. Knows nothing of rewards."""
