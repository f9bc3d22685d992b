"""What a server has to show before it is asked: that it is ready, what it takes, that it scores, who it is.

So it is at the start, and each time that a server comes back. One row has to be scored: a wrong token, or
servers that are not the same judge, show only then, and a server that says that it is ready may still not
score. At the start the row is made up, and only sent to a judge with a fingerprint or a token; later it is
one that was scored before. The first server that passes decides for the whole run how rows are sent and which
judge scores them; others must agree.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.hints import hint
from rs_aligner.remote.kserve import Arrays
from rs_aligner.remote.retry import is_transient
from rs_aligner.remote.triton import Connection, Offer
from rs_aligner.reward.protocol import (
    JUDGE_TOKEN,
    Mode,
    TextRow,
    fingerprint_of,
    text_request,
    text_row,
    token_request,
    token_row,
)

if TYPE_CHECKING:
    from rs_aligner.config import RemoteRMConfig
    from rs_aligner.rollout import Prompt, Rollout


class JudgeUnreachable(ConnectionError):
    """No judge answers at the configured address; the message says what to change."""


class Trial:
    """The trial of each server, and what the first that passed it decided.

    Args:
        cfg: the `remote_rm` part of the config.
        has_token: whether requests carry an access token.
    """

    def __init__(self, cfg: RemoteRMConfig, *, has_token: bool) -> None:
        self._cfg = cfg
        self._has_token = has_token
        self._lock = threading.Lock()
        self._mode: Mode | None = None
        self._fingerprint: tuple[str, str] | None = None  # and whose it is
        self._take_ids: set[Endpoint[Connection]] = set()
        self.good_row: Any = None  # an encoded row that was scored

    @property
    def fingerprint(self) -> str | None:
        """The judge's; None before the first trial, and for a judge that has none."""
        return self._fingerprint[0] if self._fingerprint and self._fingerprint[0] else None

    def __call__(self, endpoint: Endpoint[Connection], connection: Connection, ready_timeout: float) -> None:
        """Try a server out.

        Raises:
            TransportError: it does not score now, and may later.
            JudgeUnreachable: it will not score before something is changed.
            ValueError: it is not the judge that the config, or the other servers, make it.
        """
        try:
            problem = connection.problem(ready_timeout)
        except TransportError as error:
            raise JudgeUnreachable(explained(endpoint, error)) from error
        if problem is not None:
            raise TransportError(problem, "unreachable")
        offer = connection.offer(ready_timeout)
        mode = self._choose(endpoint, offer)
        fingerprint = ""
        if "fingerprint" in offer.outputs or self._has_token or self.good_row is not None:
            fingerprint = self._ask(endpoint, connection, mode, offer)
        with self._lock:
            self._mode = self._mode or mode
            if mode != self._mode:
                raise ValueError(
                    f"the judge at {endpoint.url} takes {mode}, other servers of remote_rm.endpoints "
                    f"{self._mode}; set remote_rm.mode, or start all servers alike"
                )
            self._fingerprint = self._fingerprint or (fingerprint, endpoint.url)
            known, whose = self._fingerprint
        if fingerprint != known:
            earlier = "was when the run started" if whose == endpoint.url else f"at {whose} is"
            raise ValueError(
                f"the judge at {endpoint.url} is not the one that {earlier}: their fingerprints are "
                f"{fingerprint or 'absent'} and {known or 'absent'}; start all servers of a run with the "
                "same judge, settings and weights"
            )
        self._note_ids(endpoint, offer)

    def trust(self, endpoint: Endpoint[Connection], offer: Offer, fingerprint: str) -> None:
        """Take a judge of this process for what it says that it is; no row is made up for it.

        Raises:
            ValueError: it does not take what the config says.
        """
        self._mode = self._choose(endpoint, offer)
        self._fingerprint = fingerprint, endpoint.url
        self._note_ids(endpoint, offer)

    def takes_ids(self, endpoint: Endpoint[Connection]) -> bool:
        """Whether a server takes an id for each row, and gives it back."""
        return endpoint in self._take_ids

    def encode(self, prompt: Prompt, rollout: Rollout) -> Any:
        """A row as it will be sent.

        Raises:
            ValueError, TypeError: it cannot be sent.
        """
        if self._mode == "text":
            return text_row(prompt, rollout)
        return token_row(prompt, rollout, self._cfg.pad_to_length)

    def request(
        self, rows: Sequence[Any], row_ids: Sequence[bytes] | None, mode: Mode | None = None
    ) -> Arrays:
        """A request for encoded rows."""
        if (mode or self._mode) == "text":
            return text_request(rows, row_ids)
        return token_request(rows, row_ids, pad_to_length=self._cfg.pad_to_length)

    def _note_ids(self, endpoint: Endpoint[Connection], offer: Offer) -> None:
        with self._lock:
            note = self._take_ids.add if "row_ids" in offer.inputs & offer.outputs else self._take_ids.discard
            note(endpoint)

    def _ask(self, endpoint: Endpoint[Connection], connection: Connection, mode: Mode, offer: Offer) -> str:
        """Let one row be scored, whatever the score; returns the judge's fingerprint, empty without one."""
        made_up: Any = TextRow(b"", b"", b"{}") if mode == "text" else (0,)
        row = made_up if self.good_row is None else self.good_row
        ids = [b"trial"] if "row_ids" in offer.inputs else None
        try:
            answer = connection.infer(self.request([row], ids, mode), self._cfg.request_timeout)
        except TransportError as error:
            # Our server looks at the token itself; what it raises, Triton calls an error of its own (500).
            about_token = "access token" in str(error)
            if error.kind == "refused" and (about_token or not is_transient(error)):
                raise JudgeUnreachable(explained(endpoint, error)) from error
            if error.kind == "refused" and row is made_up and "fingerprint" not in offer.outputs:
                return ""  # a judge of which nothing is known may well break on a row that was made up
            raise
        return fingerprint_of(answer, 1)

    def _choose(self, endpoint: Endpoint[Connection], offer: Offer) -> Mode:
        """Text or tokens, as configured or as the model's inputs allow."""
        takes: dict[Mode, bool] = {"text": "prompts" in offer.inputs, "tokens": "tokens" in offer.inputs}
        possible = [mode for mode, fits in takes.items() if fits]
        if self._cfg.mode == "auto" and possible:
            return possible[0]
        if self._cfg.mode != "auto" and self._cfg.mode in possible:
            return self._cfg.mode
        raise ValueError(
            f"remote_rm.mode={self._cfg.mode} does not fit the judge at {endpoint.url}: its inputs are "
            f"{', '.join(sorted(offer.inputs))}; "
            + (f"set remote_rm.mode={possible[0]} or auto" if possible else "it is no judge")
        )


def explained(endpoint: Endpoint[Connection], error: Exception) -> str:
    """What went wrong, where, and the key that may mend it."""
    told = hint(error, "remote_rm", JUDGE_TOKEN)
    if not told and isinstance(error, TransportError) and error.kind == "refused" and not is_transient(error):
        told = "; see remote_rm.mode, remote_rm.pad_to_length and remote_rm.max_batch_size"
    return f"{endpoint.url}: {error}{told}"


def unreachable(cfg: RemoteRMConfig, problem: str) -> JudgeUnreachable:
    """The error of a client whose servers are all out at the start: what was asked, and what may mend it."""
    asked = ", ".join(f"{server.url}/v2/models/{server.name}" for server in cfg.servers)
    where = "remote_rm.endpoints" if cfg.endpoints else "remote_rm.reward_model.ip, .port or .name"
    one = cfg.servers[0]
    return JudgeUnreachable(
        f"no judge is ready at {asked} after {cfg.startup_timeout:g} s: {problem}. Start one with "
        f"`rs-aligner serve inference.port={one.port} inference.model_name={one.name} "
        f"judge.function=path/to/file.py:name`, or correct {where}, or raise remote_rm.startup_timeout "
        "if it is still starting"
    )
