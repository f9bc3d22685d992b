"""RS Aligner: a language model learns from the best of its own answers.

Rejection sampling (best-of-N) fine-tuning with a remote judge, on Megatron. Importing this
package loads nothing heavy; each room imports what it needs.
"""

__version__ = "0.1.0"
