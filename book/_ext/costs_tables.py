"""Tables and sentences of the page on costs, from the recorded measurements and from the formulas where they end.

The measurements are those of ``benchmarks/scale.py``; the formulas are `gradleak_lib.experiments.costs`. A row
says of itself whether it was measured.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from costs_words import count, exact, label, seconds, size

from gradleak_lib.book.chapters import PROFILES, declared_parameters, profile_parameters, provenance_of
from gradleak_lib.book.results import read_glued
from gradleak_lib.experiments import costs

CROWDS = (10**3, 10**4, 10**5, 10**6)  # users that nobody has simulated here
CATCHES = (10**6, 10**9)  # samples that nobody has fished in
AGGREGATES = (64, 2**10, 2**14, 2**20)
LARGEST, ROUGH = 10**9, 2**26
CLIENT = 64  # samples of one client, where clients count
KEPT = 10  # users kept of each tested update, where not all scores are
PRECISIONS = {"single": torch.float32, "double": torch.float64}
Values = dict[str, Any]


# --- linkability ---


def crowd(link: Values, users: int) -> Values:
    """What so many users take: by the formulas, from the measured prices of an update, a step, an operation."""
    updates = costs.client_updates(users, devices=link["devices"], per_client=link["per_client"])
    known = tested = updates // link["devices"]
    last, features = link["identify"][-1], link["features"]
    per_step, per_operation = costs.fit_step(
        [costs.mlp_operations(costs.BATCH, features, row["users"]) for row in link["steps"]],
        [row["seconds"] for row in link["steps"]],
    )
    epochs = round(last["mlp"]["steps"] / costs.mlp_steps(last["known"], epochs=1))
    block, run = link["blocks"], link["simulation"]
    product = costs.product_operations(block["known"], block["tested"], features)
    planes = costs.svm_operations(last["known"], last["features"], last["users"])
    return {
        "updates": updates,
        "simulation": costs.scaled(run["seconds"], run["updates"], updates),
        "features": costs.tensor_bytes(updates, features),
        "whole": costs.tensor_bytes(updates, link["parameters"]),
        "scores": costs.tensor_bytes(tested, users, bits=64),
        "top": costs.top_bytes(tested, KEPT),
        "epochs": epochs,
        "mlp": costs.mlp_seconds(
            known, features, users, epochs=epochs, per_step=per_step, per_operation=per_operation
        ),
        "svm": costs.scaled(last["svm"]["seconds"], planes, costs.svm_operations(known, features, users)),
        "product": costs.scaled(block["seconds"], product, costs.product_operations(known, tested, features)),
        "means": costs.scaled(block["seconds"], product, costs.product_operations(users, tested, features)),
        "pairs": costs.pairs(updates),
    }


def sizes_of_crowds(values: Values) -> list[list[str]]:
    """Users, their updates, the seconds to make them, and the bytes to keep them."""
    link = values["linkability"]
    run, rows = link["simulation"], [["Users", "Updates", "To simulate", "Last layers", "Whole updates"]]
    for users in (run["users"], *CROWDS):
        at = crowd(link, users)
        known = users == run["users"]
        spent = run["seconds"] if known else at["simulation"]
        cells = [count(at["updates"]), seconds(spent), size(at["features"]), size(at["whole"])]
        rows.append([label(exact(users), known), *cells])
    return rows


def times_of_crowds(values: Values) -> list[list[str]]:
    """Users, and the seconds of each way to recognise them."""
    link = values["linkability"]
    rows = [["Users", "Network", "SVM", "Nearest update", "All scores"]]
    for row in (link["identify"][0], link["identify"][-1], *link["synthetic"]):
        took = [seconds(row[name]["seconds"]) if name in row else "–" for name in ("mlp", "svm", "knn")]
        rows.append([label(exact(row["users"]), True), *took, size(row["tested"] * row["users"] * 8)])
    for users in CROWDS[1:]:
        at = crowd(link, users)
        took = [seconds(at["mlp"]), f"over {seconds(at['svm'])}", seconds(at["product"])]
        rows.append([label(exact(users), False), *took, size(at["scores"])])
    return rows


# --- one-shot imprint ---


def catches(values: Values) -> list[list[str]]:
    """Samples, and what fishing in aggregates of 64 costs and gives."""
    read, small = values["imprint"], values["imprint"]["hosts"][0]
    rows = [["Samples", "Images", "Sent", "Clients compute", "Server reads"]]
    trip = read["fishing"]
    n = trip["aggregate"]
    sent = costs.traffic(trip["samples"], CLIENT, small["model_bytes"])
    reading = costs.aggregates(trip["samples"], n) * small["read_seconds"]
    cells = [count(trip["read"]), size(sent), seconds(trip["seconds"]), seconds(reading)]
    rows.append([label(exact(trip["samples"]), True), *cells])
    for samples in CATCHES:
        sent = costs.traffic(samples, CLIENT, small["model_bytes"])
        spent = costs.scaled(trip["seconds"], trip["samples"], samples)
        reading = costs.aggregates(samples, n) * small["read_seconds"]
        cells = [count(costs.one_shot_images(samples, n)), size(sent), seconds(spent), seconds(reading)]
        rows.append([label(exact(samples), False), *cells])
    return rows


def hosts(values: Values) -> list[list[str]]:
    """Networks behind the imprint, with the price of a sample, and of 10^9 of them."""
    rows = [["Network", "One sample", "Model", f"{exact(LARGEST)} samples", "Sent for them"]]
    for row in values["imprint"]["hosts"]:
        name = {"lenet": "LeNet", "resnet18": "ResNet-18"}[row["host"]]
        sent = costs.traffic(LARGEST, CLIENT, row["model_bytes"])
        total = costs.scaled(row["sample_seconds"], 1, LARGEST)
        title = f"{name}, {row['size']} pixels"
        rows.append(
            [title, seconds(row["sample_seconds"]), size(row["model_bytes"]), seconds(total), size(sent)]
        )
    return rows


def by_aggregate(values: Values) -> list[list[str]]:
    """What 10^9 samples give, by the size of the aggregates that they arrive in."""
    rows = [["Samples in an aggregate", "Aggregates", "Images read"]]
    for n in AGGREGATES:
        caught = costs.one_shot_images(LARGEST, n)
        rows.append([exact(n), count(costs.aggregates(LARGEST, n)), count(caught)])
    return rows


def single(values: Values) -> list[list[str]]:
    """One aggregate that grows: PSNR of a difference of rows, and in how many rounds a sparse row gives an image."""
    read = values["imprint"]
    psnr = {
        (row["precision"], row["samples"]): row["psnr_median"]
        for row in read["quality"]
        if row["variant"] == "cumulative"
    }
    share = {(row["precision"], row["samples"]): row["read"] / row["rounds"] for row in read["near"]}
    last = max(n for _, n in psnr)
    rows = [["Samples", *(f"{what}, {name}" for what in ("Two rows", "Sparse row") for name in PRECISIONS)]]
    for n in sorted({n for _, n in share}):
        start = min(n, last)
        there = [costs.psnr_of_difference(psnr[name, start], start, n) for name in PRECISIONS]
        cells = [f"{value:.0f} dB" if value > 0 else "noise" for value in there]
        cells += [f"{100 * share[name, n]:.0f} %" for name in PRECISIONS]
        rows.append([label(exact(n), n <= last), *cells])
    return rows


# --- profiles ---


def profiles(root: Path, values: Values) -> list[list[str]]:
    """Seconds of all chapters at each profile, and the memory of the largest, where somebody has run it."""
    rows = [["Profile", "All chapters", "Largest process", "Known from"]]
    built = [
        (provenance_of(path), read_glued(path).get("run_memory"))
        for path in sorted((root / "book" / "chapters").glob("[0-9]*.ipynb"))
    ]
    for profile in PROFILES:
        mine = [(run["seconds"], memory) for run, memory in built if run and profile_of(run) == profile]
        recorded = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((root / "results" / profile).glob("[0-9]*.json"))
        ]
        timed = values.get("chapters", {}).get(profile, {}).values()
        found = {
            "this build": mine if len(mine) == len(built) else [],
            "recorded runs": [(one["run"]["seconds"], one["numbers"].get("run_memory")) for one in recorded],
            "the record of costs": [(one["seconds"], one["memory"]) for one in timed],
        }
        source = next((source for source, runs in found.items() if runs), "nobody has recorded it")
        runs = found.get(source, [])
        memory = max((size for _, size in runs if size), default=0)
        cells = [seconds(sum(took for took, _ in runs)) if runs else "not known"]
        rows.append([f"`{profile}`", *cells, f"{memory:.1f} GiB" if memory else "not known", source])
    return rows


def profile_of(run: Values) -> str:
    """The set of parameters that a chapter was executed with."""
    return str(run["parameters"].get("profile", "cpu"))


# What a chapter has more of at the papers' sizes, as products of its parameters.
WORK: dict[str, dict[str, Callable[[Values], float]]] = {
    "01-linkability": {
        "updates of users": lambda p: p["seeds"] * p["users"] * p["rounds"],
        "images that they train on": lambda p: p["seeds"] * p["users"] * p["rounds"] * p["scenes"],
    },
    "02-llg": {"gradients": lambda p: p["batches"] * sum(p["sizes"])},
    "03-inverting-gradients": {
        "steps of the first search": lambda p: p["relu_iterations"] * p["restarts"],
        "steps of the searches on a deep network": lambda p: p["few"] * p["deep_iterations"],
    },
    "04-robbing-the-fed": {
        "pixels behind the one-shot update": lambda p: p["one_shot_samples"] * p["one_shot_size"] ** 2
    },
    "05-mitigations": {
        "updates of users": lambda p: p["seeds"] * p["users"] * p["rounds"],
        "steps of inversion times pixels": lambda p: p["photographs"] * p["iterations"] * p["size"] ** 2,
    },
}


def at_size_of_paper(root: Path, chapter: str) -> Values:
    """The parameters of a chapter at the papers' own sizes."""
    source = root / "notebooks" / f"{chapter}.md"
    return declared_parameters(source) | profile_parameters("paper", source, root)


