"""Many tasks on this machine or on a cluster, by dask.distributed (the extra ``scale``).

A task is a function of this library with its arguments; what it raises is that task's outcome and nobody else's.
"""

import contextlib
import logging
import pickle
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradleak_lib.book.chapters import UsageError

if TYPE_CHECKING:
    from distributed import Client

IN_FLIGHT = 256  # tasks that the scheduler knows at a time, each with its arguments
# A process keeps the memory that it has freed. Left alone, glibc gives every large tensor back to the system and
# takes it anew, and dask asks for more of that: half of the time of a ResNet at 224 pixels went into clean pages. One
# arena, since those of other threads than the first are always given back, and a worker computes in another.
MEMORY = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": 2**40}


@contextlib.contextmanager
def connect(address: str | None, jobs: int, *, processes: bool) -> Iterator["Client"]:
    """Give a client of the cluster at the address, or of one on this machine.

    Parameters
    ----------
    address
        Of a dask scheduler, such as ``tcp://10.0.0.5:8786``; None: this machine alone.
    jobs
        How many tasks at a time on this machine.
    processes
        Whether each of them needs a process of its own there. One that only waits for another process does not.

    Raises
    ------
    UsageError
        If dask.distributed is not installed, or nobody answers at the address.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError(
            "this needs dask.distributed: pip install -c constraints.txt -e '.[scale]'"
        ) from None
    if address is not None:
        try:
            client = Client(address, timeout=20, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no dask scheduler answers at {address}: {' '.join(str(error).split())}"
            ) from None
        with client:
            if not client.scheduler_info()["workers"]:
                print(f"no worker at {address} yet; it begins with the first", file=sys.stderr)
            yield client
        return
    environment = dask.config.get("distributed.nanny.pre-spawn-environ") | MEMORY
    # Nobody outside needs to look in.
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=jobs if processes else 1,
            threads_per_worker=1 if processes else jobs,
            processes=processes,
            memory_limit=0,
            silence_logs=logging.ERROR,
            dashboard_address=None,
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def each(
    client: "Client", function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]
) -> Generator[tuple[str, Any], None, None]:
    """Yield the key of each task as it ends, and what became of it: what it returned, or the exception.

    What comes first in ``calls`` runs first. A task whose worker is killed goes to another worker by itself. Closing
    the iterator cancels what has not ended.

    Parameters
    ----------
    client
        From `connect`.
    function
        What runs on a worker, found there by its name: a function at the top of a module of this library.
    calls
        Arguments by key. Keys are unique on the whole cluster: two callers may have the same tasks.
    """
    from distributed import as_completed

    pending: dict[str, Any] = {}
    waiting = iter(calls.items())
    done = 0

    def task(packed: bytes) -> "Any":  # an annotation that is no text would travel, too
        # Travels as it stands: on a worker without gradleak the pack fails to open here, as the error of this task.
        import pickle

        call, arguments = pickle.loads(packed)
        return call(*arguments)

    def submit(key: str, arguments: tuple[Any, ...]) -> Any:
        packed = pickle.dumps((function, arguments))
        pending[key] = client.submit(task, packed, key=key, pure=False, priority=-len(pending) - done)
        return pending[key]

    try:
        futures = as_completed([submit(*one) for one in islice(waiting, IN_FLIGHT)], loop=client.loop)
        for future in futures:
            if future.cancelled():
                outcome: Any = RuntimeError("CancelledError: the scheduler has gone")
            else:
                outcome = future.exception() or future.result()
            future.release()  # what is here would be computed again if its worker died while we hold it
            done += 1
            del pending[future.key]
            for one in islice(waiting, 1):
                futures.add(submit(*one))
            yield future.key, outcome
    finally:
        # The scheduler may have gone; what went wrong first is to be said.
        with contextlib.suppress(Exception):
            client.cancel(list(pending.values()), force=True)
