"""Several pieces of work at a time, each with its share of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def side_by_side(jobs: Sequence[T], work: Callable[[T, Mapping[str, str]], None], parallel: int) -> None:
    """Do ``work(job, environment)`` for all jobs, ``parallel`` at a time; the first failure takes back those not begun.

    The environment variables are to be set for the processes that a job starts, and give each its share (`shares`).
    """
    if parallel == 1:
        for job in jobs:
            work(job, {})
        return
    free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for share in shares(parallel):
        free.put(share)

    def one(job: T) -> None:
        share = free.get()
        try:
            work(job, share)
        finally:
            free.put(share)

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def shares(parallel: int) -> list[dict[str, str]]:
    """Environment variables that give each of so many processes its GPU, or where there is none its processor cores.

    More processes than GPUs share these in turn.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available():
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(parallel)]
    cores = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return [{"OMP_NUM_THREADS": str(max(1, cores // parallel))}] * parallel
