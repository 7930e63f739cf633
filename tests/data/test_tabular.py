import pandas as pd
import pytest
import torch
from data_files import serve
from sklearn.datasets import load_breast_cancer

from gradleak_lib.data import CorruptData, MissingData, TabularDataset, fetch, load_tabular, tabular

COLUMNS = ["age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"]


def small() -> TabularDataset:
    return TabularDataset(
        features=torch.tensor([[0.0, 1, 0, 0], [0.5, 0, 0, 1]]),
        labels=torch.tensor([0, 1]),
        columns=("age", "work=None", "work=State-gov", "work=a=b"),
        classes=("no", "yes"),
        name="small",
        low=(17, 0, 0, 0),
        high=(90, 1, 1, 1),
        whole=("age",),
    )


def test_decode():
    table = small().decode(small().features)
    assert table.to_dict("list") == {"age": [17, 54], "work": ["None", "a=b"]}
    assert table["age"].dtype == "int64"


def test_decode_takes_the_largest_of_a_noisy_row():
    row = torch.tensor([[1.01, -0.1, 0.7, 0.6]], dtype=torch.float64, requires_grad=True)
    assert small().decode(row).iloc[0].tolist() == [91, "State-gov"]


@pytest.mark.parametrize("features", [torch.zeros(4), torch.zeros(2, 3), torch.full((1, 4), torch.nan)])
def test_decode_what_is_no_row(features):
    with pytest.raises(ValueError, match="features"):
        small().decode(features)


def test_subset():
    part = small().subset([1])
    assert len(part) == 1
    assert part.labels.tolist() == [1]
    assert part.columns == small().columns


@pytest.mark.parametrize("changes", [{"labels": torch.zeros(3)}, {"columns": ("age",)}, {"low": ()}])
def test_lengths_must_agree(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TabularDataset(**(vars(small()) | changes))


def test_breast_cancer():
    table, bunch = load_tabular("breast-cancer"), load_breast_cancer()
    assert table.features.shape == (569, 30)
    assert table.features.dtype == torch.float32
    assert torch.equal(table.features.amin(0), torch.zeros(30))
    assert torch.equal(table.features.amax(0), torch.ones(30))
    assert table.labels.tolist() == bunch.target.tolist()
    assert table.classes == ("malignant", "benign")
    assert table.columns == tuple(bunch.feature_names)
    assert table.decode(table.features).to_numpy() == pytest.approx(bunch.data, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"name": "iris"}, "name='iris'"), ({"name": "adult", "split": "x"}, "split='x'")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_tabular(**arguments)


def test_missing(tmp_path):
    with pytest.raises(MissingData, match=r"adult\.data is missing: run `gradleak data adult`"):
        load_tabular("adult", root=tmp_path)


def test_failed_download_leaves_nothing(tmp_path, monkeypatch):
    server = tmp_path / "server"
    server.mkdir()
    (server / "adult.data").write_text("39, State-gov\n")
    with serve(server) as address:
        monkeypatch.setattr(tabular, "_ADULT_URL", address)
        with pytest.raises(MissingData, match=r"adult: the download to .* failed") as caught:
            fetch("adult", root=tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root").iterdir())


def test_real_adult(real_data):
    train, test = load_tabular("adult", root=real_data), load_tabular("adult", root=real_data, split="test")
    assert len(train) == 32_561
    assert len(test) == 16_281
    assert train.columns == test.columns
    assert train.columns[0] == "age"
    assert "workclass=Private" in train.columns
    assert torch.equal(train.features.amin(0), torch.zeros(train.features.shape[1]))
    assert torch.equal(train.features.amax(0), torch.ones(train.features.shape[1]))
    # Each of the 8 categories has one value in every row, in the test file too.
    one_hot = torch.tensor(["=" in column for column in train.columns])
    for table in (train, test):
        assert torch.equal(table.features[:, one_hot].sum(1), torch.full((len(table),), 8.0))
    assert train.classes == ("<=50K", ">50K")
    assert train.labels.bincount().tolist() == [24_720, 7_841]
    assert test.labels.bincount().tolist() == [12_435, 3_846]


@pytest.mark.parametrize(("split", "skip"), [("train", 0), ("test", 1)])
def test_real_adult_decodes_to_the_file(split, skip, real_data):
    table = load_tabular("adult", root=real_data, split=split)
    path = real_data / "adult" / {"train": "adult.data", "test": "adult.test"}[split]
    lines = [line.rstrip(".").split(", ") for line in path.read_text().split("\n")[skip:] if line]
    decoded = table.decode(table.features)
    assert list(decoded.columns[: len(COLUMNS)]) == COLUMNS
    assert decoded.astype(str).to_numpy().tolist() == [line[:-1] for line in lines]
    assert isinstance(decoded, pd.DataFrame)
    assert [table.classes[label] for label in table.labels.tolist()] == [line[-1] for line in lines]


def test_real_adult_damaged(real_data, tmp_path):
    (tmp_path / "adult").mkdir()
    for file in ("adult.data", "adult.test"):
        (tmp_path / "adult" / file).write_bytes((real_data / "adult" / file).read_bytes())
    test = tmp_path / "adult" / "adult.test"
    test.write_bytes(test.read_bytes()[:-10])
    assert len(load_tabular("adult", root=tmp_path)) == 32_561
    with pytest.raises(CorruptData, match=r"adult\.test is corrupt: delete it and run `gradleak data adult`"):
        load_tabular("adult", root=tmp_path, split="test")


def test_download_of_real_adult(real_data, tmp_path, monkeypatch):
    with serve(real_data / "adult") as address:
        monkeypatch.setattr(tabular, "_ADULT_URL", address)
        fetch("adult", root=tmp_path)
        assert len(load_tabular("adult", root=tmp_path)) == 32_561
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adult", "adult.data", "adult.test"]
