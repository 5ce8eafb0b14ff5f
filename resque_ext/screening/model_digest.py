"""What tells one model from another: its weights, and the code and settings of its modules.

Code that a module calls elsewhere is not looked into, nor are the values of global names.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resque_ext.screening.cache import weights_digest

_DEPTH = 4  # of objects within objects
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_OWN = frozenset(vars(nn.Module())) - {"forward"}  # weights and buffers are looked at by themselves


def model_digest(model: nn.Module) -> str:
    """A digest of all that a model's outputs are known to follow from."""
    digest = hashlib.sha256(weights_digest(model).encode())
    for name, buffer in model.named_buffers():  # also those that a state_dict leaves out
        digest.update(f"\n{name} {_said(buffer)}".encode())
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in _OWN}
        digest.update(f"\n{name} {_class(type(module))} {_said(own)}".encode())
    return digest.hexdigest()


def _said(value: Any, depth: int = _DEPTH) -> str:
    """A value as text that is the same in every process."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        flat = torch.as_tensor(value).detach().cpu().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        kind = f"{tuple(value.shape)} {value.dtype}"
        return f"{kind} {hashlib.sha256(data).hexdigest()}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        given = [value.__defaults__, value.__kwdefaults__, cells]
        return f"{value.__qualname__} {_code(value.__code__)} {_said(given, depth - 1)}"
    if isinstance(value, types.MethodType):
        return f"method {_said(value.__func__, depth)}"
    if isinstance(value, functools.partial):
        return f"partial {_said([value.func, value.args, value.keywords], depth - 1)}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        items = sorted(f"{_said(k, depth - 1)}: {_said(v, depth - 1)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_said(v, depth - 1) for v in value))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_said(v, depth - 1) for v in value)}]"
    named = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"{named} {_said(getattr(value, '__dict__', {}), depth - 1)}"


@functools.cache
def _class(cls: type) -> str:
    """The functions of a class and of those that it is made from; torch's stand for themselves."""
    found = []
    for each in cls.__mro__:
        found.append(f"{each.__module__}.{each.__qualname__}")
        if each.__module__.partition(".")[0] not in ("torch", "builtins"):
            found += [f"{k} {_said(v)}" for k, v in sorted(vars(each).items()) if _counts(k, v)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _counts(name: str, value: Any) -> bool:
    settings = not name.startswith("__") and isinstance(value, (*_PLAIN, tuple))
    return settings or isinstance(value, types.FunctionType)


def _code(code: types.CodeType) -> str:
    """What a function does, wherever its text stands."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _said(c) for c in code.co_consts]
    parts = [code.co_code.hex(), *constants, *code.co_names, *code.co_varnames, *code.co_freevars]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
