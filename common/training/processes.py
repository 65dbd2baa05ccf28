"""Start several processes of a command on this machine, one per GPU; `torchrun` without its noise.

    python -m common.training.processes 2 src/tasks/vqa.py --gpus 0,1 …

For several machines use `torchrun` itself; commands take the same flags under it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from common.errors import AdaptiveError, ConfigError

STARTED = "RANK"  # torchrun and this module set it for every process they start


def wanted_processes(gpus: str | None) -> int:
    """How many processes a list of GPUs such as `0,1` means; 1 where they were started already."""
    if STARTED in os.environ or gpus is None:
        return 1
    return max(1, len([part for part in gpus.split(",") if part.strip()]))


def start_processes(count: int, command: Sequence[str]) -> int:
    """Run `python command…` in so many processes and wait for them.

    Returns:
        0, or the exit status of the process that failed first (128 + n for signal n).
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher's own lines; one logger has a level of its own.
    for name in ("", ".agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        start_method="spawn",
        monitor_interval=0.1,
        shutdown_timeout=60,
    )
    try:
        elastic_launch(config, sys.executable)("-u", *command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"exit status {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"signal {signal.Signals(-failure.exitcode).name}"
        print(
            f"process {rank} of {count} ended with {how}, which ended the run; a run that had "
            "saved goes on with the same command and --resume",
            file=sys.stderr,
        )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        if not words[0].isdecimal() or int(words[0]) < 1 or len(words) < 2:
            raise ConfigError(f"{' '.join(words[:2])}: give a number of processes and a script")
        return start_processes(int(words[0]), words[1:])
    except AdaptiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
