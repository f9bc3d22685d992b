"""A Slurm of four nodes on this machine, from the distribution's packages; nothing of it is left at the end.

munged, slurmctld and two slurmds run as this user, in a temporary folder, on free ports. The nodes are named
by loopback addresses, which every machine resolves, so /etc/hosts stays as it is. Processes of a job are
found by their parents (`proctrack/linuxproc`), as on machines without a control group to freeze: what escapes
is found here, by the job's number in its environment. Left out on purpose: accounting, control groups.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd")
START_SECONDS = 3.0  # after which a job that was requeued can be started
NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")  # the groups of a job share none


def find(daemon: str) -> str | None:
    """Where a daemon lies; not all users have it on their path."""
    return shutil.which(daemon, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Cluster:
    """A running Slurm: its folder, and the environment in which its commands find it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, check: bool = True, **variables: str) -> str:
        """Run a command of Slurm's in the repository's root; returns its output."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, what: str, condition: Callable[[], object], timeout: float = 150) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}:\n{self.state()}"
            time.sleep(0.2)

    def end_of(self, number: str, timeout: float = 180) -> dict[str, str]:
        """Wait until a job has ended for good; returns what Slurm says of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait_for(f"the end of job {number}", lambda: self.job(number)["JobState"] in over, timeout)
        return self.job(number)

    def restarts(self, number: str) -> int:
        """How often a job was requeued; its parts more often, where one was not ready to start."""
        return int(self.job(number)["Restarts"])

    def start_again(
        self, number: str, what: str, is_there: Callable[[], object], timeout: float = 150
    ) -> None:
        """Wait for what a requeued job brings about once it runs again, and shorten its waits until then.

        Slurm lets it wait for two minutes: what a start is allowed by has to be younger than what ended the
        one before. A start that comes too early fails, and the job waits once more: on a machine with much
        to do that happens, so a start alone says nothing.
        """
        waiting_since: list[float] = []

        def shorten_until_it_is_there() -> object:
            parts = [number, str(int(number) + 1)] if "HetJobId" in self.job(number) else [number]
            if any(self.job(part)["JobState"] != "PENDING" for part in parts):
                waiting_since.clear()
                return is_there()
            waiting_since.append(time.monotonic())
            if waiting_since[-1] - waiting_since[0] > START_SECONDS:
                waiting_since.clear()
                for part in parts:
                    self.run("scontrol", "update", f"JobId={part}", "StartTime=now", check=False)
            return False

        self.wait_for(what, shorten_until_it_is_there, timeout)

    def end_soon(self, number: str) -> None:
        """Give a running job one to two minutes more; Slurm looks every 30 s whether that is over."""
        minutes = int(self.job(number)["RunTime"].split(":")[-2]) + 2
        self.run("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")

    def state(self) -> str:
        """Of the queue, and the last lines of every log."""
        logs = [path for path in self.folder.rglob("*.log") if path.is_file()]
        tails = [
            f"== {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]) for path in logs
        ]
        return "\n".join([self.run("scontrol", "show", "job", check=False), *tails])

    def processes(
        self, *, with_variable: str = "SLURM_CONF", of_value: str | None = None
    ) -> list[psutil.Process]:
        """Processes of this cluster: its daemons, and all that they have started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                is_ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                value = environment.get(with_variable)
                is_meant = value is not None and of_value in (None, value)
                if is_ours and is_meant and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_behind(self, job: str | None = None) -> list[psutil.Process]:
        """Processes of a job of this cluster, or of any."""
        return self.processes(with_variable="SLURM_JOB_ID", of_value=job)

    def cancel_all(self) -> None:
        """End all jobs, those that wait to be started again included."""
        for job in self.run("squeue", "--noheader", "--format=%A").split():
            self.run("scancel", job, check=False)  # a part of a job has ended with its other parts


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A Slurm that takes jobs; it and whatever its jobs started is ended, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="rs_slurm_"))
    folder.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] = f"{environment.get('PATH', '')}:/usr/sbin:/sbin"
    running = Cluster(folder, environment)
    # Whatever ends this process, ends them.
    with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # else pytest ends without a word
    try:
        _configure(folder)
        for name, *arguments in (
            _munged(folder),
            ("slurmctld", "-D", "-i"),
            *(("slurmd", "-D", "-N", node) for node in NODES),
        ):
            log = (folder / f"{name}_{len(daemons)}.out.log").open("wb")
            with log:
                command = [*with_us, find(name) or name, *arguments]
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if name == "munged":
                running.wait_for("munged", (folder / "munge.socket").exists, 20)
        idle = ("sinfo", "--noheader", "--states=idle", "--format=%D")
        running.wait_for("the nodes", lambda: running.run(*idle, check=False).strip() == str(len(NODES)), 60)
        yield running
    finally:
        if len(daemons) > len(NODES) + 1:
            with contextlib.suppress(Exception):
                running.run("scancel", "--quiet", f"--user={_user()}", check=False)
                running.wait_for("the end of all jobs", lambda: not running.left_behind(), 15)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
        for process in running.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, handler)


def _munged(folder: Path) -> tuple[str, ...]:
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {
        "key-file": key.name,
        "socket": "munge.socket",
        "pid-file": "munge.pid",
        "seed-file": "munge.seed",
    }
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    return ("munged", "--foreground", "--force", "--num-threads=2", *options)


def _configure(folder: Path) -> None:
    user, host = _user(), socket.gethostname()
    (folder / "state").mkdir()
    nodes = []
    for node in NODES:
        (folder / node).mkdir()
        nodes.append(f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={free_port()} CPUs=8")
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={free_port()}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        "CredType=cred/munge",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "MpiDefault=none",
        "SlurmdParameters=config_overrides",
        "SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1",
        "KillWait=20",
        "ReturnToService=2",
        "MailProg=/bin/true",
        f"StateSaveLocation={folder}/state",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdSpoolDir={folder}/%n",
        f"SlurmdPidFile={folder}/%n.pid",
        f"SlurmdLogFile={folder}/%n.log",
        *nodes,
        # Slurm's own check of a time limit comes every 30 s; nothing here can make that shorter.
        f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


def _user() -> str:
    return psutil.Process().username()


if __name__ == "__main__":
    with cluster() as up:
        print(f"export SLURM_CONF={up.environment['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
