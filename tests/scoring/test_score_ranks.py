"""score on several real processes over gloo: all of them get the result of all data."""

import pytest
import torch
from helpers.rank_processes import close, run, without
from torch import nn

from resque_ext import score
from resque_ext.model import normalization

WORKER = "score_ranks_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank of 1, 2 and 4 found."""
    folder = tmp_path_factory.mktemp("ranks")
    results = {}
    for size in (1, 2, 4):
        each = run("everything", folder / str(size), size, WORKER)
        assert all("result" in one for one in each), each
        results[size] = [one["result"] for one in each]
    return results


@pytest.mark.full
def test_all_ranks_get_the_result_of_all_data(found):
    expected, alone = found[1][0]["agree"]
    assert alone.keys() < expected.keys()
    assert all(expected[name] == alone[name] for name in alone)
    counts = expected["several"]["resque_dist"]["counts"]
    assert sum(counts["old"]) == sum(counts["new"]) == 211
    assert 0 < expected["several"]["resque_dist"]["value"] != expected["adapted"]["value"]
    for size in (2, 4):
        values = [each["agree"][0] for each in found[size]]
        assert all(value == values[0] for value in values)
        # How rows are dealt to ARM's halves goes by batches, and these are not the same.
        mine, theirs = values[0], dict(expected)
        for one in (mine, theirs):
            arm = without(one["several"]["arm"], "std_error", "noise_floor")
            one["several"] = one["several"] | {"arm": arm}
        assert mine["several"]["resque_dist"]["counts"] == counts
        assert mine["accuracies"] == theirs["accuracies"]
        assert close(mine, theirs), (size, mine, theirs)


@pytest.mark.full
def test_batch_norm_statistics_are_those_of_all_batches(found):
    (whole,) = (each["statistics"] for each in found[1])
    assert whole["norm"][2] == 14
    assert whole["idle"] == [[0.0] * 3, [1.0] * 3, 0]
    for size in (2, 4):
        joined = [each["statistics"] for each in found[size]]
        assert all(each == joined[0] for each in joined)
        assert joined[0]["idle"] == whole["idle"]
        assert joined[0]["norm"][2] == 14
        for mine, theirs in zip(joined[0]["norm"][:2], whole["norm"][:2], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-6)  # of float32, rounded 14 times


@pytest.mark.full
def test_values_of_any_length_are_gathered(found):
    for size in (1, 2, 4):
        expected = [{"long": "é" * (5000 * rank), "rank": rank} for rank in range(size)]
        assert all(each["gathered"] == expected for each in found[size])


SAME = {
    "task": "ArgumentError: indices: expected those whose states can be joined over ranks "
    "(resque_dist), found 'resque_task', which needs all rows in one place",
    "preindex": "ArgumentError: indices: expected those whose states can be joined over ranks "
    "(arm), found 'preindex', which needs all rows in one place",
    "probe": "ArgumentError: indices: expected those whose states can be joined over ranks "
    "(resque_dist, arm, linear_residual, representation_distance, accuracy_drop), found "
    "'linear_probe', which needs all rows in one place",
    "match": "ArgumentError: adapt_normalization: expected True or False with ranks, found "
    "'match', which goes by the batches before",
    "empty": "ArgumentError: new: expected rows on one rank at least, found none on any",
    "empty_adapted": "ArgumentError: new: expected rows on one rank at least, found none on any",
    "arguments": "ValueError: ranks: expected the same arguments on all, found {'indices': "
    "['resque_dist']} on rank 0 and {'indices': ['arm', 'resque_dist']} on rank 1",
    "models": "ValueError: model: expected the same on all ranks, found {'layer_name': "
    "'head:input', 'head': {'name': 'head', 'path': '', 'reads': 'vector', 'classes': 5, 'also': "
    "[]}} on rank 0 and {'layer_name': '1:input', 'head': {'name': '1', 'path': '', 'reads': "
    "'vector', 'classes': 5, 'also': []}} on rank 1",
}


@pytest.mark.full
def test_what_goes_wrong_on_one_rank_is_an_error_on_all(tmp_path):
    zero, one = (each["result"] for each in run("wrong", tmp_path / "w", 2, WORKER))
    for name, message in SAME.items():
        assert (zero[name], one[name]) == (message, message)
    assert one["data"].startswith("ArgumentError: new: features: expected finite values")
    assert zero["data"] == f"RankError: rank 1 failed: {one['data']}"
    assert one["one_row"] == (
        "ArgumentError: new: expected two or more values a channel in every batch, because "
        "adapt_normalization takes their variance, found shape (1, 16), torch.float64, cpu at "
        "'norm'"
    )
    assert zero["one_row"] == f"RankError: rank 1 failed: {one['one_row']}"
    outside = "ranks: expected to be inside of `with Ranks() as ranks:`, found outside"
    assert zero["outside"] == one["outside"] == outside


def test_one_value_a_channel_has_no_variance():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    data = [(torch.rand(8, 4), torch.arange(8) % 3), (torch.rand(1, 4), torch.zeros(1).long())]
    with pytest.raises(ValueError, match=r"^new: expected two or more values a channel .* at '1'$"):
        score(model, data[:1], data, adapt_normalization=True, progress=False)
    assert not model[1]._forward_pre_hooks
    assert score(model, data, data[:1], adapt_normalization=True, progress=False).value >= 0
    image = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    adapted = normalization.adapted(image, lambda: [torch.rand(1, 1, 3, 3)])  # nine values
    assert adapted[1].num_batches_tracked == 1
    assert not adapted[1]._forward_pre_hooks


@pytest.mark.parametrize("ranks", [3, "gloo"])
def test_what_is_no_ranks(ranks):
    with pytest.raises(TypeError, match=r"^ranks: expected resque_ext.distributed.Ranks, found "):
        score(nn.Linear(2, 2), [], [], ranks=ranks)