def work(root: Path) -> list[list[str]]:
    """How many times as much the profile of the papers' sizes asks for as the default, from the parameters alone."""
    rows = [["Chapter", "What is counted", "Times as many"]]
    for chapter, counted in WORK.items():
        given = declared_parameters(root / "notebooks" / f"{chapter}.md")
        asked = at_size_of_paper(root, chapter)
        for what, product in counted.items():
            rows.append([f"[](chapters/{chapter}.ipynb)", what, f"{product(asked) / product(given):,.0f}"])
    return rows


# --- sentences ---


def facts(root: Path, values: Values, source: dict[str, str]) -> dict[str, str]:
    """Numbers of sentences, by name."""
    asked = at_size_of_paper(root, "04-robbing-the-fed")
    samples, side = asked["one_shot_samples"], asked["one_shot_size"]
    resnet = values["imprint"]["hosts"][-1]
    return {
        **{name: source[name] for name in ("date", "device", "platform", "commit")},
        "load": f"{min(values['load']):.1f} to {max(values['load']):.1f}",
        "minutes": f"{values['minutes']:.0f}",
        "clock": values["clock"],
        "environment": size(values["environment_bytes"]),
        "paper_images": size(costs.tensor_bytes(samples, 3 * side**2)),
        "paper_gradient": seconds(costs.scaled(resnet["sample_seconds"], 1, samples)),
        **of_users(values["linkability"]),
        **of_fishing(values["imprint"]),
        **of_precision(values["imprint"]),
    }


