"""The model families, a file each: how a config is read, Megatron's layer, the tensors' names.

`base` says what a family is, `registry` which there are. Nothing heavy is imported before a model is built.
"""
