"""The engine for many GPUs: servers of vLLM sample, wherever they are, and this process asks them."""

from __future__ import annotations

from functools import partial

from rs_aligner.address import Address
from rs_aligner.config import GenerationConfig
from rs_aligner.config.rollout_servers import ROLLOUTS_TOKEN
from rs_aligner.generation.decoder import CannotDecode, Engine, Offer
from rs_aligner.generation.vllm.completing import SECTION
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.decoder import SERVER, VllmDecoder
from rs_aligner.remote.asking import Asking
from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.token import read_token

_ROOM = 1 << 16  # requests that may wait; the decoder hands in no more than are to be under way


def endpoints_of(config: GenerationConfig) -> list[Endpoint[VllmConnection]]:
    """The servers that the config names.

    Raises:
        ValueError: their token cannot be read.
    """
    servers = config.servers
    token = read_token(f"{SECTION}.token_file", servers.token_file, ROLLOUTS_TOKEN)
    connect = partial(VllmConnection, token=token, authority=servers.ca_file)
    addresses = [Address.parse(text) for text in config.endpoints]
    return [Endpoint(str(address), partial(connect, address)) for address in addresses]


def asking_of(config: GenerationConfig) -> Asking:
    """How they are asked: a prompt a request, at once."""
    return Asking(
        batch_size=1,
        wait_seconds=0.0,
        room=_ROOM,
        in_flight=config.servers.max_in_flight,
        give_up_after=config.servers.give_up_after,
        attempts=1,
        role=SERVER,
    )


def _new(offer: Offer) -> VllmDecoder:
    decoder = VllmDecoder(offer, endpoints_of(offer.config), asking_of(offer.config))
    if offer.runtime.is_source:
        try:
            decoder.open()
        except (ConnectionError, ValueError) as error:
            raise CannotDecode(str(error)) from None
    return decoder


VLLM = Engine(
    "vllm", _new, passed_over=lambda ahead: "its servers have to be named", cached_bytes=lambda ahead: 0
)
