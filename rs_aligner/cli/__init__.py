"""What a script needs besides the command that it runs: one way out for errors, the ranks, the loggers.

`scripts` has a function for each of the five commands: it takes the config as Hydra has read it, and does the
rest. The only room that knows Hydra, NeMo and Lightning; they are imported where they are needed, behind
every check. Left out on purpose: what a command does (`commands`).
"""
