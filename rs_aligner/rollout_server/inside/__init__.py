"""What is loaded into vLLM's own process, by its name alone; it imports nothing of the package."""
