"""EnergyMeter against GPUs whose power is known: windows, counters that fail, arguments."""

import contextlib
import math
import random
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import optional
from helpers.energy_made import figure, make, wave
from helpers.fake_nvml import Clock, FakeGpu, FakeNvml, NVMLError, RealClock

from resque_ext.energy import EnergyMeter, EnergyWarning, Measurement, nvml, once
from resque_ext.energy.gpu import PowerSource
from resque_ext.energy.nvml import Gpu


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(once, "folder", lambda: tmp_path)


def test_a_known_curve():
    gpu = wave()
    meter, fake, clock = make(gpu, FakeGpu(joules=lambda t: 7 * t))
    clock.sleep(3.3)
    meter.begin("a")
    clock.sleep(12.5)
    result = meter.end("a")
    found = figure(result)
    assert found.value == pytest.approx(gpu.joules(15.8) - gpu.joules(3.3), abs=1e-3)
    assert (found.unit, found.source, found.reason, found.notes) == ("J", "nvml-counter", None, ())
    assert found.resolution == pytest.approx(found.value / 12.5 * 0.1)
    assert figure(result, "gpu:1").value == pytest.approx(87.5, abs=1e-3)
    assert result.measured.value == pytest.approx(found.value + 87.5, abs=2e-3)
    assert (result.seconds, result.windows) == (pytest.approx(12.5), 1)
    meter.close()
    assert fake.users == 0


def test_windows_nest_and_overlap():
    gpu = wave()
    meter, _, clock = make(gpu)
    moments = {}

    def at(action, name):
        moments[action, name] = clock.now - 1000
        return getattr(meter, action)(name)

    results = {}
    at("begin", "a")
    clock.sleep(2)
    at("begin", "b")
    clock.sleep(3)
    at("begin", "c")
    clock.sleep(1.5)
    results["b"] = at("end", "b")
    clock.sleep(4)
    results["a"] = at("end", "a")
    clock.sleep(2.5)
    results["c"] = at("end", "c")
    for name, result in results.items():
        expected = gpu.joules(moments["end", name]) - gpu.joules(moments["begin", name])
        assert figure(result).value == pytest.approx(expected, abs=2e-3)
        assert result.name == name


def test_pauses_are_left_out():
    gpu = wave()
    meter, _, clock = make(gpu)
    meter.begin("training")
    expected = 0.0
    for length in (3.0, 2.0, 5.0):
        meter.resume("training")
        before = gpu.joules(clock.now - 1000)
        clock.sleep(length)
        expected += gpu.joules(clock.now - 1000) - before
        meter.pause("training")
        meter.pause("training")  # again is no harm
        clock.sleep(7.7)
    result = meter.end("training")
    assert figure(result).value == pytest.approx(expected, abs=5e-3)
    assert result.seconds == pytest.approx(10)
    # Three stretches: each with an error of its own.
    assert figure(result).resolution == pytest.approx(expected / 10 * 0.1 * math.sqrt(3), rel=1e-3)


def test_blocks_and_peeks():
    meter, _, clock = make()
    with meter.window("block") as metered:
        clock.sleep(2)
        assert figure(meter.peek("block")).value == pytest.approx(200)
        clock.sleep(3)
        assert metered.measurement is None
    assert figure(metered.measurement).value == pytest.approx(500)
    with contextlib.suppress(KeyError), meter.window("again") as metered:
        clock.sleep(1)
        raise KeyError
    assert figure(metered.measurement).value == pytest.approx(100)


@pytest.mark.parametrize("bits", [32, 64])
def test_counter_that_turns(bits):
    gpu = wave(start_joules=(2**bits - 400_000) / 1000)
    gpu.bits = bits
    gpu.start_joules = 0
    base = 2**bits - 400_000  # mJ; an integer, as a float has too few digits
    meter, fake, clock = make(gpu)
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda g: (
        (base + round(g.joules(clock.now - 1000) * 1000)) % 2**bits
    )
    meter.begin("all")
    for _ in range(5):
        clock.sleep(2)
        meter.peek("all")
    found = figure(meter.end("all"))
    assert gpu.joules(10) > 400  # it has turned
    assert found.value == pytest.approx(gpu.joules(10), abs=5e-3)


