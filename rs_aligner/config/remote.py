"""The judge as the trainer sees it: where it is, how it is asked, and what to do when it fails.

Types, bounds and spellings of single values; what relates several keys is checked in `check_remote`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from rs_aligner.config.base import Count, NotNegative, Port, Positive, Section, Share, Text, problem
from rs_aligner.config.common import JudgeConfig

_logger = logging.getLogger("rs_aligner")


class EndpointConfig(Section):
    """Where a judge listens."""

    name: Text = "reward_model"
    """The model's name on the server."""
    ip: Text = "localhost"
    """Host name or address."""
    port: Port = 5555
    """The port of its HTTP service."""

    @property
    def url(self) -> str:
        """Its address, to be shown."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"http://{host}:{self.port}"


class RemoteRMConfig(Section):
    """The judge as the trainer sees it."""

    reward_model: EndpointConfig = EndpointConfig()
    endpoints: tuple[EndpointConfig, ...] = ()
    """Several servers of the same judge, each "host:port" or {ip, port, name}; empty for `reward_model`."""
    in_process: bool = False
    """Judges in the trainer's own processes, by `judge`, without a server."""
    judge: JudgeConfig | None = None
    """What judges with `in_process`: the same keys as the server's `judge`."""
    token_file: Text | None = None
    """File with the servers' access token; null takes the variable RS_ALIGNER_JUDGE_TOKEN, if it is set."""
    mode: Literal["auto", "text", "tokens"] = "auto"
    """Sends texts, or token ids as NeMo-Aligner does; `auto` sends texts if the server takes them."""
    pad_to_length: Count | None = None
    """Token mode: pads every request to this many tokens; null to the longest row of the request."""
    max_batch_size: Count = 64
    """Responses in one request at most."""
    max_wait_seconds: NotNegative = 0.05
    """How long an unfilled request waits for more responses."""
    max_in_flight: Count = 4
    """Requests under way at once at each server."""
    max_queued: Count = 4096
    """Responses that may wait to be sent; when there are more, generation waits."""
    startup_timeout: Positive = 10
    """Seconds to wait for the judge to become ready before the run gives up."""
    request_timeout: Positive = 60
    """Seconds to wait for one answer before the request has failed."""
    on_failure: Literal["drop", "retry", "abort"] = "retry"
    """What happens to a response without a score.

    `retry` asks again, where that may help, for `give_up_after` seconds; `drop` only `max_attempts` times.
    Then the response counts as rejected. `abort` is `drop`, but one such response stops the run.
    """
    give_up_after: Positive = 600
    """Seconds to ask again after a first failure (`on_failure: retry`)."""
    max_attempts: Count = 4
    """Times that a request is sent at most (`on_failure: drop` or `abort`)."""
    max_failed_fraction: Share = 0.5
    """When more than this share of a step's responses has no score, the run saves and stops."""

    @field_validator("endpoints", mode="before")
    @classmethod
    def _read_endpoints(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return ()
        if isinstance(value, str):
            value = (value,)
        if not isinstance(value, list | tuple):
            raise ValueError('should be a list of "host:port" or {ip, port, name}')
        common = info.data.get("reward_model")
        names = {} if common is None else {"name": common.name}
        return tuple(
            {**names, **_from_text(one)}
            if isinstance(one, str)
            else {**names, **one}
            if isinstance(one, Mapping)
            else one
            for one in value
        )

    @property
    def servers(self) -> tuple[EndpointConfig, ...]:
        """All servers of the judge."""
        return self.endpoints or (self.reward_model,)


def check_watched(section: str, config: RemoteRMConfig) -> Iterator[str]:
    """What relates several keys of a judge that is only watched: its failures end nothing."""
    yield from check_remote(section, config)
    if config.on_failure == "abort":
        yield problem(
            f"{section}.on_failure", "abort", "a watched judge ends no run; set it to drop or retry"
        )
    if config.max_failed_fraction != RemoteRMConfig().max_failed_fraction:
        _logger.warning("%s.max_failed_fraction has no effect: a watched judge ends no run", section)


def check_remote(section: str, config: RemoteRMConfig) -> Iterator[str]:
    """What relates several keys of a judge that is asked, a line for each problem."""
    one, default = config.reward_model, EndpointConfig()
    places = [(endpoint.ip, endpoint.port, endpoint.name) for endpoint in config.endpoints]
    if len(set(places)) < len(places):
        yield problem(f"{section}.endpoints", [p.url for p in config.endpoints], "names a server twice")
    for key in ("ip", "port"):
        value = getattr(one, key)
        if (
            places
            and value != getattr(default, key)
            and value not in (getattr(e, key) for e in config.endpoints)
        ):
            known = f"{section}.endpoints lists other servers; set one of the two, or add it there"
            yield problem(f"{section}.reward_model.{key}", value, known)
    if config.in_process and places:
        yield problem(f"{section}.in_process", True, f"no server is asked; leave {section}.endpoints empty")
    if config.in_process and config.mode == "tokens":
        yield problem(f"{section}.mode", "tokens", "a judge in the same process gets texts; set it to auto")
    if config.in_process and config.judge is None:
        yield (
            f"{section}.judge must be set with {section}.in_process, e.g. {section}.judge.name=exact_answer"
        )
    if config.judge is not None and not config.in_process:
        yield (
            f"{section}.judge is set, but a server brings its own judge: set {section}.in_process=true, or "
            "give it to serve_reward.py as judge"
        )
    if config.max_queued < config.max_batch_size:
        least = f"should be at least {section}.max_batch_size = {config.max_batch_size}"
        yield problem(f"{section}.max_queued", config.max_queued, least)
    if config.token_file is not None and not Path(config.token_file).is_file():
        there = f"there is no such file (relative to {Path.cwd()})"
        yield problem(f"{section}.token_file", config.token_file, there)


def _from_text(text: str) -> dict[str, Any]:
    """`host:port`; a host that has colons itself is in brackets."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("http://").strip("[]")
    if not colon or not host or not port.isdigit():
        raise ValueError(f'{text!r} should be "host:port", for example judge-node:5555')
    return {"ip": host, "port": int(port)}
