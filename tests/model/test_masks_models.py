"""Padding never matters in real architectures: BERT, GPT-2 and Llama at random weights."""

import pytest
import torch
from helpers import optional
from helpers.tokens_made import CLASSES, alone, batched, texts

from resque_ext import resque_dist, score

transformers = optional.module("transformers")

SMALL = {"vocab_size": 40, "pad_token_id": 0, "num_labels": CLASSES}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "max_position_embeddings": 64}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
KINDS = {
    "bert": ("BertForSequenceClassification", "BertConfig", BERT),
    "gpt2": ("GPT2ForSequenceClassification", "GPT2Config", GPT2),
    "llama": ("LlamaForSequenceClassification", "LlamaConfig", BERT | {"num_key_value_heads": 1}),
    "sentences": ("BertModel", "BertConfig", BERT),
}
OLD, NEW = texts(seed=0), texts(seed=1)
LABELS = torch.tensor([y for _, y in OLD])


def make(kind):
    name, config, options = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**SMALL, **options)
    # BERT's pooler reads the first column, which left padding makes a padding token.
    more = {"add_pooling_layer": False} if kind == "sentences" else {}
    return getattr(transformers, name)(made, **more).double().eval()


def with_positions(data):
    """Positions counted from the first real token, which GPT-2 leaves to its caller."""
    found = []
    for inputs, labels in data:
        places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        found.append((inputs | {"position_ids": places}, labels))
    return found


def sides(kind, *args):
    made = [batched(some, *args) for some in (OLD, NEW)]
    # BERT's own positions are those of the columns: right padding alone leaves them as they are.
    return [with_positions(side) for side in made] if kind != "bert" else made


def read_alone(kind, model, some, take):
    found = []
    for inputs, _ in with_positions(alone(some)):
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
        found.append(take(out.hidden_states[-1][0]))
    return torch.stack(found)


EXPECTED = {
    "gpt2": ("score:input", "token", lambda x: x[-1]),
    "llama": ("score:input", "token", lambda x: x[-1]),
    "sentences": ("output:last_hidden_state", "masked mean", lambda x: x.mean(0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_embedding(kind):
    model = make(kind)
    found = score(model, *sides(kind, 8, 5, True), progress=False)
    if kind == "bert":
        assert (found.layer, found.pooling) == ("classifier:input", "vector")
        return
    layer, pooling, take = EXPECTED[kind]
    assert (found.layer, found.pooling) == (layer, pooling)
    expected = [read_alone(kind, model, some, take) for some in (OLD, NEW)]
    value = resque_dist(*expected, LABELS, LABELS, CLASSES).value
    assert found.value == pytest.approx(value, rel=1e-6)


INDICES = ("resque_dist", "resque_task", "preindex", "arm", "representation_distance")


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_every_index_at_any_padding_and_in_any_order(kind):
    model, first = make(kind), None
    lefts = (False,) if kind == "bert" else (False, True)
    for extra, left in [(extra, left) for extra in (0, 7) for left in lefts]:
        for order in (None, range(23, -1, -1)):
            data = sides(kind, 8, extra, left, order)
            found = score(model, *data, indices=INDICES, paired=True, progress=False)
            first = first or found
            for index in INDICES:
                assert found[index].value == pytest.approx(first[index].value, abs=1e-6), index