def test_driver_loaded_anew():
    gpu = wave(start_joules=1e6)
    gpu.reset_at = 12.0
    meter, _, clock = make(gpu)
    meter.begin("all")
    meter.begin("before")
    clock.sleep(10)
    assert figure(meter.end("before")).value == pytest.approx(gpu.joules(10), abs=2e-3)
    meter.begin("across")
    clock.sleep(5)
    with pytest.warns(EnergyWarning, match=r"gpu:0 .*the driver was loaded anew"):
        found = figure(meter.end("across"))
    assert found.value is None
    assert "the counter went back from" in found.reason
    meter.begin("after")
    clock.sleep(5)
    expected = gpu.joules(20) - gpu.joules(15)
    assert figure(meter.end("after")).value == pytest.approx(expected, abs=2e-3)
    assert "the counter went back from" in figure(meter.end("all")).reason


def test_error_at_the_end_of_a_window():
    gpu = wave()
    meter, fake, clock = make(gpu)
    meter.begin("all")
    meter.begin("first")
    clock.sleep(2)
    gpu.fails = NVMLError(fake.NVML_ERROR_GPU_IS_LOST)
    with pytest.warns(EnergyWarning, match="gpu:0 .*NvmlGpuLost"):
        found = figure(meter.end("first"))
    assert found.value is None
    assert "NvmlGpuLost" in found.reason
    assert figure(meter.peek("all")).value is None
    clock.sleep(3)
    gpu.fails = None
    # The counter has gone on: who had no need of a reading while it failed lost nothing.
    assert figure(meter.end("all")).value == pytest.approx(gpu.joules(5), abs=2e-3)


