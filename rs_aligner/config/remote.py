"""The judge as the trainer sees it: where it is, how it is asked, and what to do when it fails.

Left out on purpose: how servers are asked (`rs_aligner/remote/`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from rs_aligner.address import FORMS, Address
from rs_aligner.config.base import (
    Count,
    NotNegative,
    Port,
    Positive,
    Section,
    Share,
    Text,
    authority_problems,
    file_problems,
    problem,
)
from rs_aligner.config.judge import JudgeConfig

_logger = logging.getLogger("rs_aligner")
_PATH = re.compile(r"/[^\s?#]*")


class EndpointConfig(Section):
    """Where a judge listens."""

    name: Text = "reward_model"
    """The model's name on the server."""
    ip: Text = "localhost"
    """Host name or address, without port; an address of IPv6 with or without brackets."""
    port: Port = 5555
    """The port of its HTTP service."""
    https: bool = False
    """Whether it speaks TLS there, as behind a proxy; `https://` in an address says the same."""
    path: str = ""
    """What its paths begin with, where a proxy has put it below one, such as `/rm`."""

    @property
    def address(self) -> Address:
        """Where it is asked."""
        return Address(self.ip.strip("[]"), self.port, self.https, self.path.rstrip("/"))

    @property
    def url(self) -> str:
        """Its address, to be shown."""
        return str(self.address)

    def problems(self, key: str) -> Iterator[str]:
        """Host and path are no more than that."""
        try:
            is_host = Address.parse(self.address.netloc).host == self.address.host.lower()
        except ValueError:
            is_host = False
        if not is_host:
            only = "should be a host's name or address alone; a URL is given in endpoints"
            yield problem(f"{key}.ip", self.ip, only)
        if self.path and not _PATH.fullmatch(self.path):
            yield problem(f"{key}.path", self.path, "should begin with a slash, for example /rm")


class RemoteRMConfig(Section):
    """The judge as the trainer sees it."""

    reward_model: EndpointConfig = EndpointConfig()
    endpoints: tuple[EndpointConfig, ...] = ()
    """Several servers of the same judge; empty for `reward_model`.

    Each is {ip, port, name, https, path} or an address: "host:port", "[::1]:port" or a URL, for example https://judges.example.com/rm.
    """
    ca_file: Text | None = None
    """File (PEM) of the authority that vouches for `https://` servers; null for the system's."""
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
    """Requests under way at once at each server.

    With `in_process` a judge that has a number of its own, as `openai` has `concurrency`, gets so many rows.
    """
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
            raise ValueError(f"should be a list of {FORMS}, or of {{ip, port, name}}")
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

    def problems(self, key: str) -> Iterator[str]:
        """It is clear who is asked, and how."""
        yield from self._servers(key)
        yield from self._in_process(key)
        if self.max_queued < self.max_batch_size:
            least = f"should be at least {key}.max_batch_size = {self.max_batch_size}"
            yield problem(f"{key}.max_queued", self.max_queued, least)
        yield from file_problems(f"{key}.token_file", self.token_file)
        yield from authority_problems(f"{key}.ca_file", self.ca_file)
        if self.ca_file is not None and (self.in_process or not any(one.https for one in self.servers)):
            _logger.warning("%s.ca_file has no effect: no server is asked by https://", key)

    def _servers(self, key: str) -> Iterator[str]:
        addresses = [(endpoint.address, endpoint.name) for endpoint in self.endpoints]
        if len(set(addresses)) < len(addresses):
            yield problem(f"{key}.endpoints", [one.url for one in self.endpoints], "names a server twice")
        one, default = self.reward_model, EndpointConfig()
        for name in ("ip", "port", "https", "path") if addresses else ():
            value = getattr(one, name)
            if value not in (getattr(default, name), *(getattr(other, name) for other in self.endpoints)):
                known = f"{key}.endpoints lists other servers; set one of the two, or add it there"
                yield problem(f"{key}.reward_model.{name}", value, known)

    def _in_process(self, key: str) -> Iterator[str]:
        if self.in_process and self.endpoints:
            yield problem(f"{key}.in_process", True, f"no server is asked; leave {key}.endpoints empty")
        if self.in_process and self.mode == "tokens":
            yield problem(f"{key}.mode", "tokens", "a judge in the same process gets texts; set it to auto")
        if self.in_process and self.judge is None:
            yield f"{key}.judge must be set with {key}.in_process, e.g. {key}.judge.name=exact_answer"
        if self.judge is not None and not self.in_process:
            yield (
                f"{key}.judge is set, but a server brings its own judge: set {key}.in_process=true, or "
                "give it to `rs-aligner serve` as judge"
            )


class WatchedRMConfig(RemoteRMConfig):
    """A judge that is only watched, as the trainer sees it: it decides nothing, so it ends no run."""

    on_failure: Literal["drop", "retry", "abort"] = "drop"
    """What happens to a response without a score, as in `remote_rm`, but for the default; not `abort`.

    A run does not wait long for what it only watches.
    """

    def problems(self, key: str) -> Iterator[str]:
        """Its failures end nothing."""
        yield from super().problems(key)
        if self.on_failure == "abort":
            instead = "a watched judge ends no run; set it to drop or retry"
            yield problem(f"{key}.on_failure", "abort", instead)
        if self.max_failed_fraction != RemoteRMConfig().max_failed_fraction:
            _logger.warning("%s.max_failed_fraction has no effect: a watched judge ends no run", key)


def _from_text(text: str) -> dict[str, Any]:
    """An address as a section."""
    found = Address.parse(text)
    return {"ip": found.host, "port": found.port, "https": found.is_tls, "path": found.path}