def of_users(link: Values) -> dict[str, str]:
    """Numbers about linkability."""
    at, half, metric = crowd(link, CROWDS[-1]), link["identify"][-2:], link["metric"][-1]
    users = [row["users"] for row in half]
    run, most = link["simulation"], link["synthetic"][-1]
    return {
        "images": str(link["images"]),
        "per_client": str(link["per_client"]),
        "parameters": count(link["parameters"]),
        "features": str(link["features"]),
        "sequential": seconds(link["engines"]["sequential"]),
        "vectorized": seconds(link["engines"]["vectorized"]),
        "update": seconds(run["seconds"] / run["updates"]),
        "epochs": str(at["epochs"]),
        "half_users": count(users[0]),
        "epoch_users": count(users[-1]),
        **{
            f"growth_{name}": f"{costs.growth(users, [row[name]['seconds'] for row in half]):.1f}"
            for name in ("mlp", "svm")
        },
        "features_least": str(link["identify"][0]["features"]),
        "neighbours_users": count(most["users"]),
        "neighbours_slower": f"{most['knn']['seconds'] / crowd(link, most['users'])['product']:.1f}",
        **{f"ap_{name}": f"{100 * half[-1][name]['ap']:.0f}" for name in ("mlp", "svm", "knn")},
        "million_simulation": seconds(at["simulation"]),
        "million_features": size(at["features"]),
        "million_half": size(at["features"] / 2),
        "million_mlp": seconds(at["mlp"]),
        "million_scores": size(at["scores"]),
        "million_product": seconds(at["product"]),
        "million_means": seconds(at["means"]),
        "million_top": size(at["top"]),
        "million_pairs": count(at["pairs"]),
        "million_weights": size(costs.tensor_bytes(costs.HIDDEN, link["features"] + CROWDS[-1])),
        "kept": str(KEPT),
        "metric_seconds": seconds(metric["seconds"]),
        "metric_users": count(metric["users"]),
        "metric_memory": f"{1 + metric['added_bytes'] / metric['scores_bytes']:.1f}",
    }


