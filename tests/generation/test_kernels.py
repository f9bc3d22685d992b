"""The CPU kernels against torch: odd sizes, both types of weights, other processors' vectors, no compiler."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation import native
from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.native import SOURCE, Kernels, NoKernels, build, load_kernels, tile_shape
from rs_aligner.generation.sampling import Controls, choose, derive_seed, uniforms
from rs_aligner.model import runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.compiled import address
from rs_aligner.model.families.registry import read_architecture
from tests.tiny import save_tiny

# Compilers that stand for other machines: without 512-bit vectors, and with the plainest ones.
MACHINES = {"this": "", "haswell": "-march=haswell", "x86-64": "-march=x86-64"}


@pytest.fixture(
    scope="module",
    params=["this", *(pytest.param(other, marks=pytest.mark.slow) for other in ("haswell", "x86-64"))],
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Any:
    """Kernels for heads of 8 numbers, as another machine would compile them."""
    if request.param != "this" and os.uname().machine != "x86_64":
        pytest.skip(f"{request.param} is no kind of {os.uname().machine}")
    folder = tmp_path_factory.mktemp(request.param)
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\nexec {compiler} "$@" {MACHINES[request.param]}\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(script))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return load_kernels.__wrapped__(8, 2)


def as_tiles(rows: torch.Tensor) -> torch.Tensor:
    """`[R, F]` as the kernels want it; behind the last row stand NaNs, which must not spread."""
    tiles, width, tile = tile_shape(rows.shape[1], rows.shape[0])
    padded = torch.full((tiles * tile, width), torch.nan)
    padded[: len(rows)] = rows
    return padded.view(tiles, tile, width).transpose(1, 2).contiguous()


def as_rows(tiles: torch.Tensor, count: int) -> torch.Tensor:
    return tiles.transpose(1, 2).flatten(0, 1)[:count]


def linear(
    kernels: Kernels,
    weight: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    onto: torch.Tensor | None = None,
    threads: int = 1,
) -> torch.Tensor:
    tiles = as_tiles(x)
    out = torch.zeros(tile_shape(len(weight), len(x))) if onto is None else as_tiles(onto)
    kernels.linear(
        *(address(weight), weight.dtype == torch.bfloat16, address(bias), *weight.shape),
        *(address(tiles), address(out), len(x), onto is not None, threads),
    )
    return as_rows(out, len(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (5, 7), (12, 64), (13, 515), (31, 1030), (64, 2049)])
def test_products_are_those_of_torch(
    kernels: Kernels, rows: int, n_out: int, n_in: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    weight, x = torch.randn(n_out, n_in).to(dtype), torch.randn(rows, n_in)
    bias, onto = torch.randn(n_out), torch.randn(rows, n_out)
    expected = x.double() @ weight.double().T
    close = {"rtol": 1e-5, "atol": 1e-5 * n_in**0.5}
    torch.testing.assert_close(linear(kernels, weight, x).double(), expected, **close)
    torch.testing.assert_close(linear(kernels, weight, x, bias).double(), expected + bias, **close)
    torch.testing.assert_close(linear(kernels, weight, x, onto=onto).double(), expected + onto, **close)


def test_a_row_has_the_same_bits_beside_whichever_rows_and_on_any_number_of_threads(kernels: Kernels) -> None:
    weight, x = torch.randn(213, 1500), torch.randn(70, 1500)  # worth several threads
    whole = linear(kernels, weight, x)
    for start, end in ((0, 1), (3, 20), (10, 50), (69, 70)):
        assert torch.equal(linear(kernels, weight, x[start:end]), whole[start:end])
    for threads in (2, 3, 8):
        assert torch.equal(linear(kernels, weight, x, threads=threads), whole)


@pytest.mark.parametrize("width", [1, 32, 45])
def test_the_norm_is_that_of_torch(kernels: Kernels, width: int) -> None:
    x, weight = torch.randn(35, width) * 3, torch.randn(width)
    tiles = as_tiles(x)
    out = torch.zeros_like(tiles)
    kernels.norm(address(tiles), address(weight), address(out), width, 35, 1e-5)
    expected = torch.nn.functional.rms_norm(x, (width,), weight, 1e-5)
    torch.testing.assert_close(as_rows(out, 35), expected, rtol=1e-5, atol=1e-6)


def choose_natively(
    kernels: Kernels,
    logits: torch.Tensor,
    seeds: list[int],
    lengths: list[int],
    *,
    temperature: float = 1.0,
    greedy: bool = False,
    banned: tuple[int, ...] = (),
    least: int = 0,
    allowed: torch.Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    count, vocab = logits.shape
    tiles = as_tiles(logits)
    kinds, sums = (
        AllowedTokens(vocab, banned, least, allowed).kinds,
        np.zeros((vocab // 16 + 1) * 16, dtype=np.float32),
    )
    given = np.array(seeds, dtype=np.uint64), np.array(lengths, dtype=np.int64)
    tokens, log_probs = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32)
    kernels.choose(
        *(address(tiles), vocab, count, *map(address, given)),
        *(Controls(temperature=temperature).inverse_temperature, greedy, address(kinds), least),
        *(address(sums), address(tokens), address(log_probs)),
    )
    return tokens, log_probs


@pytest.mark.parametrize("vocab", [1, 7, 64, 96, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("least", [0, 3])
def test_tokens_and_log_probs_are_those_of_the_path_on_torch(
    kernels: Kernels, vocab: int, temperature: float, least: int
) -> None:
    count, banned = 300, (0, vocab // 2) if vocab > 1 else ()
    torch.manual_seed(vocab)
    logits = torch.randn(count, vocab) * 3
    seeds, lengths = [derive_seed(5, i) for i in range(count)], [i % 6 for i in range(count)]
    tokens, log_probs = choose_natively(
        kernels, logits, seeds, lengths, temperature=temperature, banned=banned, least=least
    )
    allowed = logits.clone()
    short = [i for i in range(count) if lengths[i] < least]
    allowed[np.ix_(short, list(banned))] = -torch.inf
    expected = choose(
        allowed, Controls(temperature=temperature), torch.from_numpy(uniforms(seeds, lengths))
    ).numpy()
    assert (tokens != expected).mean() <= 0.01  # where a random number falls on an edge, to rounding
    assert not set(tokens[short]) & set(banned)
    picked = logits.log_softmax(-1).gather(-1, torch.from_numpy(tokens).long()[:, None])[:, 0]
    np.testing.assert_allclose(log_probs, picked.numpy(), atol=2e-5)


def test_greedy_takes_the_first_of_the_likeliest_that_may_come(kernels: Kernels) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 1.0, 1.0, 1.0]]).repeat(9, 1)
    rows = [0] * 18
    assert choose_natively(kernels, logits, rows, rows, greedy=True)[0].tolist() == [1, 0] * 9
    held_back, _ = choose_natively(kernels, logits, rows, rows, greedy=True, banned=(0, 1), least=1)
    assert held_back.tolist() == [2, 2] * 9


def test_a_token_of_probability_zero_never_comes_and_bad_logits_give_a_token_that_exists(
    kernels: Kernels,
) -> None:
    logits = torch.full((2000, 70), -1e9)
    logits[:, [3, 66]] = 0.0
    seeds = [derive_seed(i) for i in range(2000)]
    tokens, _ = choose_natively(kernels, logits, seeds, [0] * 2000)
    assert set(tokens.tolist()) == {3, 66}
    assert 900 < (tokens == 3).sum() < 1100
    tokens, _ = choose_natively(kernels, torch.full((20, 70), torch.nan), seeds[:20], [0] * 20)
    assert ((tokens >= 0) & (tokens < 70)).all()


# Chi-squared, against exact probabilities, at the 0.1 % level: each has 11 degrees of freedom at most.
LIMIT = 31.26
COUNT = 40_000


@cache
def many_seeds() -> list[int]:
    return [derive_seed(11, i) for i in range(COUNT)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("held_back", [False, True])
def test_tokens_come_as_often_as_their_probabilities_say(
    kernels: Kernels, temperature: float, held_back: bool
) -> None:
    count, seeds = COUNT, many_seeds()
    torch.manual_seed(3)
    logits = torch.randn(12)
    banned = (2, 7)
    tokens, _ = choose_natively(
        kernels,
        logits.expand(count, -1),
        seeds,
        [i % 5 for i in range(count)],
        temperature=temperature,
        banned=banned,
        least=5 if held_back else 0,
    )
    weights = (logits / temperature).double().exp()
    if held_back:
        weights[list(banned)] = 0.0
    expected = (weights / weights.sum() * count).numpy()
    seen = np.bincount(tokens, minlength=12)
    assert seen[expected == 0].sum() == 0
    there = expected > 0
    assert ((seen - expected)[there] ** 2 / expected[there]).sum() < LIMIT


# Getting the kernels


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_kernels_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second, other = (load_kernels.__wrapped__(8, group) for group in (2, 2, 1))
    assert first.seconds > 0
    assert second.seconds == 0
    assert other.seconds > 0
    assert len(list((tmp_path / "rs_aligner").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_damaged_library_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk or a power loss leaves it; a cut library ends the process at its first call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, _, _ = build(SOURCE, 8, 2)
    whole = library.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(flipped)):
        library.write_bytes(damaged)
        assert build(SOURCE, 8, 2)[2] > 0
        assert len(library.read_bytes()) == len(whole)
        assert build(SOURCE, 8, 2)[2] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rs_aligner").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_kernels.__wrapped__(8, 2).seconds > 0


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text(
        "#!/bin/sh\ncase $1 in --version) echo broken 1;; *) echo error: no >&2; exit 1;; esac\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NoKernels, match="broken failed: error: no"):
        load_kernels.__wrapped__(8, 2)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoKernels, match="no C compiler"):
        load_kernels.__wrapped__(8, 2)
    with pytest.raises(NoKernels, match="heads of 7"):
        load_kernels.__wrapped__(7, 2)


@pytest.mark.usefixtures("compiler")
def test_what_decodes_is_logged_and_torch_takes_over(
    one_rank: runtime.Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def none(*_: int) -> Kernels:
        raise NoKernels("there is no C compiler")

    caplog.set_level("INFO", logger="rs_aligner")
    arch = read_architecture(save_tiny("llama", tmp_path))
    model = build_model(arch, transformer_config(arch, one_rank, dtype=torch.float32), one_rank)
    new_decoder(model, arch, one_rank)
    new_decoder(model, arch, one_rank, GenerationConfig(engine="torch"))
    monkeypatch.setattr("rs_aligner.generation.on_kernels.load_kernels", none)
    new_decoder(model, arch, one_rank)
    kernels, told_not_to, failed = (record.getMessage() for record in caplog.records)
    assert kernels.startswith("decoder: kernels for this CPU, compiled ")
    assert told_not_to == "decoder: torch"
    assert failed == "decoder: torch, which is slower, since there is no C compiler"


@pytest.mark.usefixtures("compiler")
def test_structures_have_the_size_that_the_kernels_were_compiled_with() -> None:
    kernels = load_kernels(8, 2)
    for which, structure in enumerate((native.Layer, native.Model, native.Batch)):
        assert kernels.sizes(which) == ctypes.sizeof(structure)