def test_an_error_is_told_once_and_never_raised():
    gpu = wave()
    meter, _, clock = make(gpu)
    gpu.fails = ZeroDivisionError("a driver of any quality")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            meter.begin("a")
            clock.sleep(1)
            assert "ZeroDivisionError" in figure(meter.end("a")).reason
    again, _, clock = make(gpu := wave())
    gpu.fails = RuntimeError("x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            again.begin("a")
            again.end("a")
    assert [w.category for w in caught] == [EnergyWarning]


def test_without_a_counter_power_is_sampled():
    gpu = wave()
    gpu.counter = False
    clock = Clock()
    source = PowerSource(Gpu(FakeNvml(gpu, clock=clock), gpu, 0), clock, interval=None)
    source.start()
    first = source.read()
    for _ in range(200):
        clock.sleep(0.1)
        source.read()
    found = source.read().joules - first.joules
    # The trapezoidal rule: error at most length * step^2 / 12 * max |second derivative|.
    assert found == pytest.approx(gpu.joules(20), abs=20 * 0.1**2 / 12 * 50 + 0.02)


def test_sampling_thread_in_real_time():
    gpu = FakeGpu(watts=lambda t: 200.0)
    gpu.counter = False
    meter, _, clock = make(gpu, clock=RealClock())
    with meter.window("a") as metered:
        clock.sleep(0.35)
    found = figure(metered.measurement)
    assert found.source == "nvml-power"
    assert found.value == pytest.approx(200 * metered.measurement.seconds, rel=0.02)
    assert any("no energy counter" in note for note in found.notes)
    calls = gpu.calls
    assert calls >= 5  # two readings, and samples in between
    clock.sleep(0.25)
    assert gpu.calls == calls  # nothing is sampled while no window is open
    meter.close()


def test_a_gap_between_samples_is_a_loss():
    gpu = FakeGpu()
    gpu.counter = False
    clock = Clock()
    source = PowerSource(Gpu(FakeNvml(gpu, clock=clock), gpu, 0), clock, interval=1000)
    source.read()
    clock.sleep(1.9)
    assert source.read().breaks == 0
    clock.sleep(2.1)
    with pytest.warns(EnergyWarning, match=r"no sample of the power for 2.1 s"):
        assert source.read().breaks == 1


def test_mig_missing_gpus_and_no_driver():
    split, whole = FakeGpu(), FakeGpu()
    split.mig, whole.mig = 1, 0
    meter, fake, clock = make(split, whole, gpus=[0, 1, 5, "MIG-1234", "GPU-none"])
    with meter.window("a") as metered:
        clock.sleep(5)
    found = {f.part: f for f in metered.measurement.figures}
    assert found["gpu:1"].value == pytest.approx(500)
    for part, reason in (
        ("gpu:0", "split by MIG"),
        ("gpu:MIG-1234", "split by MIG"),
        ("gpu:5", "NVML"),
        ("gpu:GPU-none", "NVML"),
    ):
        assert found[part].value is None
        assert reason in found[part].reason
    total = metered.measurement.measured
    assert total.value == pytest.approx(500)
    assert "without gpu:0, gpu:5, gpu:MIG-1234, gpu:GPU-none" in total.notes
    by_uuid = EnergyMeter([fake.nvmlDeviceGetUUID(whole)], cpu=False, nvml=fake, clock=clock)
    with by_uuid.window("a") as metered:
        clock.sleep(5)
    assert figure(metered.measurement, "gpu:1").value == pytest.approx(500)

    nothing = EnergyMeter(cpu=False, nvml=FakeNvml(driver=False))
    with nothing.window("a") as metered:
        pass
    assert metered.measurement.measured.value is None
    assert metered.measurement.measured.reason.startswith("gpu: NVML")


def test_without_pynvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with EnergyMeter(cpu=False).window("a") as metered:
        pass
    assert "pip install 'resque-ext[energy]'" in figure(metered.measurement, "gpu").reason


def test_visible_devices(monkeypatch):
    for listed, parts in ((None, 3), ("1", 1), ("2,0", 2), ("", 0), ("-1", 0)):
        if listed is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        meter, _, clock = make(FakeGpu(), FakeGpu(), FakeGpu())
        with meter.window("a") as metered:
            clock.sleep(5)
        names = [f.part for f in metered.measurement.figures]
        assert names == [f"gpu:{i}" for i in (listed or "0,1,2").split(",") if parts and i][:parts]


@pytest.mark.parametrize("name", [n for n in vars(FakeNvml) if n.startswith("NVML_ERROR_")])
def test_every_error_has_its_exception(name):
    gpu = FakeGpu()
    fake = FakeNvml(gpu)
    gpu.fails = NVMLError(getattr(fake, name))
    expected = nvml.ERRORS.get(name.removeprefix("NVML_ERROR_"), nvml.NvmlError)
    with pytest.raises(nvml.NvmlError) as caught:
        Gpu(fake, gpu, 0).millijoules()
    assert type(caught.value) is expected


def test_errors_are_those_of_the_real_module():
    pynvml = optional.module("pynvml")
    for name in nvml.ERRORS:
        code = getattr(pynvml, f"NVML_ERROR_{name}")
        assert code == getattr(FakeNvml, f"NVML_ERROR_{name}")
        assert pynvml.NVMLError(code).value == code
    for name in vars(FakeNvml):
        assert name.startswith("_") or hasattr(pynvml, name), name


def test_torch_devices_are_found_by_their_uuid(monkeypatch):
    gpus = FakeGpu(), FakeGpu(joules=lambda t: 7 * t)
    gpus[1].uuid = "GPU-11112222-aaaa"
    known = SimpleNamespace(uuid="11112222-aaaa")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = torch.device("cuda", 0)  # as CUDA_VISIBLE_DEVICES numbers it
    meter, _, clock = make(*gpus, gpus=[device])
    with meter.window("a") as metered:
        clock.sleep(5)
    assert figure(metered.measurement, "gpu:1").value == pytest.approx(35)
    assert waited == [device, device]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    meter, _, clock = make(*gpus, gpus=[device])
    with meter.window("a") as metered:
        clock.sleep(5)
    assert "which GPU it is" in figure(metered.measurement, "gpu").reason


def test_short_windows_say_so():
    gpu = FakeGpu()
    gpu.update = 0.1
    meter, _, clock = make(gpu)
    for seconds, known, short in ((0.04, False, None), (0.5, True, True), (5, True, False)):
        with meter.window("a") as metered:
            clock.sleep(seconds)
        found = figure(metered.measurement)
        assert (found.value is not None) == known
        if known:
            assert any("short window" in note for note in found.notes) == short
        else:
            assert "too short" in found.reason


def test_resolution_covers_what_a_slow_counter_misses():
    rng = random.Random(0)
    gpu = wave()
    gpu.update = 0.1
    meter, _, clock = make(gpu)
    for _ in range(100):
        clock.sleep(rng.random())
        begin = clock.now - 1000
        with meter.window("a") as metered:
            clock.sleep(0.2 + 3 * rng.random())
        found = figure(metered.measurement)
        error = abs(found.value - (gpu.joules(clock.now - 1000) - gpu.joules(begin)))
        assert error <= 1.5 * found.resolution  # the power of the moment is up to 1.5 of the mean


@pytest.mark.parametrize("nested", [True, False])
def test_readings_never_take_more_than_their_share(nested):
    gpu = FakeGpu()
    gpu.slow = 0.005
    meter, _, clock = make(gpu)
    gpu.calls, begin = 0, clock.now
    if nested:
        meter.begin("all")
    for _ in range(20_000):  # windows of a millisecond
        with meter.window("step") as metered:
            clock.sleep(0.001)
        assert figure(metered.measurement).value is None
    assert gpu.calls * gpu.slow < 0.015 * (clock.now - begin)
    if nested:
        # What that costs in resolution is told, and holds.
        result = meter.end("all")
        found = figure(result)
        assert found.resolution >= 100 * 0.5
        assert found.value == pytest.approx(100 * result.seconds, abs=found.resolution)


def test_one_reading_that_hangs_does_not_spoil_the_rest():
    gpu = FakeGpu()
    meter, _, clock = make(gpu)
    gpu.slow = 3.0
    with meter.window("a"):
        clock.sleep(1)
    gpu.slow = 0.0
    for _ in range(20):
        with meter.window("a") as metered:
            clock.sleep(5)
    assert figure(metered.measurement).value == pytest.approx(500)


def test_device_is_waited_for_before_it_is_read():
    log = []
    gpu = FakeGpu(joules=lambda t: log.append("read") or 100 * t)
    meter, _, _ = make(gpu, synchronize=lambda: log.append("wait"))
    log.clear()
    meter.begin("a")
    meter.end("a")
    assert log == ["wait", "read", "wait", "read"]

    def broken():
        raise RuntimeError("device")

    meter, _, clock = make(synchronize=broken)
    with pytest.warns(EnergyWarning, match="device"), meter.window("a") as metered:
        clock.sleep(5)
    assert figure(metered.measurement).value == pytest.approx(500)


def test_emissions_by_hand():
    meter, _, clock = make(FakeGpu(joules=lambda t: 250 * t), carbon_intensity=400)
    with meter.window("a") as metered:
        clock.sleep(3600 * 8)  # 250 W for 8 hours: 2 kWh
    result = metered.measurement
    assert result.measured.kwh == pytest.approx(2)
    assert result.emissions.value == pytest.approx(0.8)
    assert result.emissions.unit == "kg CO2e"
    assert "carbon intensity: given" in result.emissions.notes
    assert Measurement.from_dict(result.to_dict()) == result
    unknown, _, clock = make()
    with unknown.window("a") as metered:
        clock.sleep(5)
    assert metered.measurement.emissions.value is None
    assert "no country" in metered.measurement.emissions.reason


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"carbon_intensity": -1}, ValueError, "carbon_intensity"),
        ({"carbon_intensity": math.nan}, ValueError, "carbon_intensity"),
        ({"carbon_intensity": "400"}, TypeError, "carbon_intensity"),
        ({"carbon_intensity": 4, "country": "FRA"}, ValueError, "country, carbon_intensity"),
        ({"region": "california"}, ValueError, "region"),
        ({"country": 33}, TypeError, "country"),
        ({"tracking": "all"}, ValueError, "tracking"),
        ({"gpus": [1.5]}, TypeError, "gpus"),
        ({"gpus": [True]}, TypeError, "gpus"),
        ({"gpus": [torch.device("cpu")]}, ValueError, "gpus"),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=rf"^{message}: expected .* found"):
        make(**options)


def test_windows_misnamed():
    meter, _, _ = make()
    meter.begin("a")
    with pytest.raises(ValueError, match=r"^name: .*not open yet, found 'a'"):
        meter.begin("a")
    for action in ("end", "pause", "resume", "peek"):
        with pytest.raises(ValueError, match=r"^name: expected an open window \(a\), found 'b'"):
            getattr(meter, action)("b")
    with pytest.raises(TypeError, match=r"^name: "):
        meter.begin(3)
    meter.close()
    meter.close()
    with pytest.raises(ValueError, match="closed"):
        meter.begin("b")
