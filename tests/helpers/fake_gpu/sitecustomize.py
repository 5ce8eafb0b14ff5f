"""A GPU that is none, for a rehearsal of benchmarks/gpu.sh: every "cuda" tensor is one of the CPU.

With this folder on PYTHONPATH, `torch.cuda` says that there is a device, factories and
`.to("cuda")` give CPU tensors, and events read the host's clock. Figures mean nothing; the control
flow is real. FAKE_GPU_SECONDS is how long each event and each synchronization takes;
FAKE_GPU_WITHOUT names packages, separated by commas, that are not installed where the GPU is.
"""

import contextlib
import os
import sys
import time
import types

import torch
from torch.overrides import TorchFunctionMode

SECONDS = float(os.environ.get("FAKE_GPU_SECONDS", "0"))
sys.modules.update(dict.fromkeys(filter(None, os.environ.get("FAKE_GPU_WITHOUT", "").split(","))))


def _cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    return value


class _OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.device:  # a device may be called cuda; only tensors have to be here
            return function(*args, **(kwargs or {}))
        kwargs = {name: _cpu(value) for name, value in (kwargs or {}).items()}
        kwargs.pop("pin_memory", None)
        return function(*map(_cpu, args), **kwargs)


class _Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self, stream=None):
        time.sleep(SECONDS)
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class _Stream:
    """What is asked of it has happened already."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return _nothing


def _nothing(*args, **kwargs):
    return None


class _Context(contextlib.nullcontext):
    def __init__(self, *args, **kwargs):
        super().__init__()


def _properties(device=None):
    major, minor = torch.cuda.get_device_capability()
    return types.SimpleNamespace(
        name=torch.cuda.get_device_name(), major=major, minor=minor, total_memory=2**37, uuid="0"
    )


def _synchronize(device=None):
    time.sleep(SECONDS)


def _uncompiled(function=None, **options):
    return function or (lambda each: each)


_Generator = torch.Generator


class _GeneratorOnTheCpu(_Generator):
    def __new__(cls, device="cpu"):
        return _Generator(_cpu(device))


torch.Generator = _GeneratorOnTheCpu
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_name = lambda device=None: "no GPU: a rehearsal"
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.Event = _Event
torch.cuda.get_device_properties = _properties
torch.cuda.synchronize = _synchronize
torch.cuda.Stream = torch.cuda.current_stream = _Stream
torch.cuda.stream = torch.cuda.device = _Context
torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
for _name in ("_sleep", "empty_cache", "manual_seed", "set_rng_state", "set_sync_debug_mode"):
    setattr(torch.cuda, _name, lambda *args, **kwargs: None)  # dynamo wants one object a name
torch.Tensor.cuda = torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
# What asks for the driver: the compiler, and optimizers before a step.
torch.compile = _uncompiled
torch.accelerator.current_accelerator = _nothing
_OnTheCpu().__enter__()
