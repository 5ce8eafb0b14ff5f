"""Small tasks, and a bare training loop that measures by other means than the harness does."""

import copy
import dataclasses

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def task(samples=50, width=6, classes=3, seed=0):
    """Inputs and labels that a small network learns in some epochs."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=rng)
    y = (x[:, 0] > 0.4).long() + (x[:, 1] > 0).long()
    return x, y % classes


def batches(size=16, **options):
    """A list of batches: 16, 16, 16 and 2 samples by default."""
    x, y = task(**options)
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(size=16, shuffle=True, **options):
    more = {k: options.pop(k) for k in ("drop_last", "generator", "num_workers") if k in options}
    return DataLoader(TensorDataset(*task(**options)), size, shuffle=shuffle, **more)


def network(width=6, classes=3, dropout=0.2, seed=0):
    """Linear layers with batch-norm and dropout, so that buffers and random numbers matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(width, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, classes),
        )


def fast(parameters):
    return torch.optim.Adam(parameters, lr=2e-2)


@dataclasses.dataclass
class Bare:
    """What the bare loop found."""

    norms: list
    losses: list
    sizes: list
    weights: list  # after every step, the start first: {name: float64 array}
    accuracies: list  # after every step, the start first
    model: nn.Module


def accuracy(model, data):
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    model.train()
    return right / sum(len(y) for _, y in data)


def numbers(model):
    return {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}


def bare(model, train, test, epochs, optimizer=None, seed=0, scheduler=None):
    """Adam as published, unless told otherwise; norms by clip_grad_norm_ without clipping."""
    model = copy.deepcopy(model)
    model.train()
    if optimizer is None:
        opt = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    else:
        opt = optimizer(list(model.parameters()))
    schedule = scheduler(opt) if scheduler else None
    found = Bare([], [], [], [numbers(model)], [accuracy(model, test)], model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for x, y in train:
                model.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
                opt.step()
                if schedule:
                    schedule.step()
                found.norms.append(float(norm))
                found.losses.append(loss.item())
                found.sizes.append(len(y))
                found.weights.append(numbers(model))
                state = torch.get_rng_state()
                found.accuracies.append(accuracy(model, test))
                torch.set_rng_state(state)
    return found


def change(after, before):
    """norm(w - w0) / sqrt(n) of every tensor."""
    return {n: np.linalg.norm(after[n] - before[n]) / np.sqrt(after[n].size) for n in after}
