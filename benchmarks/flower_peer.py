"""Rounds of federated averaging in Flower's simulation, timed by its server: run by `federated.py`, elsewhere.

    python flower_peer.py '{"case": {...}, "rounds": 12, "cores": 2, "device": "cpu"}'

The last line of the output holds two lists, with a number for each round: wall seconds, from the server's first word
of a round to the moment when it has all clients' answers, before it averages them; and the CPU seconds that all of
Flower's and Ray's processes took meanwhile.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

# Nothing is sent anywhere, and nothing is written to the home folder.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["FLWR_HOME"] = os.path.join(sys.prefix, "flower")

import plain
import psutil
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(part.user + part.system for part in times)


class Timed(FedAvg):
    """Flower's averaging, with a look at the clock."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def configure_train(self, *arguments: Any, **settings: Any) -> Iterable[Message]:
        """Begin a round."""
        self.start = time.perf_counter(), cpu_seconds()
        return super().configure_train(*arguments, **settings)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """End a round: every answer is there."""
        replies = list(replies)
        self.wall.append(time.perf_counter() - self.start[0])
        self.cpu.append(cpu_seconds() - self.start[1])
        if any(reply.has_error() for reply in replies):
            raise RuntimeError(f"a client of round {server_round} failed")
        return super().aggregate_train(server_round, replies)


def client_app(settings: dict[str, Any]) -> ClientApp:
    """Clients that load the model which they get, train it and send it back."""
    case, device = plain.read(settings["case"]), torch.device(settings["device"])
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model, inputs, targets = plain.held(case, device)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        client = int(context.node_config["partition-id"])
        plain.train(model, inputs[client], targets[client], case, device)
        answer = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": case.images}),
        }
        return Message(content=RecordDict(answer), reply_to=message)

    return app


def main(settings: dict[str, Any]) -> None:
    """Simulate, and print the seconds."""
    case, cores = plain.read(settings["case"]), settings["cores"]
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=case.clients,
        min_available_nodes=case.clients,
    )
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(case.model(torch.device("cpu")).state_dict())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=settings["rounds"])

    gpu = settings["device"] != "cpu"
    run_simulation(
        server,
        client_app(settings),
        num_supernodes=case.clients,
        backend_config={
            "init_args": {"num_cpus": cores, "num_gpus": int(gpu), "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 1 / cores if gpu else 0.0},
        },
    )
    if len(strategy.wall) != settings["rounds"]:
        raise RuntimeError(f"{len(strategy.wall)} of {settings['rounds']} rounds came to their end")
    print(json.dumps([strategy.wall, strategy.cpu]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
