"""A Slurm cluster of the tests' own on this machine: its own ports, files and keys.

slurmctld with twenty slurmd, each posing as a node of four cpus, munged, and for accounting
slurmdbd over MariaDB. Clients find it by ``env``, and never the machine's own cluster. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

START_SECONDS = 60.0
STOP_SECONDS = 20.0
NODES = 18
GPU_NODES = 2
NODE_CPUS = 4
NODE_MEMORY_MB = 4000
MIN_JOB_AGE_SECONDS = 300

# A credential's life is also how long a requeued job waits before it may start again.
_CONFIGURATION = r"""
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20,socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MessageTimeout=10
MinJobAge={min_job_age}
MaxArraySize=1001
MaxJobCount=20000
EnforcePartLimits=NO
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
{accounting}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
    CPUs={cpus} RealMemory={memory} State=UNKNOWN
NodeName=g[1-{gpu_nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{gpu_first}-{gpu_last}] \
    CPUs={cpus} RealMemory={memory} Gres=gpu:a100:4 State=UNKNOWN
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=gpu Nodes=g[1-{gpu_nodes}] MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=low Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
PartitionName=short Nodes=n[1-2] MaxTime=1 State=UP PriorityTier=10
PartitionName=shut Nodes=n[1-2] MaxTime=INFINITE State=DOWN
PartitionName=closed Nodes=n[1-2] MaxTime=INFINITE State=UP AllowGroups=nogroup
"""

_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={directory}/munge.socket
AccountingStorageEnforce=associations,limits,qos
"""

_DATABASE_DAEMON = """
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={directory}/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def free_ports(number: int) -> int:
    """The first of ``number`` consecutive ports that nothing listens on: below those from which the
    kernel takes one for whoever connects, between our looking and our listening."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        first = random.randrange(10_000, lowest - number)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


class SlurmCluster:
    """From ``start`` to ``stop``. Its jobs may run as any user of this machine."""

    def __init__(
        self, *, nodes: int = NODES, accounting: bool = True, min_job_age: int = MIN_JOB_AGE_SECONDS
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.directory.chmod(0o755)
        self.nodes = nodes
        self.accounting = accounting
        self.min_job_age = min_job_age
        self.configuration = self.directory / "slurm.conf"
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SQUEUE", "SCANCEL", "SACCT"))
        } | {"SLURM_CONF": str(self.configuration)}
        self.reach = {"SLURM_CONF": str(self.configuration)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # Life

    def start(self) -> None:
        """Until every node is idle."""
        for name in ("state", "spool", "run"):
            (self.directory / name).mkdir(mode=0o755)
        self._start_munge()
        total = 1 + self.nodes + GPU_NODES
        first = free_ports(total)
        accounting = self._start_accounting() if self.accounting else ""
        self._write_configuration(first, accounting)
        if self.accounting:
            self.command("sacctmgr", "-i", "add", "cluster", "tests")
            self.command("sacctmgr", "-i", "add", "account", "lab")
            self.command("sacctmgr", "-i", "add", "user", "root,nobody,games", "account=lab")
        self.start_controller()
        for node in self.node_names:
            self.start_node(node)
        self.until(lambda: self._idle() == len(self.node_names), "every node is idle")

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)] + [
            f"g{number}" for number in range(1, GPU_NODES + 1)
        ]

    def stop(self) -> None:
        """End it with its jobs, and leave nothing of it: nothing that it would save is needed."""
        for process in self._daemons.values():
            process.kill()
        for process in self._daemons.values():
            process.wait()
        self._daemons.clear()
        self._end_orphans()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_orphans(self) -> None:
        """The keepers of job steps outlive their slurmd; they, and all that descends from them."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.configuration):
                    for found in [*process.children(recursive=True), process]:
                        if found.pid != os.getpid():
                            found.kill()

    # Daemons

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        self.until(self.answers, "slurmctld answers")

    def stop_controller(self) -> None:
        """As an administrator does it: its state is saved."""
        self._end("slurmctld")

    def signal_controller(self, number: int) -> None:
        self._daemons["slurmctld"].send_signal(number)

    def start_node(self, node: str) -> None:
        (self.directory / "spool" / node).mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.configuration))

    def kill_node(self, node: str) -> None:
        """Its slurmd dies; the jobs' processes go on."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def stop_accounting(self) -> None:
        self._end("slurmdbd")

    def start_accounting(self) -> None:
        self._start("slurmdbd", "slurmdbd", "-D")

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        process = self._daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self._start(
            "munged",
            *("munged", "--foreground", "--force"),
            f"--key-file={key}",
            f"--socket={self.directory}/munge.socket",
            f"--pid-file={self.directory}/run/munged.pid",
            f"--seed-file={self.directory}/munge.seed",
            f"--log-file={self.directory}/munged.log",
        )
        self.until((self.directory / "munge.socket").exists, "munged listens")

    def _start_accounting(self) -> str:
        database = self.directory / "database"
        database.mkdir()
        shutil.chown(database, "mysql")
        port, database_port = free_ports(1), free_ports(1)
        password = secrets.token_hex(8)
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", f"--datadir={database}"),
                *("--user=mysql", "--auth-root-authentication-method=normal"),
                "--skip-test-db",
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
        )
        first = self.directory / "first.sql"
        first.write_text(
            "CREATE DATABASE slurm_acct_db;"
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
        )
        self._start(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={database}"),
            *("--bind-address=127.0.0.1", f"--port={database_port}"),
            *(f"--socket={database}/socket", f"--pid-file={database}/pid"),
            *("--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"),
        )
        client = ("mariadb", "--no-defaults", "-u", "root", f"--socket={database}/socket")
        self.until(lambda: self._runs(*client, "-e", "SELECT 1"), "MariaDB answers")
        subprocess.run([*client, "-e", f"source {first}"], check=True, timeout=START_SECONDS)
        configuration = self.directory / "slurmdbd.conf"
        configuration.write_text(
            _DATABASE_DAEMON.format(
                directory=self.directory, port=port, database_port=database_port, password=password
            )
        )
        configuration.chmod(0o600)
        # slurmdbd looks for its configuration beside slurm.conf.
        accounting = _ACCOUNTING.format(directory=self.directory, port=port)
        self._write_configuration(1, accounting)
        self.start_accounting()
        self.until(lambda: self._runs("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers")
        return accounting

    def _write_configuration(self, first: int, accounting: str) -> None:
        self.configuration.write_text(
            _CONFIGURATION.format(
                directory=self.directory,
                host=socket.gethostname().partition(".")[0],
                port=first,
                accounting=accounting,
                nodes=self.nodes,
                first=first + 1,
                last=first + self.nodes,
                gpu_nodes=GPU_NODES,
                gpu_first=first + self.nodes + 1,
                gpu_last=first + self.nodes + GPU_NODES,
                cpus=NODE_CPUS,
                memory=NODE_MEMORY_MB,
                min_job_age=self.min_job_age,
            )
        )
        devices = self.directory / "dev"
        devices.mkdir(exist_ok=True)
        for number in range(4):
            (devices / f"nvidia{number}").touch()
        (self.directory / "gres.conf").write_text(
            f"NodeName=g[1-{GPU_NODES}] Name=gpu Type=a100 File={devices}/nvidia[0-3]\n"
        )
        (self.directory / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")

    # Use

    def answers(self) -> bool:
        return self._runs("scontrol", "ping") and "UP" in self.command("scontrol", "ping")

    def _runs(self, *command: str) -> bool:
        done = subprocess.run(
            command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=START_SECONDS,
            check=False,
        )
        return done.returncode == 0

    def _idle(self) -> int:
        """How many nodes are idle; sinfo names one once for each of its partitions."""
        return len(set(self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()))

    def command(self, *command: str, user: str | None = None) -> str:
        """A command of Slurm's, ended; returns what it printed."""
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.directory,
            user=user,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def fail_node(self, node: str) -> None:
        """An administrator declares it lost: its jobs fail, or are requeued."""
        self.command("scontrol", "update", f"node={node}", "state=down", "reason=test")

    def limit_jobs(self, user: str, number: int) -> None:
        """How many jobs a user may submit; -1: any number. The controller hears of it at once."""
        self.command("sacctmgr", "-i", "modify", "user", user, "set", f"maxsubmitjobs={number}")

    def clear(self) -> None:
        """End all jobs, and have all nodes and partitions work."""
        self.command("scancel", "--user=root")
        self.command("scancel", "--user=nobody")
        self.until(lambda: not self.command("squeue", "-h", "-o", "%i").split(), "all jobs end")
        for node in self.command("sinfo", "-h", "-N", "-R", "-o", "%N").split():
            self.command("scontrol", "update", f"node={node}", "state=resume")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; see {self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """The last words of the daemons that matter, and which have ended."""
        ended = [name for name, process in self._daemons.items() if process.poll() is not None]
        words = [f"ended: {ended}"]
        if self.configuration.exists():
            said = subprocess.run(
                ("sinfo", "-N", "-o", "%N %T %E"),
                env=self.env,
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
            words.append(said.stdout + said.stderr)
        for name in ("slurmctld.out", "slurmctld.log", "slurmdbd.log", "munged.out", "n1.out"):
            path = self.directory / name
            if path.exists():
                words.append(f"{name}: {path.read_text(errors='replace')[-1500:]}")
        return "\n".join(words)
