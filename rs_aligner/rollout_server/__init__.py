"""Servers of rollouts: vLLM in an environment of its own, started, guarded and stopped.

`environment` finds that environment, `launch` runs the server in it, and `guard` is loaded into vLLM's own
process. Left out on purpose: who asks the servers (`generation`), and vLLM itself, which no module imports.
"""
