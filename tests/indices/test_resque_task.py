"""RESQUE_task against the published values, and everything that the one call takes and refuses."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import resque_ext
from resque_ext import resque_task
from resque_ext.indices.resque_task import class_means, one_minus_ari, resque_task_of_file

GOLDEN = Path(__file__).parents[1] / "golden"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = ["task_0", "task_1", "task_2", "task_3"]
on_cases = pytest.mark.parametrize("name", CASES)
on_backends = pytest.mark.parametrize("name_of_backend", ["native", "torch"])


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def blobs(n=300, d=6, classes=4, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.standard_normal((classes, d))[labels] * spread + rng.standard_normal((n, d)), labels


# --- The published values


@on_cases
@on_backends
def test_published_values(name, name_of_backend):
    """No row of these has two nearest centres that float32 could not tell apart: no tie to show."""
    case = load(name)
    with resque_ext.backend(name_of_backend):
        result = resque_task(case["features"], case["labels"], chance=0)
    assert abs(result.value - case["one_minus_ari"]) <= 1e-12
    np.testing.assert_array_equal(result.cluster_labels, case["cluster_labels"])
    assert result.n_iter == case["n_iter"]
    assert abs(result.inertia / case["inertia"] - 1) < 1e-6  # the published one is float32
    assert result.value == 1 - result.ari == float(result)
    assert result.converged


@on_cases
def test_published_values_of_kmeans_plus_plus(name):
    """Draws and trials are scikit-learn's: the same seed starts from the same rows."""
    case = load(name)
    result = resque_task(case["features"], case["labels"], init="k-means++", seed=0)
    assert abs(result.value - case["one_minus_ari_kmeanspp"]) <= 1e-12


@on_cases
@pytest.mark.parametrize("device", DEVICES)
def test_published_values_on_every_device(device, name):
    """From tensors there, and from host memory that is sent there segment by segment."""
    case = load(name)
    x, y = (torch.tensor(case[key]) for key in ("features", "labels"))
    for result in (resque_task(x.to(device), y.to(device)), resque_task(x, y, device=device)):
        assert abs(result.value - case["one_minus_ari"]) <= 1e-12
        np.testing.assert_array_equal(result.cluster_labels, case["cluster_labels"])
        assert result.n_iter == case["n_iter"]


@on_cases
def test_what_the_result_says_of_itself(name):
    case = load(name)
    result = resque_task(case["features"], case["labels"])
    classes, index = np.unique(case["labels"], return_inverse=True)
    table = np.zeros((len(classes), len(result.centers)), np.int64)
    np.add.at(table, (index, result.cluster_labels), 1)
    np.testing.assert_array_equal(result.table, table)
    np.testing.assert_array_equal(result.classes, classes)
    assert abs(result.ari - adjusted_rand_score(case["labels"], result.cluster_labels)) < 1e-12
    x = case["features"].astype(np.float64)
    apart = ((x[:, None] - result.centers) ** 2).sum(-1)
    np.testing.assert_array_equal(apart.argmin(1), result.cluster_labels)
    np.testing.assert_allclose(apart.min(1).sum(), result.inertia, rtol=1e-12)
    low, high = result.confidence_interval
    assert low < result.value < high
    assert 0 < result.std_error < 0.05


def test_result_is_plain_and_frozen():
    x, y = blobs(60)
    result = resque_task(x, y, baselines=True)
    with pytest.raises(FrozenInstanceError):
        result.value = 0
    told = json.loads(json.dumps(result.to_dict()))
    assert told["value"] == result.value
    assert told["confidence_interval"] == list(result.confidence_interval)
    assert told["table"] == result.table.tolist()
    assert told["nearest_class_mean_error"] == result.nearest_class_mean_error
    assert result.layer is None
    assert resque_task(x, y).linear_probe_error is None  # not asked for
    assert resque_task(x[:1], y[:1]).std_error is None
    assert resque_task(x[:1], y[:1]).confidence_interval is None


# --- Labels, classes, starts


