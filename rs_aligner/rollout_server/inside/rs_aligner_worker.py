"""What our servers add to vLLM's workers: a reload that reaches every copy of the weights.

vLLM loads it by `--worker-extension-cls rs_aligner_worker.Reloading`. On a CPU an output layer multiplies by
a packed copy of its weight. Where that weight is the embedding's (`tie_word_embeddings`), `reload_weights` of
vLLM 0.32 renews the embedding and leaves the copy, so that half of the model is new: it logs "ParallelLMHead:
Failed to load weights", and answers 200. Left out on purpose: whatever else a worker can do.
"""

from __future__ import annotations

from typing import Any


class Reloading:
    """Methods of a worker, by the names that `/collective_rpc` knows."""

    def rs_aligner_reload(self: Any, weights_path: str) -> None:
        """Take the weights of a Hugging Face folder, the packed copies included."""
        self.reload_weights(weights_path=weights_path)
        for layer in self.get_model().modules():
            method: Any = getattr(layer, "quant_method", None)
            if hasattr(layer, "cpu_linear") and type(method).__name__ == "UnquantizedEmbeddingMethod":
                method.process_weights_after_loading(layer)
