"""The loss of a global batch is that of its rows: no padding, split or token id takes part in it.

Gradients in all parallel layouts are in `test_layouts.py`; this is one process, in which cases are cheap.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron.core.optimizer import OptimizerConfig

from rs_aligner import stopping
from rs_aligner.config import OptimConfig
from rs_aligner.loss import Normalization
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import training
from rs_aligner.policy.batches import Split
from rs_aligner.policy.outcome import NotFinite
from rs_aligner.policy.training import Trainer, denominator, micro_batches
from rs_aligner.rollout import TrainingRow

pytestmark = pytest.mark.timeout(120)
END_TOKENS = (0, 2, 128001)  # padding is zeros, so 0 is the id that a mask by ids would get wrong
Gradient = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with a vocabulary as large as Llama 3's."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("wide")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trainer(folder: Path, rt: Runtime) -> Trainer:
    return new_trainer(folder, rt)


def new_trainer(folder: Path, rt: Runtime) -> Trainer:
    arch = read_architecture(folder)
    config = transformer_config(arch, rt, dtype=torch.float32)
    model = build_model(arch, config, rt)
    huggingface.load_weights(folder, model, arch, rt)
    optimizer = training.adam(OptimConfig(lr=1e-3), dtype=torch.float32, clip_grad=1.0)
    return Trainer(model, config, rt, optimizer)


def _main_grad(parameter: Any) -> torch.Tensor:
    grad: torch.Tensor = parameter.main_grad
    return grad


@pytest.fixture
def gradient(trainer: Trainer, folder: Path, rt: Runtime) -> Callable[..., Gradient]:
    """Loss and gradient of a global batch."""

    def gradient(
        rows: Sequence[TrainingRow], size: int = 2, normalization: Normalization = "sequence"
    ) -> Gradient:
        loss, _ = trainer.gradients(rows, split=Split(size), normalization=normalization)
        arch, model = read_architecture(folder), trainer.ddp.module
        return loss, huggingface.gather_tensors(model, arch, rt, of=_main_grad)

    return gradient


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    """In float64: two computations in float32 are farther from each other than each is from what is right."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def rows_ending_in(end: int) -> list[TrainingRow]:
    """Seven rows; the end token comes in prompts and inside responses, too."""
    rng = random.Random(6)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 128_000) for _ in range(count))

    rows = [TrainingRow(tokens(rng.randint(1, 6)), (*tokens(rng.randint(0, 9)), end)) for _ in range(6)]
    return [*rows, TrainingRow((end, *tokens(2), end), (end, *tokens(3), end, end))]


