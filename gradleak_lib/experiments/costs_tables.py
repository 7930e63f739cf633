"""Tables of what the attacks cost: what was measured and, beyond that, what the formulas of `costs` say.

The functions take values of ``results/<device>/costs.json``, which ``benchmarks/scale.py`` writes, or a part of them.
Seconds, bytes, decibels and shares are plain numbers, and the column ``known`` says whether a row was measured or
extrapolated. `count`, `seconds` and `size` write such numbers for people.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gradleak_lib.experiments import costs

MEASURED, EXTRAPOLATED = "measured", "extrapolated"
PRECISIONS = {"single": torch.float32, "double": torch.float64}
CLIENT = 64  # samples of a client, where clients count
KEPT = 10  # users kept of each tested update, where not all scores are
Values = Mapping[str, Any]


# --- linkability ---


def epochs(link: Values) -> int:
    """Passes over the known updates that the identifying network took with the most users."""
    last = link["identify"][-1]
    return round(last["mlp"]["steps"] / costs.mlp_steps(last["known"], epochs=1))


def crowd(link: Values, users: int) -> dict[str, float]:
    """Seconds and bytes that so many users take, from the measured prices of an update, a step and an operation.

    Parameters
    ----------
    link
        The part ``linkability`` of the record.
    users
        How many, 1 or more.

    Returns
    -------
    dict of str to float
        By the names of the columns of `simulations` and `recognition`.
    """
    updates = costs.client_updates(users, devices=link["devices"], per_client=link["per_client"])
    known = tested = updates // link["devices"]
    last, block, run = link["identify"][-1], link["blocks"], link["simulation"]
    features = link["features"]
    per_step, per_operation = costs.fit_step(
        [costs.mlp_operations(costs.BATCH, features, row["users"]) for row in link["steps"]],
        [row["seconds"] for row in link["steps"]],
    )
    product = costs.product_operations(block["known"], block["tested"], features)
    planes = costs.svm_operations(last["known"], last["features"], last["users"])
    return {
        "updates": updates,
        "to simulate": costs.scaled(run["seconds"], run["updates"], updates),
        "last layers": costs.tensor_bytes(updates, features),
        "whole updates": costs.tensor_bytes(updates, link["parameters"]),
        "network": costs.mlp_seconds(
            known, features, users, epochs=epochs(link), per_step=per_step, per_operation=per_operation
        ),
        "SVM": costs.scaled(last["svm"]["seconds"], planes, costs.svm_operations(known, features, users)),
        "nearest update": costs.scaled(
            block["seconds"], product, costs.product_operations(known, tested, features)
        ),
        "nearest mean": costs.scaled(
            block["seconds"], product, costs.product_operations(users, tested, features)
        ),
        "all scores": costs.tensor_bytes(tested, users, bits=64),
        "best scores": costs.top_bytes(tested, KEPT),
    }


def simulations(link: Values, users: Sequence[int]) -> pd.DataFrame:
    """Updates of crowds: how many, seconds to make them, bytes to keep them; the measured crowd stands first."""
    run = link["simulation"]
    measured = crowd(link, run["users"]) | {"to simulate": run["seconds"]}
    rows = [{"users": run["users"], "known": MEASURED} | measured]
    rows += [{"users": count, "known": EXTRAPOLATED} | crowd(link, count) for count in users]
    columns = ["users", "known", "updates", "to simulate", "last layers", "whole updates"]
    return pd.DataFrame(rows, columns=columns)


def recognition(link: Values, users: Sequence[int]) -> pd.DataFrame:
    """Seconds of each way to recognise the users of a crowd, and bytes of the scores; NaN where nobody measured."""
    names = {"network": "mlp", "SVM": "svm", "nearest update": "knn"}
    rows = [
        {"users": row["users"], "known": MEASURED}
        | {"all scores": costs.tensor_bytes(row["tested"], row["users"], bits=64)}
        | {name: row[key]["seconds"] for name, key in names.items() if key in row}
        for row in (*link["identify"], *link["synthetic"])
    ]
    rows += [{"users": count, "known": EXTRAPOLATED} | crowd(link, count) for count in users]
    columns = ["users", "known", *names, "nearest mean", "all scores", "best scores"]
    return pd.DataFrame(rows, columns=columns)


# --- one-shot imprint ---


def fishing(read: Values, samples: Sequence[int]) -> pd.DataFrame:
    """What one image from each small aggregate costs, and how many there are; the measured trip stands first.

    Parameters
    ----------
    read
        The part ``imprint`` of the record.
    samples
        Further numbers of samples.
    """
    trip, host = read["fishing"], read["hosts"][0]
    rows = []
    for total, known in ((trip["samples"], MEASURED), *((one, EXTRAPOLATED) for one in samples)):
        expected = costs.one_shot_images(total, trip["aggregate"])
        row = {
            "samples": total,
            "known": known,
            "images": trip["read"] if known == MEASURED else expected,
            "sent": costs.traffic(total, CLIENT, host["model_bytes"]),
            "clients compute": costs.scaled(trip["seconds"], trip["samples"], total),
            "server reads": costs.aggregates(total, trip["aggregate"]) * host["read_seconds"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def networks(read: Values, samples: int) -> pd.DataFrame:
    """Networks behind the imprint: what one sample was measured to cost, and what so many would."""
    names = {"lenet": "LeNet", "resnet18": "ResNet-18"}
    rows = [
        {
            "network behind": f"{names[row['host']]}, {row['size']} pixels",
            "one sample": row["sample_seconds"],
            "model": row["model_bytes"],
            "all samples": costs.scaled(row["sample_seconds"], 1, samples),
            "sent": costs.traffic(samples, CLIENT, row["model_bytes"]),
        }
        for row in read["hosts"]
    ]
    return pd.DataFrame(rows)


def by_aggregate(samples: int, sizes: Sequence[int]) -> pd.DataFrame:
    """Images expected from so many samples, by the size of the aggregates in which they arrive."""
    rows = [
        {
            "samples in each": n,
            "aggregates": costs.aggregates(samples, n),
            "images read": costs.one_shot_images(samples, n),
        }
        for n in sizes
    ]
    return pd.DataFrame(rows)


def one_aggregate(read: Values) -> pd.DataFrame:
    """One aggregate that grows: decibels of a difference of two rows, and how often a sparse row gives an image.

    ``known`` is about the decibels: the shares come from a simulation in all rows.
    """
    psnr = {
        (row["precision"], row["samples"]): row["psnr_median"]
        for row in read["quality"]
        if row["variant"] == "cumulative"
    }
    share = {(row["precision"], row["samples"]): row["read"] / row["rounds"] for row in read["near"]}
    last, rows = max(n for _, n in psnr), []
    for n in sorted({n for _, n in share}):
        start = min(n, last)
        row = {"samples": n, "known": MEASURED if n == start else EXTRAPOLATED}
        for name in PRECISIONS:
            row[f"two rows, {name}"] = costs.psnr_of_difference(psnr[name, start], start, n)
            row[f"sparse row, {name}"] = share[name, n]
        rows.append(row)
    columns = [f"{what}, {name}" for what in ("two rows", "sparse row") for name in PRECISIONS]
    return pd.DataFrame(rows, columns=["samples", "known", *columns])


# --- the book's chapters ---


def profiles(folder: Path, timed: Values, names: Sequence[str], *, without: str) -> pd.DataFrame:
    """Seconds of all chapters but one at each profile and the GiB of the largest process, where somebody has run it.

    Parameters
    ----------
    folder
        Where ``<profile>/<chapter>.json`` lie, the recorded runs of chapters.
    timed
        The part ``chapters`` of the record of costs, for profiles without such runs.
    names
        The profiles.
    without
        The chapter that is left out: the one that shows this.
    """
    rows = []
    for profile in names:
        paths = (folder / profile).glob("[0-9]*.json")
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stem != without]
        took = [one["run"]["seconds"] for one in runs]
        memory = [one["numbers"]["run_memory"] for one in runs if "run_memory" in one["numbers"]]
        source = "nobody has run it"
        if runs:
            source = f"recorded runs, the last of {max(one['run']['date'] for one in runs)[:10]}"
        elif profile in timed:
            took = [one["seconds"] for name, one in timed[profile].items() if name != without]
            source = "the measurements of this page"
        row = {
            "profile": profile,
            "all chapters": sum(took) if took else math.nan,
            "largest process": max(memory, default=math.nan),
            "known from": source,
        }
        rows.append(row)
    return pd.DataFrame(rows)


# --- numbers for people ---


def count(value: float) -> str:
    """A count in words that stay short: ``9,600``, ``10 million``, ``7.2 × 10¹³``."""
    if value < 10**6:
        return f"{value:,.0f}"
    for limit, unit in ((1e9, "million"), (1e12, "billion")):
        if value < limit:
            return f"{value / (limit / 1000):.3g} {unit}"
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.1f} × 10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def seconds(value: float) -> str:
    """A time with two digits and the unit that suits it."""
    units = {1e-6: "µs", 1e-3: "ms", 1: "s", 60: "min", 3600: "h", 86400: "days", 31557600: "years"}
    unit = max((unit for unit in units if value >= unit), default=1e-6)
    return f"{_two(value / unit)} {units[unit]}"


def size(value: float) -> str:
    """Bytes with two digits, in decimal units."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(len(units) - 1, int(math.log10(max(value, 1)) // 3))
    return f"{_two(value / 1000**power)} {units[power]}"


def _two(value: float) -> str:
    """Two digits, never as a power of ten."""
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"
