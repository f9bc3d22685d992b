"""The client of vLLM's servers: rollouts asked for, new weights handed over."""
