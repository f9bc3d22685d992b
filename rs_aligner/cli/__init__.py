"""What a script needs besides the command that it runs: one way out for errors, and the ranks.

`scripts` has a function for each of the five commands: it takes the config as Hydra has read it, and does the
rest. The only room that knows Hydra, which is imported where it is needed, behind every check. Left out on
purpose: what a command does (`commands`).
"""
