"""Kernels and torch compute the same, forward and backward, and rows of a line see only themselves.

The reference is plain torch in float64, written out; nothing here starts Megatron's groups.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from rs_aligner.model import installed, native
from rs_aligner.model.attending import Rule
from rs_aligner.model.attention import RotaryAttention
from rs_aligner.model.fused import rms_norm, swiglu
from rs_aligner.model.line import Line

pytestmark = pytest.mark.timeout(120)
# Head size, groups, query heads of a group, lengths: heads narrower and wider than a vector, rows of one
# token and longer than a block of queries, and neighbours of equal length.
SHAPES = [
    (8, 4, 2, (40, 40, 3, 1)),
    (64, 2, 1, (70, 5)),
    (6, 1, 3, (33,)),
    (16, 2, 4, (1, 1, 17, 64, 32)),
    (128, 1, 2, (9, 100)),
]


def config(dim: int) -> Any:
    return SimpleNamespace(kv_channels=dim, use_cpu_initialization=True, params_dtype=torch.float32)


def angles(length: int, dim: int) -> torch.Tensor:
    """Of pairs: `[S, dim / 2]`."""
    return torch.outer(torch.arange(length).double(), 100.0 ** (-torch.arange(0, dim, 2).double() / dim))


def table(length: int, dim: int) -> torch.Tensor:
    """Cosines and sines side by side: float32 `[S, 1, 1, dim]`."""
    half = angles(length, dim).float()
    return torch.cat([half.cos(), half.sin()], -1)[:, None, None]


def plain(mixed: torch.Tensor, lengths: tuple[int, ...], dim: int, window: int | None = None) -> torch.Tensor:
    """Row by row, head by head, with a mask: `[S, 1, heads * dim]`."""
    found = []
    for row in mixed[:, 0].split(lengths):
        length, groups, size = row.shape
        turn = angles(length, dim).repeat(1, 2)

        def rotated(x: torch.Tensor, turn: torch.Tensor = turn) -> torch.Tensor:
            first, second = x.chunk(2, -1)
            return x * turn.cos() + torch.cat([-second, first], -1) * turn.sin()

        heads = []
        for group in range(groups):
            *queries, key, value = row[:, group].split(dim, -1)
            assert len(queries) == size // dim - 2
            for query in queries:
                scores = rotated(query) @ rotated(key).T / dim**0.5
                hidden = torch.ones(length, length).triu(1)
                if window is not None:
                    hidden += torch.ones(length, length).tril(-window)
                scores = scores.masked_fill(hidden.bool(), -torch.inf)
                heads.append(scores.softmax(-1) @ value)
        found.append(torch.cat(heads, -1))
    return torch.cat(found).unsqueeze(1)


def outcome(function: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """A function's value and the gradients of its inputs, of a sum with uneven weights."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    (out.double() * weights).sum().backward()
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= tolerance * other.norm()


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """A stand-in for `flash_attn.flash_attn_varlen_func`, as its documentation has it: `[T, heads, dim]`."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    lengths = cu_seqlens_q.diff()
    assert max_seqlen_q == max_seqlen_k == lengths.max()
    assert cu_seqlens_q[-1] == len(q)
    assert causal
    assert deterministic
    assert not dropout_p
    before, behind = window_size
    assert behind == (0 if before >= 0 else -1)
    found = []
    for row in zip(*(x.split(lengths.tolist()) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1) for x in row)
        seen = torch.ones(query.shape[1], query.shape[1]).tril().bool()
        if before >= 0:
            seen &= torch.ones_like(seen).triu(-before)
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=softmax_scale, enable_gqa=True
        )
        found.append(out.transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("way", ["kernels", "torch", "flash-attn"])
@pytest.mark.parametrize(("dim", "groups", "per_group", "lengths"), SHAPES)
def test_attention_along_a_line_is_that_of_its_rows_alone(
    dim: int, groups: int, per_group: int, lengths: tuple[int, ...], way: str
) -> None:
    attention = RotaryAttention(config(dim))
    assert attention.kernels is not None
    if way != "kernels":
        attention.kernels = None
    if way == "flash-attn":
        attention.varlen = varlen
    torch.manual_seed(0)
    mixed = torch.randn(sum(lengths), 1, groups, (per_group + 2) * dim)
    turn = table(max(lengths), dim)
    line = Line.of(lengths)
    expected = outcome(lambda x: plain(x, lengths, dim), mixed.double())
    assert_near(outcome(lambda x: attention((x,), turn, line), mixed), expected)
    apart = attention._split(mixed)  # queries, keys and values by themselves, as where they have norms
    found = outcome(lambda *heads: attention(heads, turn, line), *apart)
    queries = found[1].unflatten(2, (groups, per_group)).flatten(3)
    assert_near([found[0], torch.cat([queries, *found[2:]], -1)], expected)


@pytest.mark.parametrize("way", ["kernels", "torch", "flash-attn"])
@pytest.mark.parametrize("window", [1, 9, 40])
def test_a_token_sees_no_more_than_its_window(window: int, way: str) -> None:
    """Where the kernels are asked, they leave longer rows to torch."""
    attention, lengths = RotaryAttention(config(8)), (40, 40, 9, 1)
    attention.rule = Rule(8**-0.5, window)
    if way != "kernels":
        attention.kernels = None
    if way == "flash-attn":
        attention.varlen = varlen
    torch.manual_seed(0)
    mixed = torch.randn(sum(lengths), 1, 2, 4 * 8)
    expected = outcome(lambda x: plain(x, lengths, 8, window), mixed.double())
    found = outcome(lambda x: attention((x,), table(40, 8), Line.of(lengths)), mixed)
    assert_near(found, expected)


@pytest.mark.parametrize("way", ["kernels", "torch"])
def test_attention_of_padded_rows_side_by_side_is_that_of_each_alone(way: str) -> None:
    attention = RotaryAttention(config(8))
    if way == "torch":
        attention.kernels = None
    torch.manual_seed(0)
    mixed = torch.randn(21, 3, 2, 4 * 8)
    found = outcome(lambda x: attention((x,), table(21, 8), None), mixed)
    expected = outcome(
        lambda x: torch.cat([plain(row, (21,), 8) for row in x.split(1, 1)], 1), mixed.double()
    )
    assert_near(found, expected)


def test_a_number_that_is_not_finite_is_not_hidden() -> None:
    """Exponentials by kernels bound what they are given."""
    attention = RotaryAttention(config(8))
    for place in range(3):
        for value in (torch.nan, torch.inf):
            mixed = torch.zeros(5, 1, 1, 24)
            mixed[0, 0, 0, 8 * place] = value
            out = attention((mixed,), table(5, 8), Line.of((5,)))
            assert not out[0].isfinite().all()
            assert not out.isfinite().all()
    kernels = native.load(8)
    for broken in (torch.tensor([[torch.nan, 1.0]]), torch.tensor([[1.0, torch.nan]])):
        assert not swiglu(broken.repeat(1, 16), kernels).isfinite().all()
        assert not rms_norm(broken, torch.ones(2), 1e-5, kernels).isfinite().all()


def test_threads_change_no_bit() -> None:
    attention, before = RotaryAttention(config(8)), torch.get_num_threads()
    mixed = torch.randn(120, 1, 4, 32)
    line, turn = Line.of((50, 60, 10)), table(60, 8)
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            x, norm = torch.randn(70, 40, generator=torch.Generator().manual_seed(1)), torch.ones(40)
            found.append(
                [
                    *outcome(lambda m: attention((m,), turn, line), mixed),
                    *outcome(lambda x, w: rms_norm(x, w, 1e-5, native.load(8)), x, norm),
                    *outcome(lambda x: swiglu(x, native.load(8)), x),
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("width", [5, 16, 37, 64])
def test_norm_and_activation_are_those_of_plain_torch(width: int) -> None:
    torch.manual_seed(0)
    kernels = native.load(8)
    x, weight, both = torch.randn(13, width), torch.randn(width), 3 * torch.randn(13, 2 * width)
    both[0, 0], both[0, -1] = -300.0, 300.0

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def active(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return gate / (1 + (-gate).exp()) * up

    assert_near(
        outcome(lambda *given: rms_norm(*given, 1e-5, kernels), x, weight),
        outcome(norm, x.double(), weight.double()),
    )
    assert_near(outcome(lambda x: swiglu(x, kernels), both), outcome(active, both.double()))


def test_without_a_compiler_torch_does_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    native.load.cache_clear()
    try:
        attention = RotaryAttention(config(8))
        assert attention.kernels is None
        mixed = torch.randn(9, 1, 2, 24)
        out = attention((mixed,), table(5, 8), Line.of((4, 5)))
        assert_near([out], [plain(mixed.double(), (4, 5), 8)])
        # A config of which nothing else is read.
        assert native.kernels_of(SimpleNamespace(use_cpu_initialization=False)) is None  # type: ignore[arg-type]  # a stand-in
        assert native.load(7) is None
    finally:
        native.load.cache_clear()


# Which attention a GPU is used with


def on_gpu(dtype: torch.dtype = torch.bfloat16, dim: int = 64) -> Any:
    return SimpleNamespace(kv_channels=dim, use_cpu_initialization=False, params_dtype=dtype)


def test_flash_attn_is_used_where_it_can_be_and_is_never_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rs_aligner")
    installed.tell(config(64))
    assert caplog.messages == []  # on a CPU there is nothing to choose
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    assert RotaryAttention(on_gpu()).varlen is varlen
    installed.tell(on_gpu())
    for broken in (on_gpu(torch.float32), on_gpu(dim=288)):
        assert RotaryAttention(broken).varlen is None
        installed.tell(broken)
    monkeypatch.setattr(installed, "_capability", lambda: (7, 5))
    installed.tell(on_gpu())
    monkeypatch.setattr(installed, "_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())  # too old
    installed.tell(on_gpu())

    def lacks(name: str) -> None:
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

    with monkeypatch.context() as patch:
        patch.setattr(installed.importlib, "import_module", lacks)
        installed.tell(on_gpu())
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert RotaryAttention(on_gpu()).varlen is None
    monkeypatch.setattr(installed.metadata, "version", lambda package: "2.9")
    installed.tell(on_gpu())
    said = [line.removeprefix("attention: ") for line in caplog.messages]
    assert said == [
        "flash-attn, a call for all rows",
        "torch's, a call a length: flash-attn is for weights of 16 bits",
        "torch's, a call a length: flash-attn is for heads of at most 256 numbers",
        "torch's, a call a length: flash-attn is for GPUs of compute capability 8 or more",
        "torch's, a call a length: flash-attn cannot be used (no flash_attn_varlen_func)",
        "torch's, a call a length: flash-attn cannot be used (No module named 'einops')",
        "torch's, a call a length: flash-attn is not installed",
        "layers: Megatron's; Transformer Engine 2.9 is used for Adam only",
    ]
