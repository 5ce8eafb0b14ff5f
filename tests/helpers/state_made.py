"""An accumulator's state before and after what must not change it."""

import torch


def snapshot(acc):
    return {key: x.clone() for key, x in acc.state_dict().items()}


def unchanged(acc, before):
    now = acc.state_dict()
    assert now.keys() == before.keys()
    for key, x in now.items():
        assert x.dtype == before[key].dtype
        assert torch.equal(x, before[key]), key
