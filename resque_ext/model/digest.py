"""What tells one model from another: its weights, and the code and settings of its modules.

A model has a digest only where all that it holds can be put into words: a hook, a compiled graph or
an object of another library's own kind may change what it computes, and then it has none. Functions
that a module calls elsewhere are not looked into, nor are the values of global names.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _global
from torch.nn.parameter import is_lazy

from resque_ext.data.checks import describe

_DEPTH = 16  # of objects within objects: deeper ones, and those that hold themselves, are not told
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_WORDS = (*_PLAIN, types.EllipsisType, range, slice, pathlib.PurePath, np.generic, np.dtype)
_OWN = frozenset(vars(nn.Module())) - {"forward"}  # weights and buffers are looked at by themselves
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_KNOWN = ("torch", "builtins", *sys.stdlib_module_names)  # their classes stand for themselves
_HEAP_TYPE = 1 << 9  # of a class's flags: written in Python, so that nothing of it is hidden
# Of a class: what says nothing of what it does, or follows from the rest.
_APART = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__")
_APART += ("__static_attributes__", "__firstlineno__", "__annotate__", "__annotate_func__")
_APART += ("__abstractmethods__", "_abc_impl", "__orig_bases__", "__parameters__", "__hash__")
_APART += ("__dataclass_fields__", "__dataclass_params__", "__qualname__")


class NoDigestError(Exception):
    """What of a model cannot be told from others."""


def model_digest(model: nn.Module) -> str:
    """A digest of all that a model's outputs are known to follow from.

    Raises:
        NoDigestError: something of it cannot be told; the message says what.
    """
    return _Words(model).digest


class _Words:
    """Values as text that is the same in every process, and another for every other value."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._classes: dict[type, str] = {}
        if any(getattr(_global, "_global" + name) for name in _HOOKS):
            raise NoDigestError("global forward hooks")
        for name, module in model.named_modules():
            self._check(name or "the model", module)
        digest = hashlib.sha256(weights_digest(model).encode())
        for name, buffer in model.named_buffers():  # also those that a state_dict leaves out
            digest.update(f"\n{name} {self.of(buffer)}".encode())
        for name, module in model.named_modules():
            own = {k: v for k, v in vars(module).items() if k not in _OWN}
            digest.update(f"\n{name} {self._class(type(module))} {self.of(own)}".encode())
        self.digest = digest.hexdigest()

    @staticmethod
    def _check(name: str, module: nn.Module) -> None:
        if any(map(is_lazy, [*module._parameters.values(), *module._buffers.values()])):
            raise NoDigestError(f"parameters of {name} whose shape its first run will decide")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise NoDigestError(f"forward hooks of {name}")
        if isinstance(module, torch.jit.ScriptModule):
            raise NoDigestError(f"compiled code of {name}")

    def of(self, value: Any, depth: int = _DEPTH) -> str:
        if depth == 0:
            raise NoDigestError(f"objects within objects more than {_DEPTH} deep")
        deeper = functools.partial(self.of, depth=depth - 1)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, enum.Enum):
            return f"{kind} {value.name}"
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, (Tensor, np.ndarray)):
            return self._array(value, kind)
        if isinstance(value, nn.Module):
            if id(value) not in self._names:
                raise NoDigestError(f"a module that is no submodule, {kind}")
            return f"module {self._names[id(value)]!r}"
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, types.MethodType):
            return f"method {deeper(value.__func__)} of {deeper(value.__self__)}"
        if isinstance(value, types.BuiltinFunctionType):
            if not isinstance(value.__self__, (type(None), types.ModuleType, type)):
                raise NoDigestError(f"a method of an object, {value.__qualname__}")
            return f"builtin {value.__module__}.{value.__qualname__}"
        if isinstance(value, np.ufunc):
            return f"ufunc {value.__name__}"
        if isinstance(value, functools.partial):
            return f"partial {deeper([value.func, value.args, value.keywords])}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, _WORDS):
            return f"{kind} {value!r}"
        if isinstance(value, Mapping):
            items = [f"{deeper(k)}: {deeper(v)}" for k, v in value.items()]
            return f"{self._class(type(value))} {{{', '.join(items)}}}"
        if isinstance(value, (set, frozenset)):
            return f"{kind} {{{', '.join(sorted(map(deeper, value)))}}}"
        if isinstance(value, (list, tuple)):
            return f"{self._class(type(value))} [{', '.join(map(deeper, value))}]"
        return self._object(value, kind, depth)

    def _array(self, value: Any, kind: str) -> str:
        flat = torch.as_tensor(value).detach().cpu().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return f"{kind} {tuple(value.shape)} {value.dtype} {hashlib.sha256(data).hexdigest()}"

    def _function(self, value: types.FunctionType, depth: int) -> str:
        name = f"{value.__module__}.{value.__qualname__}"
        known = (value.__module__ or "").partition(".")[0] in _KNOWN
        if known and value.__closure__ is None:
            return f"function {name}"
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        given = [value.__defaults__, value.__kwdefaults__, cells]
        return f"function {value.__qualname__} {self._code(value.__code__)} " + self.of(
            given, depth - 1
        )

    def _object(self, value: Any, kind: str, depth: int) -> str:
        bases = [each for each in type(value).__mro__ if each is not object]
        if not all(each.__flags__ & _HEAP_TYPE for each in bases) or not hasattr(value, "__dict__"):
            raise NoDigestError(f"an object of {kind}")
        if any(vars(each).get("__slots__") for each in bases):
            raise NoDigestError(f"an object with slots of {kind}")
        return f"{self._class(type(value))} {self.of(vars(value), depth - 1)}"

    def _class(self, cls: type) -> str:
        """What a class and those that it is made from define."""
        if cls not in self._classes:
            self._classes[cls] = f"{cls.__module__}.{cls.__qualname__}"  # where it names itself
            found = []
            for each in cls.__mro__:
                found.append(f"{each.__module__}.{each.__qualname__}")
                if each.__module__.partition(".")[0] not in _KNOWN:
                    found += [
                        f"{k} {self._member(v)}"
                        for k, v in sorted(vars(each).items())
                        if k not in _APART
                    ]
            self._classes[cls] = hashlib.sha256("\n".join(found).encode()).hexdigest()
        return self._classes[cls]

    def _member(self, value: Any) -> str:
        if isinstance(value, property):
            return self.of([value.fget, value.fset, value.fdel])
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__} {self.of(value.__func__)}"
        if isinstance(value, functools.cached_property):
            return self.of(value.func)
        if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            return value.__name__
        return self.of(value)

    def _code(self, code: types.CodeType) -> str:
        """What a function does, wherever its text stands."""
        constants = [
            self._code(c) if isinstance(c, types.CodeType) else self.of(c) for c in code.co_consts
        ]
        parts = [code.co_code.hex(), *constants, *code.co_names, *code.co_varnames]
        parts += code.co_freevars
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """A digest of a model: what its modules are, and every weight and buffer."""
    digest = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {describe(value).rpartition(',')[0]}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
