"""A judge as a service, or the examination of one: from a checked config to an exit status.

What `examples/serve_reward.py` does. Left out on purpose: the server (`reward/server`).
"""

from __future__ import annotations

from rs_aligner.config import ServeRewardConfig


def serve(config: ServeRewardConfig) -> int:
    """Serve the judge until SIGTERM or SIGINT, or with `check` examine it and end.

    Args:
        config: a checked config.

    Returns:
        An exit status: 0, or 1 for a judge that has not passed its examination.

    Raises:
        ValueError: a judge, a tokenizer or an address that cannot be used; before anything is served.
        RuntimeError: the server did not start, or broke again and again.
        SystemExit: with status 0, after a signal.
    """
    from rs_aligner.reward.server import serve as server  # slow, so only once the config is known to be right

    if config.check:
        return 0 if server.examine(config) else 1
    server.serve(config)
    return 0
