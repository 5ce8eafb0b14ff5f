"""Accumulators and one-call indices inside torch.compile: a process that must not die.

Run by test_compiled.py: BACKEND CALL... Prints one line of JSON: {call: [eager, compiled]}.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch

from helpers.odd_tensors import CALLS, X, Y


def main(backend: str, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    found = {}
    for name in names or list(CALLS):
        call = CALLS[name]

        def run(x, y, call=call):
            return call(x * 2.0, y + 0)  # tensors that only the compiled function has

        expected = repr(run(X, Y))
        torch._dynamo.reset()
        compiled = torch.compile(run, backend=backend)
        compiled(X, Y)
        found[name] = [expected, repr(compiled(X, Y))]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
