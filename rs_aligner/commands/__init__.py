"""From a checked config to a finished run: a file a command, and the parts that they share.

Left out on purpose: reading the config (`config`), and starting ranks and making loggers (`cli`).
"""
