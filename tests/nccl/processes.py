#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a program as the ranks of a job on this machine: processes.py RANKS PROGRAM [ARGUMENT...]. Ranks may share a device:
NCCL_HOSTID lets NCCL take each process for a machine of its own, so they speak over the loopback interface. Exit 77 if every
rank says so, 1 if one fails or has not ended after two minutes."""
import os
import subprocess
import sys
import tempfile
import time


def main(ranks, command):
    with tempfile.TemporaryDirectory(prefix="moiety-nccl-") as folder:
        jobs = []
        for rank in range(ranks):
            own = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "NCCL_HOSTID": f"moiety-{rank}",
                   "MOIETY_NCCL_ID_FILE": f"{folder}/id", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket",
                   "NCCL_IB_DISABLE": 1}
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
            environment.pop("NCCL_COMM_ID", None)
            jobs.append(subprocess.Popen(command, env=environment))
        codes = []
        end = time.monotonic() + 120
        for rank, job in enumerate(jobs):
            try:
                codes.append(job.wait(max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                print(f"rank {rank} has not ended", file=sys.stderr)
                job.kill()
                codes.append(job.wait())
    if all(code == 77 for code in codes):
        return 77
    for rank, code in enumerate(codes):
        if code != 0:
            print(f"rank {rank} ended with {code}", file=sys.stderr)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