def test_labels_of_any_values():
    x, y = blobs()
    plain = resque_task(x, y)
    for values in (
        [7, -3, 10**9, 5],
        [3, 2, 1, 0],
        [9, 300, -7, 2],
        [-(2**62), 0, 2**62, 1],
        [100, 101, 102, 103],
    ):
        result = resque_task(x, np.array(values)[y])
        assert result.value == plain.value
        np.testing.assert_array_equal(result.classes, np.sort(values))
        assert result.table.sum() == len(x)
    for kind in (np.int32, np.uint8, np.int16):
        assert resque_task(x, y.astype(kind)).value == plain.value
    assert resque_task(torch.tensor(x), torch.tensor(y)).value == plain.value


def test_one_class_and_one_row():
    x, _ = blobs(50)
    result = resque_task(x, np.full(50, 9))
    assert (result.value, result.ari) == (0.0, 1.0)
    assert result.n_iter == KMeans(1, init=x.mean(0)[None], n_init=1).fit(x).n_iter_
    assert not result.cluster_labels.any()
    np.testing.assert_allclose(result.centers[0], x.mean(0), rtol=0, atol=1e-13)
    assert resque_task(x[:1], np.array([4])).value == 0


def test_every_row_a_class_of_its_own():
    x, _ = blobs(30)
    result = resque_task(x, np.arange(30))
    assert result.value == 0
    assert result.inertia == 0


def test_number_of_clusters():
    x, y = blobs(200, classes=4)
    start = x[:7]
    for init, clusters in (("k-means++", 7), (start, 7), (start, None), (torch.tensor(start), 7)):
        result = resque_task(x, y, clusters, init)
        assert result.table.shape == (4, 7)
        assert result.centers.shape == (7, 6)
    assert len(resque_task(x, y, 4).centers) == 4
    with pytest.raises(ValueError, match="num_classes: expected 4, the number of distinct labels"):
        resque_task(x, y, 5)
    with pytest.raises(ValueError, match="num_classes: expected 7, the number of centres of init"):
        resque_task(x, y, 4, start)


def test_start_from_centres():
    x, y = blobs(150)
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    plain = resque_task(x, y)
    given = resque_task(x, y, init=means)
    np.testing.assert_array_equal(given.cluster_labels, plain.cluster_labels)
    assert given.n_iter == plain.n_iter
    assert one_minus_ari(x, y) == one_minus_ari(x, y, torch.tensor(means)) == plain.value
    np.testing.assert_allclose(class_means(x, y), means, rtol=0, atol=1e-13)
    half = resque_task(x, y, init=torch.tensor(means).half())
    assert half.centers.dtype == np.float64


def test_k_means_plus_plus_draws_as_scikit_learn():
    for seed in range(12):
        x, y = blobs(120, 3, 5, seed=seed)
        k = 2 + seed
        theirs = KMeans(k, n_init=1, random_state=seed).fit(x)
        ours = resque_task(x, y, k, "k-means++", seed=seed)
        np.testing.assert_array_equal(ours.cluster_labels, theirs.labels_)
        assert ours.n_iter == theirs.n_iter_
    values = {resque_task(x, y, 9, "k-means++", seed=s).inertia for s in range(6)}
    assert len(values) > 1


# --- Forms of features


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_embeddings_of_layers(dtype):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 90)
    maps = torch.tensor(rng.standard_normal((90, 5, 3, 4)) + y[:, None, None, None]).to(dtype)
    tokens = maps.flatten(2).transpose(1, 2)  # [N, 12, 5]
    pooled = maps.double().mean((2, 3))
    pooled = pooled if dtype == torch.float64 else pooled.float()
    for x in (maps, maps.contiguous(memory_format=torch.channels_last), tokens):
        result = resque_task(x, y)
        expected = resque_task(pooled, y)
        np.testing.assert_array_equal(result.cluster_labels, expected.cluster_labels)
        np.testing.assert_allclose(result.centers, expected.centers, rtol=1e-6)
        flat = resque_task(x, y, embedding="flattened")
        expected = resque_task(x.reshape(90, -1), y)
        assert flat.centers.shape == (3, 60)
        np.testing.assert_array_equal(flat.centers, expected.centers)
        np.testing.assert_array_equal(flat.cluster_labels, expected.cluster_labels)


