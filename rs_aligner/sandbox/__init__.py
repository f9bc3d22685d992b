"""Programs that nobody trusts, run in processes that can do next to nothing: `Sandbox`.

`zygote` is the process that forks theirs, `jail` how one binds itself (`seccomp`, `view`, `kernel`),
`program` and `testing` what then runs in it, `plain` and `link` how two of them talk. This room knows nothing
of rewards, and what runs in a jail knows the standard library only. Left out on purpose: other languages than
Python, control groups (which need rights that few have), and virtual machines.
"""

from rs_aligner.sandbox.box import Sandbox
from rs_aligner.sandbox.jail import Limits
from rs_aligner.sandbox.jobs import Ended, Job, SandboxError

__all__ = ["Ended", "Job", "Limits", "Sandbox", "SandboxError"]
