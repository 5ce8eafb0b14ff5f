"""A stand-in for the module pynvml whose GPUs draw a power that is known, and fail when told to."""

import time


class Clock:
    """Seconds that pass when told to, or a little with every look."""

    def __init__(self, tick=0.0):
        self.now, self.tick = 1000.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def __deepcopy__(self, memo):
        return self  # there is one time


class RealClock:
    """time.perf_counter, as FakeNvml wants it."""

    @property
    def now(self):
        return time.perf_counter()

    def __call__(self):
        return time.perf_counter()

    def sleep(self, seconds):
        time.sleep(seconds)


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(f"error {value}")
        self.value = value


class FakeGpu:
    """One GPU: `watts` of the time since the start, integrated in closed form by `joules`."""

    def __init__(self, watts=lambda t: 100.0, joules=lambda t: 100.0 * t, start_joules=500.0):
        self.watts, self.joules, self.start_joules = watts, joules, start_joules
        self.bits = 64  # the counter's size in mJ
        self.reset_at = None  # seconds at which the driver is loaded anew
        self.update = 0.0  # seconds between two updates of the counter
        self.counter = True
        self.mig = None  # None: it cannot be split
        self.processes = 1
        self.fails = None  # an error for every call while it is set
        self.calls = 0
        self.slow = 0.0  # seconds that a reading takes
        self.uuid = None


class FakeNvml:
    """The functions of pynvml that are used, over a list of FakeGpu."""

    NVMLError = NVMLError
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_TIMEOUT = 10
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_ERROR_UNKNOWN = 999

    def __init__(self, *gpus, clock=None, driver=True):
        self.gpus = list(gpus or (FakeGpu(),))
        self.clock = clock or Clock()
        self.began = self.clock.now
        self.driver, self.users = driver, 0

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError(self.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.gpus):
            raise NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for gpu in self.gpus:
            if uuid == self.nvmlDeviceGetUUID(gpu):
                return gpu
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetIndex(self, gpu):
        return self.gpus.index(gpu)

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid or f"GPU-fake-{id(self)}-{self.gpus.index(gpu)}"

    def nvmlDeviceGetMigMode(self, gpu):
        if gpu.mig is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return (gpu.mig, gpu.mig)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        self._may_fail(gpu)
        if not gpu.counter:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        seconds = self.clock.now - self.began
        if gpu.update:
            seconds -= seconds % gpu.update
        joules = gpu.start_joules + gpu.joules(seconds)
        if gpu.reset_at is not None and seconds >= gpu.reset_at:
            joules = gpu.joules(seconds) - gpu.joules(gpu.reset_at)
        return round(joules * 1000) % 2**gpu.bits

    def nvmlDeviceGetPowerUsage(self, gpu):
        self._may_fail(gpu)
        return round(gpu.watts(self.clock.now - self.began) * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        return 400_000

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [object()] * gpu.processes

    def _may_fail(self, gpu):
        gpu.calls += 1
        self.clock.sleep(gpu.slow)
        if gpu.fails is not None:
            raise gpu.fails
