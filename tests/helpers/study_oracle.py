"""A small study that every test of it shares, its parts by other means, and a killer of it."""

import copy
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import nn

from helpers.oracles_folds import FOLDS, folds_of
from helpers.training_oracle import batches, fast, network
from resque_ext.retraining import RetrainingError, retrain, study

KINDS = {"add": (0.1, 0.5, 1.0), "mix": (0.1, 0.5, 1.0)}
OPTIONS = {
    "target_accuracy": 0.8,
    "max_epochs": 5,
    "optimizer": fast,
    "checks_per_epoch": 2,
    "meter": None,
    "progress": False,
}


class Add:
    """x + level."""

    def __init__(self, level):
        self.level = level

    def __call__(self, x):
        return x + self.level

    def __repr__(self):
        return f"Add({self.level})"


class Mix(Add):
    """Part of the neighbouring feature."""

    def __call__(self, x):
        return x.roll(1, 1) * self.level + x * (1 - self.level)

    def __repr__(self):
        return f"Mix({self.level})"


def grid(kinds=KINDS):
    makers = {"add": Add, "mix": Mix}
    return {kind: {a: makers[kind](a) for a in levels} for kind, levels in kinds.items()}


def data(**other):
    return {"old": batches(), "train": batches(seed=1), "test": batches(seed=2)} | other


def trained():
    """The small network after some epochs on the old side."""
    options = {"optimizer": fast, "meter": None, "return_model": True}
    return retrain(network(), batches(), batches(seed=1), 0.9, 20, **options)[1]


def run(model=None, base=None, shifts=None, indices=("resque_dist", "arm"), **options):
    """The small study."""
    model = trained() if model is None else model
    base, shifts = data() if base is None else base, grid() if shifts is None else shifts
    return study(model, base, shifts, indices, **OPTIONS | options)


def lasting(run):
    """What of a run does not depend on when and how fast it was done."""
    values = json.loads(run.to_json())
    del values["index_seconds"]
    return values | {"cost": run.cost.without_times()}


def accuracy(model, inputs, labels):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return (model(inputs).argmax(1) == labels).double().mean().item()


def reestimated(model, side):
    """A copy with the mean over batches of each batch's mean and unbiased variance, in NumPy.

    The network's only normalization is its second layer, which reads what the first gives.
    """
    model = copy.deepcopy(model).eval()
    weight, bias = (p.detach().double().numpy() for p in (model[0].weight, model[0].bias))
    read = [x.double().numpy() @ weight.T + bias for x, _ in side]
    mean = np.mean([x.mean(0) for x in read], 0)
    variance = np.mean([x.var(0, ddof=1) for x in read], 0)
    model[1].running_mean.copy_(torch.from_numpy(mean))
    model[1].running_var.copy_(torch.from_numpy(variance))
    return model


PENALTIES = [*(10.0 ** np.arange(-3, 3.25, 0.5)), np.inf]


def simple_errors(model, inputs, labels):
    """(nearest class mean, linear probe): in five folds."""
    body = nn.Sequential(*list(copy.deepcopy(model).eval())[:-1])
    with torch.no_grad():
        x = body(inputs).double().numpy()
    y, fold = labels.numpy(), folds_of(x, labels.numpy())
    classes = np.unique(y)
    one_hot = (y[:, None] == classes).astype(float)
    wrong = np.zeros(2)
    scores, errors = [], np.zeros((FOLDS, len(PENALTIES)))  # of every fold by every penalty
    for f in range(FOLDS):
        seen, held = fold != f, fold == f
        means = np.stack([x[seen & (y == label)].mean(0) for label in classes])
        nearest = ((x[held, None] - means) ** 2).sum(-1).argmin(1)
        wrong[0] += (classes[nearest] != y[held]).sum()
        scale = x[seen].var(0).mean() * seen.sum()
        scores.append([])
        for p, penalty in enumerate(PENALTIES):
            if np.isinf(penalty):  # no weights: the shares of the classes
                found = np.tile(one_hot[seen].mean(0), (held.sum(), 1))
            else:
                found = Ridge(alpha=penalty * scale).fit(x[seen], one_hot[seen]).predict(x[held])
            scores[f].append(found)
            errors[f, p] = ((one_hot[held] - found) ** 2).sum()
    for f in range(FOLDS):  # the penalty that the other folds choose
        chosen = np.delete(errors, f, axis=0).sum(0).argmin()
        wrong[1] += (classes[scores[f][chosen].argmax(1)] != y[fold == f]).sum()
    return wrong / len(y)


def kill(folder, times, seed):
    """Does the small study once, then again and again with SIGKILL at a random moment.

    Prints one JSON object: the lines of the undisturbed file, those of the others when complete,
    how many kills there were, and how many finished runs any of them lost. Every study runs in a
    child, so that nothing but the file goes from one to the next.
    """
    torch.set_num_threads(1)
    model, chance = trained_in_child(folder), random.Random(seed)
    undisturbed, path = folder / "undisturbed.jsonl", folder / "killed.jsonl"

    def child(path):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run(model, path=path, checkpoint_seconds=0.05)
                code = 0
            except RetrainingError as error:
                print(error, file=sys.stderr)
            finally:
                os._exit(code)
        return pid

    begin = time.perf_counter()
    assert os.waitpid(child(undisturbed), 0)[1] == 0
    whole = time.perf_counter() - begin
    kills, lost, complete = 0, 0, []
    while kills < times:
        before = path.read_bytes() if path.exists() else b""
        pid = child(path)
        time.sleep(chance.uniform(0, 0.2) * whole)
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        kills += killed
        after = path.read_bytes() if path.exists() else b""
        finished = before[: before.rfind(b"\n") + 1]
        lost += not after.startswith(finished)
        if not killed:
            complete.append(after.decode())
            path.unlink()
    assert os.waitpid(child(path), 0)[1] == 0
    complete.append(path.read_text())
    left = sorted(p.name for p in folder.iterdir() if "checkpoint" in p.name)
    print(
        json.dumps(
            {
                "undisturbed": undisturbed.read_text(),
                "complete": complete,
                "kills": kills,
                "lost": lost,
                "left": left,
            }
        )
    )


def trained_in_child(folder):
    """The trained network by way of a file: a process that has computed should not be forked."""
    pid = os.fork()
    if pid == 0:
        torch.save(trained().state_dict(), folder / "weights")
        os._exit(0)
    os.waitpid(pid, 0)
    model = network()
    model.load_state_dict(torch.load(folder / "weights", weights_only=True))
    return model.eval()


if __name__ == "__main__":
    kill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
