"""Who asks the judge: `client`; what a server has to show first: `trial`; no server at all: `in_process`."""

from rs_aligner.reward.client.client import JudgeUnreachable, RemoteGPTRMClient

__all__ = ["JudgeUnreachable", "RemoteGPTRMClient"]
