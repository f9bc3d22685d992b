"""The door of servers: whoever samples has the weights, and where nobody takes them the run hears why.

The servers live in this process, as far as new weights and one-token rollouts are concerned; real ones are in
`tests/e2e/test_vllm_training.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.address import Address
from rs_aligner.config.sampling import TrainedGenerationConfig
from rs_aligner.generation.decoder import Exports, Offer, Wave
from rs_aligner.generation.on_vllm import asking_of
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.generation.vllm import connection
from rs_aligner.generation.vllm.canary import canary_of
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.decoder import VllmDecoder
from rs_aligner.generation.vllm.folder import CANARY, MARKER
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.events import MEDIA_TYPE
from rs_aligner.remote.transport import Arriving, Conversation
from rs_aligner.rollout import Prompt
from rs_aligner.sample_request import SamplingFailed
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(300)


class Server:
    """A vLLM with our guard, as far as it matters here; `log` is what it was asked in order."""

    def __init__(self, vocab_size: int, lora_rank: int = 0) -> None:
        self.vocab_size, self.lora_rank = vocab_size, lora_rank
        self.word, self.folder = "", ""
        self.log: list[str] = []
        self.adapters: dict[str, str] = {}
        self.takes, self.computes = True, True
        self.refuses = ""  # adapters, for this reason
        self.born: Any = None  # what the weights answer that it was started with
        self.first = ""  # the word in the header of the next answer, if another
        self.between: Callable[[], None] | None = None  # happens once, between the choices of a stream
        self.is_up = True

    def answer(self, method: str, path: str, body: Any) -> Arriving:
        if not self.is_up:
            raise ConnectionRefusedError("nobody listens")
        route, _, query = path.partition("?")
        if route not in ("/health", "/v1/models", "/rs_aligner/about", "/v1/completions"):
            self.log.append(route)
        found = self._answer(route, query, body)
        first, self.first = self.first or self.word, ""
        headers = {connection.WEIGHTS_HEADER: first} if first else {}
        status, content = found if isinstance(found, tuple) else (200, found)
        if status == 200 and isinstance(body, dict) and body.get("stream"):
            return Arriving(status, {**headers, "content-type": MEDIA_TYPE}, self._streamed(content))
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        return Arriving(status, headers, iter([raw]))

    def _streamed(self, content: Any) -> Iterator[bytes]:
        for number, choice in enumerate(content["choices"]):
            if number and self.between is not None:
                between, self.between = self.between, None
                between()
            word = f": {connection.WEIGHTS_HEADER} {self.word}\n" if self.word else ""
            yield f"{word}data: {json.dumps({'choices': [choice]})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    def _answer(self, route: str, query: str, body: Any) -> Any:
        if route == "/rs_aligner/marker":
            return (Path(query.partition("folder=")[2].replace("%2F", "/")) / MARKER).read_bytes()
        if route == "/rs_aligner/about":
            return {"lora_rank": self.lora_rank or None}
        if route == "/v1/models":
            return {"data": [{"id": "policy"}, *({"id": one, "parent": "policy"} for one in self.adapters)]}
        if route == "/collective_rpc":
            if not self.takes:
                return 500, {"error": {"message": "the engine is dead"}}
            self.folder = body["kwargs"]["weights_path"]
            self.word = (Path(self.folder) / MARKER).read_text().strip()
        if route == "/v1/load_lora_adapter" and self.refuses:
            return 400, {"error": {"message": self.refuses}}
        if route == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
        if route == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
        if route == "/v1/completions":
            return self._completed(body)
        return {"success": True}

    def _completed(self, body: Any) -> Any:
        if str(self.vocab_size) in body.get("logit_bias", {}):
            return 400, {"error": {"message": "no such id"}}
        if body["model"] not in ("policy", *self.adapters):
            return 404, {"error": {"message": "no such model"}}
        if isinstance(body["prompt"][0], list):
            where = self.adapters.get(body["model"], self.folder)
            continuations = (
                json.loads((Path(where) / CANARY).read_text())["continuations"] if where else self.born
            )
            wrong = 0.0 if self.computes else -1.0
            found = [(tokens, [one + wrong for one in log_probs]) for tokens, log_probs in continuations]
        else:
            found = [((body.get("allowed_token_ids") or [5])[-1:], [-1.0])] * body.get("n", 1)
        return {
            "choices": [
                {
                    "index": index,
                    "token_ids": tokens,
                    "logprobs": {"token_logprobs": log_probs},
                    "finish_reason": "length",
                }
                for index, (tokens, log_probs) in enumerate(found)
            ]
        }


class Speaking(Conversation):
    """A conversation with one of them."""

    def __init__(self, server: Server) -> None:
        super().__init__(Address("server", 1))
        self._server = server

    @contextmanager
    def begin(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Arriving]:
        try:
            answer = self._server.answer(method, path, json.loads(body) if body else None)
        except OSError as error:
            raise TransportError(str(error), "unreachable") from error
        yield answer

    def abort(self) -> None: ...


class Link(VllmConnection):
    """What the decoder has of it."""

    def __init__(self, server: Server) -> None:
        super().__init__(Address("server", 1))
        self._conversation = Speaking(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


Make = Callable[..., VllmDecoder]


@pytest.fixture
def make(source: Path, tmp_path: Path, rt: Runtime) -> Iterator[Make]:
    """Makes a decoder of a policy with servers; `exported=False` for one that hands nothing over."""
    arch = read_architecture(source)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(source, model, arch, rt)
    made: list[VllmDecoder] = []

    def make(*servers: Server, exported: bool = True, adapters: Any = None, **settings: Any) -> VllmDecoder:
        config = TrainedGenerationConfig.model_validate(
            {
                "engine": "vllm",
                "endpoints": [f"server-{n}:1" for n in range(len(servers))],
                "servers": {"startup_timeout": 5, "give_up_after": 3, "request_timeout": 5},
                **settings,
            }
        )
        save = partial(
            huggingface.save_weights, model=model, arch=arch, runtime=rt, source=source, as_trained=True
        )
        exports = Exports(tmp_path / "weights", save, adapters, 4) if exported else None
        offer = Offer(model, arch, rt, config, None, exports)
        for one in () if exported else servers:
            one.born = canary_of(offer).continuations
        endpoints: list[Endpoint[VllmConnection]] = [
            Endpoint(f"http://server-{n}", partial(Link, one)) for n, one in enumerate(servers)
        ]
        decoder = VllmDecoder(offer, endpoints, asking_of(config))
        decoder.open()
        made.append(decoder)
        return decoder

    yield make
    for decoder in made:
        decoder.close(is_over=False)


@pytest.fixture
def vocab_size(source: Path) -> int:
    return read_architecture(source).vocab_size


def sample(decoder: VllmDecoder, number: int = 6) -> int:
    """How many rollouts come of so many."""
    rows = [RolloutRow(n, 0, n, Prompt(f"p{n}", "", (5, 6)), limit=1) for n in range(number)]

    return len(list(decoder.decode(wave_of(rows))))


def wave_of(rows: list[RolloutRow]) -> Wave:
    class NoText:
        eos_ids = ()

    ends = EndStrings(NoText(), ())  # type: ignore[arg-type]  # no text is asked for
    return Wave(rows, Controls(max_length=1), ends)


def save_adapters(folder: Path) -> None:
    """No server of these reads any."""
    folder.mkdir(parents=True)


TAKES = ["/rs_aligner/marker", "/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"]


def test_every_server_takes_each_version_once_before_it_samples(
    make: Make, vocab_size: int, tmp_path: Path
) -> None:
    servers = Server(vocab_size), Server(vocab_size)
    decoder = make(*servers)
    assert [one.log for one in servers] == [[], []]
    assert decoder.prepare(0) == 0
    assert decoder.prepare(0) == 0
    assert [one.log for one in servers] == [TAKES, TAKES]
    assert sample(decoder) == 6
    assert decoder.prepare(1, now=True) == 1
    assert [one.log for one in servers] == [TAKES * 2] * 2
    assert {one.folder for one in servers} == {str(tmp_path / "weights" / "step_000001")}
    decoder.close(is_over=False)
    assert (tmp_path / "weights" / "step_000001").is_dir()
    decoder.close(is_over=True)
    assert not (tmp_path / "weights").exists()


def test_a_server_that_does_not_take_them_or_computes_otherwise_is_left_out_and_others_sample(
    make: Make, vocab_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rs_aligner")
    dead, old, good = Server(vocab_size), Server(vocab_size), Server(vocab_size)
    decoder = make(dead, old, good)
    decoder.prepare(0)
    dead.takes = old.computes = False
    assert decoder.prepare(1) == 1
    assert "http://server-0 is left out until it samples again: it did not take" in caplog.text
    assert "has to be started again: HTTP 500: the engine is dead" in caplog.text
    assert (
        "http://server-1 is left out until it samples again: http://server-1: it has other weights"
        in caplog.text
    )
    assert sample(decoder) == 6
    old.computes = True
    deadline = time.monotonic() + 20
    while "http://server-1 samples again" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert old.word == good.word


def test_one_that_was_started_again_is_told_by_its_first_answer_and_goes_through_the_door(
    make: Make, vocab_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rs_aligner")
    first, second = Server(vocab_size), Server(vocab_size)
    decoder = make(first, second)
    decoder.prepare(3)
    first.word, first.folder = "", ""  # it answers by what it was started with
    for _ in range(3):
        assert sample(decoder) == 6
    assert "it has not the weights that it was sent any more" in caplog.text
    deadline = time.monotonic() + 20
    while first.word != second.word:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["by others", "by none", "by others at first"])
def test_a_rollout_that_ended_before_the_weights_were_others_counts_and_a_later_one_does_not(
    make: Make, vocab_size: int, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    server = Server(vocab_size)
    decoder = make(server)
    decoder.prepare(3)
    bodies: list[Any] = []
    completed = server._completed

    def watched(body: Any) -> Any:
        bodies.append(body)
        return completed(body)

    server._completed = watched  # type: ignore[method-assign]  # the same, looked at

    def reloaded() -> None:
        server.word = "of another" if how == "by others" else ""

    if how == "by others at first":
        server.first = "of another"
    else:
        server.between = reloaded
    rows = [RolloutRow(0, index, 50 + index, Prompt("p", "", (5, 6)), limit=1) for index in range(4)]
    found = list(decoder.decode(wave_of(rows)))
    assert [row.index for row, *_ in found] == [0, 1, 2, 3]
    asked = [(one["seed"], one["n"]) for one in bodies if "seed" in one]
    assert asked == [(50, 4), (50, 4) if how == "by others at first" else (51, 3)]
    assert "it has not the weights that it was sent any more" in caplog.text


def test_nor_does_one_whose_adapter_came_to_other_weights_before_its_end(make: Make, vocab_size: int) -> None:
    server = Server(vocab_size, lora_rank=8)
    patience = {"startup_timeout": 5, "give_up_after": 0.3, "request_timeout": 5}
    decoder = make(server, adapters=save_adapters, servers=patience)
    decoder.prepare(3)
    server.between = lambda: setattr(server, "word", "(others since it began)")
    found = decoder.decode(wave_of([RolloutRow(0, n, n, Prompt("p", "", (5, 6)), limit=1) for n in (0, 1)]))
    assert next(found)[0].index == 0
    with pytest.raises(SamplingFailed, match="another run has given it whole weights"):
        next(found)


def test_where_no_server_takes_them_the_run_hears_why(make: Make, vocab_size: int) -> None:
    server = Server(vocab_size)
    decoder = make(server)
    server.computes = False
    with pytest.raises(
        ValueError, match="http://server-0: it has other weights than it was sent: to canary 1"
    ):
        decoder.prepare(0)  # at the start something is to be mended
    server.computes = True
    server.takes, server.word = False, ""
    with pytest.raises(ValueError, match=r"did not take .* HTTP 500: the engine is dead; vLLM's log"):
        make(server).prepare(0)  # a model that vLLM serves, and cannot reload
    server.takes = True
    decoder.prepare(0)
    server.is_up = False
    with pytest.raises(
        SamplingFailed, match=r"no vLLM server takes the weights: http://server-0: nobody listens"
    ):
        decoder.prepare(1)
    server.is_up = True
    assert decoder.prepare(1) == 1


def test_weights_travel_as_often_as_the_config_says_and_before_held_out_prompts(
    make: Make, vocab_size: int
) -> None:
    server = Server(vocab_size)
    decoder = make(server, sync_interval=3, max_version_lag=2)
    assert [decoder.prepare(version) for version in range(5)] == [0, 0, 0, 3, 3]
    assert decoder.prepare(5, now=True) == 5
    assert [decoder.prepare(version) for version in (5, 6, 7, 8)] == [5, 5, 5, 8]
    assert server.log == TAKES * 4


def test_a_run_that_goes_on_between_two_sends_what_the_servers_had(make: Make, vocab_size: int) -> None:
    server = Server(vocab_size)
    settings = {"sync_interval": 3, "max_version_lag": 2}
    first = make(server, **settings)
    for version in (0, 3, 6):
        first.prepare(version)
    first.close(is_over=False)
    again = make(server, **settings)
    assert [again.prepare(version) for version in (4, 5, 6)] == [3, 3, 6]
    later = make(server, **settings)
    assert later.prepare(9) == 9  # what is there is too old


def test_adapters_travel_alone_where_every_server_was_started_for_them(
    make: Make, vocab_size: int, tmp_path: Path
) -> None:
    servers = Server(vocab_size, lora_rank=8), Server(vocab_size, lora_rank=4)
    decoder = make(*servers, adapters=save_adapters)
    decoder.prepare(0)
    assert sample(decoder) == 6
    decoder.prepare(1)
    for server in servers:
        assert list(server.adapters.values()) == [str(tmp_path / "weights" / "step_000001")]
        assert "/collective_rpc" not in server.log
    servers[0].adapters.clear()  # it was started again, and knows the name no more
    assert sample(decoder) == 6
    for small in (Server(vocab_size, lora_rank=2), Server(vocab_size)):
        make(small, Server(vocab_size, lora_rank=8), adapters=save_adapters).prepare(0)
        assert small.log == TAKES


def test_adapters_do_not_go_beside_weights_that_a_server_was_not_started_with(
    make: Make, vocab_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rs_aligner")
    given = Server(vocab_size, lora_rank=8)
    given.word = "of-another-run"
    make(given, Server(vocab_size, lora_rank=8), adapters=save_adapters).prepare(0)
    assert given.log == TAKES  # whole weights, as if it took no adapters

    servers = Server(vocab_size, lora_rank=8), Server(vocab_size, lora_rank=8)
    decoder = make(*servers, adapters=save_adapters)
    decoder.prepare(1)
    servers[0].word = "of-another-run"  # and the adapter is there still
    for _ in range(3):
        assert sample(decoder) == 6
    assert (
        "server-0 is left out until it samples again: another run has given it whole weights" in caplog.text
    )
    assert decoder.prepare(2) == 2
    servers[1].computes = False
    with pytest.raises(SamplingFailed, match=r"another run has given it whole weights.*: start it again"):
        decoder.prepare(3)


def test_what_mends_a_first_exchange_is_told(make: Make, vocab_size: int) -> None:
    server = Server(vocab_size, lora_rank=8)
    server.computes = False
    with pytest.raises(ValueError, match=r"to canary 1 .*; adapters go beside .* or without lora_rank"):
        make(server, adapters=save_adapters).prepare(0)
    with pytest.raises(ValueError, match=r"to canary 1 .*; start it in the type of .* by vllm\.dtype"):
        make(server).prepare(0)
    server = Server(vocab_size, lora_rank=8)
    server.refuses = "no adapters of such modules"
    with pytest.raises(
        ValueError, match=r"did not take the adapter .* HTTP 400: no adapters of such modules"
    ):
        make(server, adapters=save_adapters).prepare(0)


def test_without_a_folder_servers_sample_from_what_they_were_started_with(
    make: Make, vocab_size: int
) -> None:
    server = Server(vocab_size)
    decoder = make(server, exported=False)
    assert decoder.prepare(3) == decoder.prepare(3) == 3
    assert sample(decoder) == 6
    assert server.log == []


def test_without_a_folder_a_server_of_other_weights_is_told_and_left_out(
    make: Make, vocab_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    server, other = Server(vocab_size), Server(vocab_size)
    other.computes = False
    decoder = make(server, other, exported=False)
    assert decoder.prepare(0) == 0
    assert sample(decoder) == 6
    with pytest.raises(ValueError, match=r"other weights than pretrained_checkpoint\.restore_from_path"):
        make(other, exported=False).prepare(0)
