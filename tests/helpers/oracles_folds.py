"""The folds of cross-validated parts of indices, row by row in NumPy."""

import math

import numpy as np
from sklearn.linear_model import Ridge

FOLDS = 5


def positions_of(x):
    """32 (w . z / n + log n) of every row, with the w that docs/better_index.md gives."""
    golden = (1 + 5**0.5) / 2
    w = np.array([12**0.5 * (math.fmod(i * i * golden, 1) - 0.5) for i in range(1, x.shape[1] + 1)])
    found = []
    for row in np.asarray(x, np.float64):
        z = row - row.mean()
        n = (z @ z + row @ row / 32**2) ** 0.5
        found.append(32 * (w @ z / n + math.log(n)) if n else 0.0)
    return np.array(found)


def folds_by_row(x):
    """The fold of every row: its position's fraction, in fifths."""
    return np.array([math.floor(5 * (p - math.floor(p))) for p in positions_of(x)])


def in_one_fold(fold, y):
    """The classes, counted from 0, whose rows are all in one fold."""
    return [c for c in np.unique(y) if len(set(fold[y == c])) == 1]


def folds_of(x, y):
    """Folds by row; rows of a class that are all in one go to all folds in turn, by position."""
    _, y = np.unique(y, return_inverse=True)
    fold, positions = folds_by_row(x), positions_of(x)
    for c in in_one_fold(fold, y):
        rows = np.flatnonzero(y == c)
        fold[rows[np.argsort(positions[rows], kind="stable")]] = (c + np.arange(len(rows))) % FOLDS
    return fold


def readable(x, y, fold):
    """Rows, classes and folds as they are read: those of a class that is in one fold alone become
    copies of their mean, in turn; and by fold what that leaves of them, which has no class."""
    x, fold, left = x.copy(), fold.copy(), {f: [] for f in range(FOLDS)}
    for c in in_one_fold(fold, y):
        rows = np.flatnonzero(y == c)
        mean = x[rows].mean(0)
        left[fold[rows[0]]].extend(x[rows] - mean)
        x[rows], fold[rows] = mean, (c + np.arange(len(rows))) % FOLDS
    return x, fold, {f: np.reshape(rest, (-1, x.shape[1])) for f, rest in left.items()}


def unexplained(x, y, fold=None):
    """(share of the one-hot classes left unexplained, its standard error), row by row."""
    x = np.asarray(x, np.float64)
    labels, index = np.unique(y, return_inverse=True)
    targets = np.eye(len(labels))[index]
    x, fold, rest = readable(x, np.asarray(y), folds_by_row(x) if fold is None else fold)
    left, total = [], []
    for f in range(FOLDS):
        train, test = fold != f, fold == f
        if not test.any():
            continue
        near = x - x[train].mean(0)
        others = np.concatenate([rest[g] for g in range(FOLDS) if g != f])
        seen = np.concatenate([near[train], others])
        nothing = np.zeros((len(others), len(labels)))
        wanted = np.concatenate([targets[train] - targets[train].mean(0), nothing])
        total.append(((targets[test] - targets[train].mean(0)) ** 2).sum())
        row = []
        for penalty in 10.0 ** np.arange(-3, 3.5, 0.5) * (seen**2).sum(0).mean():
            fit = Ridge(alpha=penalty, solver="svd", fit_intercept=False).fit(seen, wanted)
            found = fit.predict(near[test]) + targets[train].mean(0)
            apart = ((targets[test] - found) ** 2).sum()
            row.append(apart + (fit.predict(rest[f]) ** 2).sum() if len(rest[f]) else apart)
        left.append([*row, total[-1]])  # the last one: an infinite penalty
    left, total = np.array(left), np.array(total)
    chosen = [np.delete(left, f, axis=0).sum(0).argmin() for f in range(len(left))]
    left = left[np.arange(len(left)), chosen]
    share = left.sum() / total.sum()
    spread = ((left - share * total) ** 2).sum() * len(left) / (len(left) - 1)
    return share, spread**0.5 / total.sum()