def test_views_of_features():
    x, y = blobs(200)
    plain = resque_task(x, y)
    wide = np.repeat(x, 2, axis=1)
    for form in (
        np.asfortranarray(x),
        wide[:, ::2],
        x[::-1][::-1],
        x.astype(">f8"),
        torch.tensor(x).T.contiguous().T,
        torch.tensor(np.repeat(x, 3, axis=0))[::3],
    ):
        result = resque_task(form, y)
        np.testing.assert_array_equal(result.cluster_labels, plain.cluster_labels)
        np.testing.assert_array_equal(result.centers, plain.centers)
        assert result.inertia == plain.inertia
    backwards = resque_task(x[::-1], y[::-1])
    assert backwards.value == plain.value
    still = x.copy()
    still.flags.writeable = False
    assert resque_task(still, y).inertia == plain.inertia


def test_gradients_and_inference_mode():
    x, y = blobs(80)
    plain = resque_task(x, y)
    assert resque_task(torch.tensor(x, requires_grad=True), y).inertia == plain.inertia
    with torch.inference_mode():
        assert resque_task(torch.tensor(x), torch.tensor(y)).inertia == plain.inertia


def test_files(tmp_path):
    x, y = blobs(90)
    plain = resque_task(x, y)
    np.savez(tmp_path / "both.npz", features=x, labels=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    assert resque_task_of_file(tmp_path / "both.npz").inertia == plain.inertia
    found = resque_task_of_file(tmp_path / "x.npy", tmp_path / "y.npy", baselines=True)
    assert found.inertia == plain.inertia
    assert found.linear_probe_error is not None
    for paths in ((tmp_path / "x.npy",), (tmp_path / "both.npz", tmp_path / "y.npy")):
        with pytest.raises(ValueError, match=r"labels: expected a .npy file of labels with"):
            resque_task_of_file(*paths)
    with pytest.raises(FileNotFoundError, match=r"gone.npy: expected a .npy file, found none"):
        resque_task_of_file(tmp_path / "gone.npy", tmp_path / "y.npy")


# --- What is refused

X, Y = torch.zeros(6, 3), torch.arange(6) % 2


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (X, Y[:5], ValueError, "features, labels: expected one label a row, found 6 .* and 5"),
        (X, None, TypeError, r"labels: expected class indices \[N\], found None"),
        (X, Y.float(), TypeError, "labels: expected int32 or int64 class indices"),
        (X, Y.bool(), TypeError, "labels: expected int32 or int64 class indices"),
        (X, Y[:, None], ValueError, r"labels: expected shape \[N\]"),
        (X, {0, 1}, TypeError, "labels: expected a torch.Tensor or numpy.ndarray"),
        (X[:0], Y[:0], ValueError, "features: expected at least one row, found none"),
        (X[:, :0], Y, ValueError, "features: expected at least one column"),
        (X.bool(), Y, TypeError, "features: expected float32, float64, float16, bfloat16 or int"),
        (X[0], Y[:3], ValueError, r"features: expected \[N, D\], \[N, C, H, W\] or \[N, T, D\]"),
        (X.to_sparse(), Y, TypeError, "features: expected a dense real tensor"),
        (X.to("meta"), Y, TypeError, "features: expected a tensor on cpu or cuda"),
        (3, Y, TypeError, "features: expected a tensor, an array, the path of a .npy file"),
        (X[:, :, None, None][..., :0], Y, ValueError, "at least one position to average"),
    ],
)
def test_refused_data(features, labels, error, message):
    with pytest.raises(error, match=message):
        resque_task(features, labels)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected 1 <= num_classes"),
        ({"num_classes": 2.0}, TypeError, "num_classes: expected an integer"),
        ({"init": "random"}, ValueError, "init: expected one of 'class-means', 'k-means\\+\\+'"),
        ({"init": None}, TypeError, "init: expected a torch.Tensor or numpy.ndarray"),
        ({"init": torch.zeros(2, 4)}, ValueError, r"init: expected centres \[K, 3\]"),
        ({"init": torch.zeros(0, 3)}, ValueError, r"init: expected centres \[K, 3\]"),
        ({"init": torch.zeros(2, 3).long()}, TypeError, "init: expected centres of a floating"),
        ({"init": torch.full((2, 3), torch.nan)}, ValueError, "init: expected finite values"),
        ({"init": torch.zeros(7, 3)}, ValueError, "at least one row a cluster, found 6 rows for 7"),
        ({"init": "k-means++", "num_classes": 7}, ValueError, "found 6 rows for 7 clusters"),
        ({"max_iter": 0}, ValueError, "max_iter: expected 1 <= max_iter"),
        ({"max_iter": 1.5}, TypeError, "max_iter: expected an integer"),
        ({"tol": -1e-9}, ValueError, "tol: expected a finite number of at least 0, found -1e-09"),
        ({"tol": float("nan")}, ValueError, "tol: expected a finite number of at least 0"),
        ({"tol": "1e-4"}, TypeError, "tol: expected a number, found '1e-4'"),
        ({"seed": -1}, ValueError, "seed: expected 0 <= seed"),
        ({"embedding": "mean"}, ValueError, "embedding: expected one of 'pooled', 'flattened'"),
        ({"device": "tpu"}, ValueError, "device: expected a cpu or cuda device, found 'tpu'"),
    ],
)
def test_refused_options(options, error, message):
    with pytest.raises(error, match=message):
        resque_task(X, Y, **options)