def of_fishing(read: Values) -> dict[str, str]:
    """Numbers about one image out of each of many aggregates."""
    trip, resnet = read["fishing"], read["hosts"][-1]
    share = resnet["imprint_bytes"] / (resnet["model_bytes"] - resnet["imprint_bytes"])
    more = [100 * (row["sample_seconds"] / row["plain_seconds"] - 1) for row in read["hosts"]]
    return {
        "client": str(CLIENT),
        "fish_aggregate": count(trip["aggregate"]),
        "fish_read": count(trip["read"]),
        "fish_expected": f"{trip['expected']:.1f}",
        "fish_rounds": count(costs.aggregates(trip["samples"], trip["aggregate"])),
        "read_out": seconds(read["hosts"][0]["read_seconds"]),
        "host_batch": count(read["hosts"][0]["samples"]),
        "imprint_least": f"{min(more):.0f}",
        "imprint_most": f"{max(more):.0f}",
        "resnet_share": f"{100 * share:.1f}",
        "resnet_sample": seconds(resnet["sample_seconds"]),
        "resnet_plain": seconds(resnet["plain_seconds"]),
    }


def of_precision(read: Values) -> dict[str, str]:
    """Numbers about one aggregate that grows."""
    rows = {
        kind: [row for row in read["quality"] if (row["variant"], row["precision"]) == kind]
        for kind in (("cumulative", "double"), ("cumulative", "single"), ("sparse", "single"))
    }
    falling, lower, sparse = rows.values()
    top = falling[-1]
    octaves = math.log2(top["samples"] / falling[0]["samples"])
    lost = [(some[0]["psnr_median"] - some[-1]["psnr_median"]) / octaves for some in (falling, lower)]
    rough = next(row for row in read["near"] if row["samples"] == ROUGH and row["precision"] == "single")
    fine = {name: costs.float_resolution(read["value"], dtype) for name, dtype in PRECISIONS.items()}
    there = [
        costs.psnr_of_difference(top["psnr_median"], top["samples"], LARGEST, power=power)
        for power in (1, 1.5)
    ]
    return {
        "doubling": f"{lost[0]:.1f}",
        "doubling_single": f"{lost[1]:.1f}",
        "gain": f"{costs.precision_gain(torch.float32, torch.float64):.0f}",
        "density": f"{read['density']:.1f}",
        "resolution": count(1 / fine["single"]),
        "limit_single": count(limit(read, fine["single"])),
        "limit_double": count(limit(read, fine["double"])),
        "limit_levels_32": count(limit(read, costs.level_resolution(3 * 32 * 32))),
        "limit_levels_224": count(limit(read, costs.level_resolution(3 * 224 * 224))),
        "limit_read": count(costs.largest_read(0.5, torch.float32)),
        "billion_double": f"{there[0]:.0f}",
        "billion_worst": f"{there[1]:.0f}",
        "largest_measured": count(top["samples"]),
        "sparse_alone": str(sum(row["alone"] for row in sparse)),
        "sparse_exact": str(sum(row["exact"] for row in sparse)),
        "sparse_read": str(sum(row["read"] for row in sparse)),
        "sparse_median": f"{sparse[-1]['psnr_median']:.0f}",
        "sparse_last_alone": str(sparse[-1]["alone"]),
        "sparse_last_exact": str(sparse[-1]["exact"]),
        "rough_samples": count(ROUGH),
        "rough_read": f"{100 * rough['read'] / rough['rounds']:.0f}",
        "rough_formula": f"{100 * costs.one_shot_at_resolution(ROUGH, read['density'], fine['single']):.0f}",
        "rounds_error": f"{100 * (math.exp(-1) * (1 - math.exp(-1)) / rough['rounds']) ** 0.5:.1f}",
        "bins": str(top["bins"]),
        "side": str(math.isqrt(read["entries"] // 3)),
        "rounds": str(read["near"][0]["rounds"]),
    }


def limit(read: Values, resolution: float) -> float:
    """Samples of an aggregate whose bin is as wide as this resolution."""
    return costs.largest_aggregate(read["density"], resolution)
