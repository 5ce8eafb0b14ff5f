"""What of resque_ext works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from resque_ext import ops
from resque_ext.environment import devices, version_of, versions
from resque_ext.ops.backend import backend, build_info, checkout_digest

# Distributions by extra, as in pyproject.toml: read from here too where nothing is installed.
EXTRAS = {
    "energy": ("nvidia-ml-py", "codecarbon"),
    "plots": ("matplotlib",),
    "files": ("pyarrow",),
    "models": ("torchvision", "timm"),
    "distributed": ("ray",),
}


def covers(architectures: list[str], capability: str, *, compiled: bool = False) -> bool:
    """Whether kernels built for `architectures` run on a GPU of `capability` ("9.0").

    "80" and "90a" are machine code, which runs on its own major version from its minor on. There is
    intermediate code (PTX) of "80-virtual", and of the last one: it runs on every later capability,
    unless it is specific to an architecture (suffix a or f), but the driver has to compile it.
    `compiled` asks for machine code alone.
    """
    wanted = tuple(map(int, capability.split(".")))
    for architecture in architectures:
        name, _, virtual = architecture.partition("-")
        own, specific = divmod(int(name.rstrip("af")), 10), name[-1] in "af"
        earlier = not specific and own <= wanted
        if not virtual and (own == wanted or (earlier and own[0] == wanted[0])):
            return True
        if not compiled and earlier and (virtual or architecture == architectures[-1]):
            return True
    return False


def examine() -> dict[str, Any]:
    """Everything that `resque-ext doctor` reports, as plain values for JSON.

    `problems` are what keeps the package from working on a device that is there, `missing` what is
    absent and may not be needed; each entry has "what" and "how" to get it.
    """
    build = build_info()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # an outdated driver shows only as a warning of torch
        machine = devices()
    problems = [{"what": " ".join(str(w.message).split()), "how": "as torch says"} for w in caught]
    missing = []
    if build["missing"]:
        what, _, how = build["missing"].rpartition("; ")
        problems.append({"what": what, "how": how})
    sources = checkout_digest(Path(__file__).resolve().parents[1])
    if not build["missing"] and sources not in (None, build["source_digest"]):
        what = "the extension was built of other C++ sources than those in this checkout"
        problems.append({"what": what, "how": "build it again: pip install -e ."})
    for device in machine:
        device["kernels"], problem = _check(device, build)
        problems += [problem] if problem else []
        if device["kernels"] == "work" and not _compiled_for(device, build):
            wanted = device["capability"].replace(".", "")
            missing.append(
                {
                    "what": f"machine code for {device['device']} ({device['name']}, "
                    f"{device['capability']}): the driver compiles the kernels at their first use",
                    "how": f"install again on this machine, or with RESQUE_CUDA_ARCHS={wanted}",
                }
            )
    if len(machine) == 1:
        cuda = torch.version.cuda
        missing.append(
            {
                "what": f"a CUDA device (torch {torch.__version__}, "
                + (f"CUDA {cuda})" if cuda else "built without CUDA)"),
                "how": "nothing, for work on the CPU"
                if cuda
                else "a torch with CUDA, from https://pytorch.org/get-started, if there is a GPU",
            }
        )
    if not build.get("cuda") and not build["missing"]:
        missing.append(
            {
                "what": "CUDA kernels",
                "how": "put nvcc on the PATH, then: pip install --force-reinstall --no-deps .",
            }
        )
    extras = {extra: {name: version_of(name) for name in EXTRAS[extra]} for extra in EXTRAS}
    for extra, found in extras.items():
        absent = [name for name, version in found.items() if version is None]
        if absent:
            missing.append({"what": ", ".join(absent), "how": f"pip install 'resque-ext[{extra}]'"})
    return {
        "build": build,
        "versions": versions(),
        "platform": platform.platform(),
        "torch_cuda": torch.version.cuda,
        "devices": machine,
        "extras": extras,
        "problems": problems,
        "missing": missing,
    }


def _compiled_for(device: dict[str, Any], build: dict[str, Any]) -> bool:
    """Whether there is machine code for the device; the CPU has no other."""
    if device["device"] == "cpu":
        return True
    return covers(build["cuda"]["architectures"], device["capability"], compiled=True)


def _check(device: dict[str, Any], build: dict[str, Any]) -> tuple[str, dict[str, str] | None]:
    """Whether the kernels work on one device, tried with a real call, and what to do where not."""
    name = device["device"]
    if build["missing"]:
        return "none: no extension", None  # said once, for all devices
    if name != "cpu":
        if not build["cuda"]:
            what, how = f"no CUDA kernels for {name}", "put nvcc on the PATH and install again"
            return "none: built without CUDA", {"what": what, "how": how}
        built = build["cuda"]["architectures"]
        if not covers(built, device["capability"]):
            wanted = device["capability"].replace(".", "")
            return f"built for {', '.join(built)}", {
                "what": f"CUDA kernels for {name} ({device['name']}, {device['capability']})",
                "how": f"install again with RESQUE_CUDA_ARCHS={','.join([*built, wanted])}",
            }
    try:
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], device=name)
        y = torch.tensor([0, 1, 0], device=name)
        with backend("native"):
            _, sums, _ = ops.class_moments(x, y, 2)
        right = sums.tolist() == [[6.0, 8.0], [3.0, 4.0]]
    except (RuntimeError, TypeError) as error:  # of CUDA; of an extension of another version
        reason = " ".join(str(error).split())
        return "failed", {"what": f"class_moments on {name}: {reason}", "how": "install again"}
    if not right:
        what = f"class_moments on {name} gives wrong results"
        return "wrong results", {"what": what, "how": "install again, report it if it stays"}
    return "work", None