@pytest.mark.parametrize("init", ["class-means", "k-means++", np.zeros((2, 6))])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(init, bad):
    x, y = blobs(200, classes=2)
    x[[50, 120, 120], [3, 1, 4]] = bad
    with pytest.raises(
        ValueError,
        match=r"features: expected finite values, found 3 NaN or infinite in 2 rows, the first at "
        r"row 50, column 3$",
    ):
        resque_task(x, y, init=init)


def test_squared_distances_beyond_float64():
    x = np.array([[1e200, 0], [-1e200, 0], [0, 1e200], [1.0, 1.0]])
    with pytest.raises(ValueError, match="features: expected squared distances within float64"):
        resque_task(x, np.array([0, 0, 1, 1]))


# --- The same bits, and little memory


def test_bits_do_not_depend_on_threads():
    x, y = blobs(60_000, 24, 8, spread=0.4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for init in ("class-means", "k-means++"):
                found.append(
                    resque_task(
                        x.astype(np.float32), y, init=init, max_iter=8, baselines=True, chance=1
                    )
                )
    finally:
        torch.set_num_threads(before)
    for i, result in enumerate(found[2:]):
        first = found[i % 2]
        assert result.to_dict() == first.to_dict()
        assert result.centers.tobytes() == first.centers.tobytes()
        assert result.cluster_labels.tobytes() == first.cluster_labels.tobytes()


MEMORY = """
import sys, torch
from resque_ext import resque_task
def read(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(name)).split()[1]) * 1024
k = int(sys.argv[1])
resque_task(torch.randn(2000, 256), torch.arange(2000) % k, max_iter=2)  # threads, buffers
x, y = torch.randn(200_000, 256), torch.arange(200_000) % k
before = read("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
found = resque_task(x, y, max_iter=4)
assert found.n_iter == 4
print((read("VmHWM") - before) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of a process's memory")
@pytest.mark.full
@pytest.mark.parametrize("k", [10, 100])
def test_peak_memory_beyond_the_features(k):
    """Of a whole call, its result included: a tenth of the features at most."""
    command = [sys.executable, "-c", MEMORY, str(k)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.01 < float(done.stdout) <= 0.10
