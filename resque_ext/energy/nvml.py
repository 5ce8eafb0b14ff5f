"""NVIDIA's management library, through `pynvml`: every error its own exception, units in SI.

The module can be given, so that a test needs no GPU; what is used of it is in this file alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class EnergyError(RuntimeError):
    """A reading that could not be had; the message says why."""


class NvmlError(EnergyError):
    """An error of NVML that has no class of its own."""


class NvmlMissing(NvmlError):
    """There is no pynvml, no driver library, or no driver: no GPU can be read."""


class NvmlNotSupported(NvmlError):
    """This GPU does not have what was asked for."""


class NvmlNoPermission(NvmlError):
    """The system does not let this user read it."""


class NvmlNotFound(NvmlError):
    """There is no such GPU."""


class NvmlGpuLost(NvmlError):
    """The GPU has fallen off the bus, or has to be reset."""


class NvmlTimeout(NvmlError):
    """The driver did not answer in time."""


class NvmlUninitialized(NvmlError):
    """NVML was shut down by somebody else in this process."""


class NvmlInvalidArgument(NvmlError):
    """A handle or index that NVML does not take (any more)."""


# By the end of NVML's own names, NVML_ERROR_...
ERRORS: dict[str, type[NvmlError]] = {
    "UNINITIALIZED": NvmlUninitialized,
    "INVALID_ARGUMENT": NvmlInvalidArgument,
    "NOT_SUPPORTED": NvmlNotSupported,
    "FUNCTION_NOT_FOUND": NvmlNotSupported,
    "NO_PERMISSION": NvmlNoPermission,
    "NOT_FOUND": NvmlNotFound,
    "GPU_IS_LOST": NvmlGpuLost,
    "RESET_REQUIRED": NvmlGpuLost,
    "TIMEOUT": NvmlTimeout,
    "DRIVER_NOT_LOADED": NvmlMissing,
    "LIBRARY_NOT_FOUND": NvmlMissing,
    "LIB_RM_VERSION_MISMATCH": NvmlMissing,
}


def _translated(function: Callable[..., T]) -> Callable[..., T]:
    """The method with pynvml's errors raised as the classes above."""

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any) -> T:
        nvml = self.nvml
        try:
            return function(self, *args)
        except nvml.NVMLError as error:
            code = getattr(error, "value", None)
            for name, kind in ERRORS.items():
                if code is not None and code == getattr(nvml, f"NVML_ERROR_{name}", None):
                    raise kind(f"NVML: {error}") from error
            raise NvmlError(f"NVML: {error}") from error

    return wrapper


class Nvml:
    """NVML, initialised; `close` once it is done with.

    Args:
        module: what `pynvml` is; imported by default.

    Raises:
        NvmlMissing: no pynvml, no driver.
    """

    def __init__(self, module: Any = None) -> None:
        if module is None:
            try:
                import pynvml as module
            except ImportError as error:
                raise NvmlMissing(
                    "pynvml is not installed: pip install 'resque-ext[energy]'"
                ) from error
        self.nvml = module
        self._init()

    @_translated
    def _init(self) -> None:
        self.nvml.nvmlInit()

    @_translated
    def count(self) -> int:
        """How many GPUs there are."""
        return self.nvml.nvmlDeviceGetCount()

    @_translated
    def gpu(self, index: int) -> Gpu:
        """The GPU of NVML's index, which CUDA_VISIBLE_DEVICES does not change."""
        return Gpu(self.nvml, self.nvml.nvmlDeviceGetHandleByIndex(index), index)

    @_translated
    def gpu_by_uuid(self, uuid: str) -> Gpu:
        """The GPU of a UUID, "GPU-..."."""
        handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        return Gpu(self.nvml, handle, self.nvml.nvmlDeviceGetIndex(handle))

    @_translated
    def close(self) -> None:
        """Gives NVML back; it counts its users itself."""
        self.nvml.nvmlShutdown()


class Gpu:
    """One GPU.

    Attributes:
        index: NVML's.
    """

    def __init__(self, nvml: Any, handle: Any, index: int) -> None:
        self.nvml, self.handle, self.index = nvml, handle, index

    @_translated
    def uuid(self) -> str:
        """ "GPU-...", the same in every process and container."""
        uuid = self.nvml.nvmlDeviceGetUUID(self.handle)
        return uuid.decode() if isinstance(uuid, bytes) else str(uuid)

    @_translated
    def millijoules(self) -> int:
        """Since the driver was loaded, by the GPU's own counter (Volta and later)."""
        return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    @_translated
    def power(self) -> float:
        """Watts now; averaged over a second by the driver on most GPUs since Ampere."""
        return self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000

    @_translated
    def power_limit(self) -> float:
        """Watts that the GPU is held to."""
        return self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000

    @_translated
    def processes(self) -> int:
        """Processes that compute on it, as far as this one may see them."""
        return len(self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))

    def is_split(self) -> bool:
        """Whether MIG has split it into instances."""
        try:
            return self._mig_mode() == 1
        except NvmlNotSupported:
            return False  # a GPU that cannot be split

    @_translated
    def _mig_mode(self) -> int:
        return self.nvml.nvmlDeviceGetMigMode(self.handle)[0]
