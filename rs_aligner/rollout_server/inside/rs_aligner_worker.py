"""What our servers add to vLLM's workers: a reload that reaches every copy of the weights.

vLLM loads it by `--worker-extension-cls rs_aligner_worker.Reloading`. On a CPU an output layer multiplies by
a packed copy of its weight. Where that weight is the embedding's (`tie_word_embeddings`), `reload_weights` of
vLLM 0.32 renews the embedding and leaves the copy, so that half of the model is new: it logs "ParallelLMHead:
Failed to load weights", and answers 200. The experts of a mixture it packs where it builds their kernel, so
at the first time only; the next one fails, since what is not packed has another shape.

Left out on purpose: whatever else a worker can do.
"""

from __future__ import annotations

from typing import Any


class Reloading:
    """Methods of a worker, by the names that `/collective_rpc` knows."""

    def rs_aligner_reload(self: Any, weights_path: str) -> None:
        """Take the weights of a Hugging Face folder, the packed copies included."""
        for method, _ in _layers(self.get_model(), "UnquantizedFusedMoEMethod"):
            if method.unquantized_backend.name == "CPU":
                method.moe_kernel = None  # it is built anew, and packs them
        self.reload_weights(weights_path=weights_path)
        for method, layer in _layers(self.get_model(), "UnquantizedEmbeddingMethod"):
            if hasattr(layer, "cpu_linear"):
                method.process_weights_after_loading(layer)


def _layers(model: Any, kind: str) -> list[tuple[Any, Any]]:
    """The layers that vLLM computes by a method of this kind, each behind its own."""
    pairs = [(getattr(layer, "quant_method", None), layer) for layer in model.modules()]
    return [pair for pair in pairs if type(pair[0]).__name__ == kind]