def plain_loss(model: torch.nn.Module, rows: Sequence[TrainingRow], normalization: str) -> torch.Tensor:
    """Row by row, without padding and without a mask."""
    means, sums, count = [], [], 0
    for row in rows:
        tokens = torch.tensor([row.prompt + row.response])
        logits = model(tokens).logits[0, len(row.prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(row.response), reduction="none")
        means.append(nll.mean())
        sums.append(nll.sum())
        count += len(row.response)
    return torch.stack(means).mean() if normalization == "sequence" else torch.stack(sums).sum() / count


def assert_same(some: Gradient, other: Gradient) -> None:
    assert some[0] == pytest.approx(other[0], rel=1e-5)
    for name, grad in other[1].items():
        assert (some[1][name] - grad).norm() < 1e-5 * grad.norm(), name


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("end", END_TOKENS)
def test_loss_and_gradient_are_those_of_the_rows_alone_whatever_the_end_token(
    gradient: Callable[..., Gradient], reference: torch.nn.Module, end: int, normalization: str
) -> None:
    rows = rows_ending_in(end)
    reference.zero_grad()
    loss = plain_loss(reference, rows, normalization)
    loss.backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    assert len(expected) == len(list(reference.parameters()))
    assert_same(gradient(rows, normalization=normalization), (float(loss), expected))


@pytest.mark.parametrize(("end", "wanted"), zip(END_TOKENS, (8, 16, 37), strict=True))
def test_extra_padding_changes_neither_loss_nor_gradient(
    gradient: Callable[..., Gradient], monkeypatch: pytest.MonkeyPatch, end: int, wanted: int
) -> None:
    rows = rows_ending_in(end)
    usual = gradient(rows)
    widths: list[int] = []

    def padded(*args: Any, multiple: int) -> list[training.MicroBatch]:
        batches = micro_batches(*args, multiple=wanted)
        widths.extend(batch.tokens.shape[1] for batch in batches)
        return batches

    monkeypatch.setattr(training, "micro_batches", padded)
    assert_same(gradient(rows), usual)
    assert len(widths) == 4
    assert all(width % wanted == 0 for width in widths)


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_the_size_of_a_micro_batch_changes_neither_loss_nor_gradient(
    gradient: Callable[..., Gradient], size: int, normalization: str
) -> None:
    rows = rows_ending_in(2)
    assert_same(gradient(rows, size, normalization), gradient(rows, 2, normalization))


def test_an_empty_response_adds_nothing_but_counts_as_a_sequence(gradient: Callable[..., Gradient]) -> None:
    rows = rows_ending_in(2)
    alone, _ = gradient(rows)
    beside, grads = gradient([*rows, TrainingRow((5, 6), ())])
    assert beside == pytest.approx(alone * 7 / 8, rel=1e-5)
    assert all(torch.isfinite(grad).all() for grad in grads.values())


# Who gets which rows


def responses_of(batch: training.MicroBatch) -> list[tuple[int, ...]]:
    """What a micro-batch says is learnt of each row."""
    labels = batch.labels[0][: int(batch.mask.sum())].split(batch.responses)
    return [tuple(part.tolist()) for part in labels]


@pytest.mark.parametrize("num_rows", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_replicas_share_all_rows_out_in_as_many_micro_batches_each(
    num_rows: int, dp_size: int, size: int
) -> None:
    rows = (rows_ending_in(2) + rows_ending_in(0))[:num_rows]
    shares = [micro_batches(rows, Split(size), rank, dp_size, multiple=4) for rank in range(dp_size)]
    assert len({len(share) for share in shares}) == 1
    found = []
    for batch in (batch for share in shares for batch in share):
        assert len(batch.mask) <= size
        assert batch.tokens.shape == (1, sum(batch.lengths))
        assert batch.tokens.shape[1] % 4 == 0
        found += responses_of(batch)
    assert sorted(response for response in found if response) == sorted(row.response for row in rows)


def test_a_replica_without_rows_has_a_micro_batch_without_response_tokens() -> None:
    (batch,) = micro_batches(rows_ending_in(2)[:1], Split(1), 1, 2)
    assert batch.tokens.shape == (1, 2)
    assert not batch.mask.any()


def test_the_denominator_counts_the_whole_global_batch() -> None:
    rows = [TrainingRow((1,), (2, 3)), TrainingRow((1, 1), (2, 3, 4))]
    assert denominator(rows, "sequence") == 2
    assert denominator(rows, "token") == 5


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were(folder: Path, rt: Runtime) -> None:
    arch = read_architecture(folder)
    config = transformer_config(arch, rt, dtype=torch.float32)
    model = build_model(arch, config, rt)
    huggingface.load_weights(folder, model, arch, rt)
    trainer = Trainer(model, config, rt, OptimizerConfig(optimizer="adam", lr=1e-3, clip_grad=1.0))
    with torch.no_grad():
        model.decoder.final_layernorm.weight[0] = torch.nan
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"the loss is nan and the gradient not finite"):
        trainer.step([TrainingRow((1, 2), (3, 4))], split=Split(1), learning_rate=1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num()), name


def test_a_gradient_whose_norm_is_not_finite_is_not_applied_though_its_numbers_are(trainer: Trainer) -> None:
    before = [p.clone() for p in trainer.ddp.module.parameters()]
    with pytest.raises(NotFinite, match="the gradient not finite"):
        trainer.step([TrainingRow((1, 2), (3, 4), weight=1e25)], split=Split(1), learning_rate=1e-3)
    assert all(map(torch.equal, trainer.ddp.module.parameters(), before))


def test_a_stop_comes_between_micro_batches_before_a_weight_has_moved_and_behind_a_step_afterwards(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [TrainingRow((1, 2), (3, 4))] * 4
    forwards: list[int] = []
    forward = Trainer._added

    def asking(self: Trainer, *args: Any, **how: Any) -> Any:
        forwards.append(1)
        stopping.ask("a test", within=60)
        return forward(self, *args, **how)

    monkeypatch.setattr(Trainer, "_added", asking)
    before = [p.clone() for p in trainer.ddp.module.parameters()]
    trainer.moved = False
    try:
        with pytest.raises(stopping.Stopped) as stopped:
            trainer.step(rows, split=Split(1), learning_rate=1e-3)
        assert (len(forwards), stopped.value.moved) == (1, False)
        assert all(map(torch.equal, trainer.ddp.module.parameters(), before))
        trainer.moved = True  # an optimizer step of the same training step was made: it is finished,
        trainer.step(rows, split=Split(1), learning_rate=1e-3)
        assert len(forwards) == 5
        stopping.note_save(1000.0)  # unless no time would be left to save it
        with pytest.raises(stopping.Stopped) as stopped:
            trainer.step(rows, split=Split(1), learning_rate=1e-3)
        assert (len(forwards), stopped.value.moved) == (5, True)
    finally:
        stopping.forget()
        trainer.moved = False


def test_a_step_on_one_replica_moves_no_gradient_weight_or_head_that_could_stay_where_it_is(
    folder: Path, rt: Runtime
) -> None:
    trainer, rows = new_trainer(folder, rt), rows_ending_in(2)
    for batches in (1, 3):  # micro-batches
        with torch.profiler.profile(record_shapes=True) as found:
            trainer.step(rows, split=Split(-(-len(rows) // batches)), learning_rate=1e-3)
        events = found.events()
        assert not [
            event.name for event in events if "scatter_tensor" in event.name or "allgather" in event.name
        ]
        # Four layers in each of two, and the output layer: their gradients are added up by the products.
        assert sum(event.name == "aten::addmm_" for event in events) == batches * (4 * 2 + 1)
        heads = [
            event.input_shapes[0] for event in events if event.name in ("aten::clone", "aten::zeros_like")
        ]
        assert not [shape for shape in heads if len(shape) == 4 and shape[-1] == 8]
