"""Builds resque_ext._C with ninja: C++ always, CUDA where nvcc is found. Imports no torch.

RESQUE_CUDA=auto|0|1     auto (default): CUDA kernels if nvcc is on the PATH; 1: fail without it
RESQUE_CUDA_ARCHS=80,90  architectures; else TORCH_CUDA_ARCH_LIST; else 80, 90, 100 and 120 as far
                         as nvcc knows them. PTX of the last one is always included.
RESQUE_NVCC_FLAGS        further flags for nvcc, for example "-Werror all-warnings -Xptxas -v"
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma"
# The files of csrc/cpu/isa are compiled once for each of these; see csrc/cpu/isa.h.
ISA_FLAGS = {"baseline": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS |= {
        "avx2": "-mavx2 -mfma",
        "avx512": AVX512,
        "avx512icl": f"{AVX512} -mavx512vpopcntdq",
    }
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -Xcompiler -Wall"


def find_nvcc() -> str | None:
    wanted = os.environ.get("RESQUE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"RESQUE_CUDA: expected auto, 0 or 1, found {wanted!r}")
    if wanted == "0":
        return None
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None and wanted == "1":
        sys.exit("RESQUE_CUDA=1: expected nvcc on the PATH, found none (install the CUDA toolkit)")
    return nvcc


def cuda_architectures(nvcc: str) -> list[str]:
    """Compute capabilities as nvcc writes them ("80"), lowest first; no GPU is asked."""
    for variable in ("RESQUE_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        text = os.environ.get(variable, "")
        if not text:
            continue
        words = [w.removesuffix("+PTX").replace(".", "") for w in re.split(r"[\s,;]+", text) if w]
        if not words or not all(re.fullmatch(r"\d{2,3}[af]?", w) for w in words):
            sys.exit(f'{variable}: expected compute capabilities like "80,90", found {text!r}')
        return sorted(set(words), key=lambda w: int(w.rstrip("af")))
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = [a for a in ("80", "90", "100", "120") if f"compute_{a}\n" in listed.stdout]
    if not known:
        sys.exit(f"{nvcc} --list-gpu-arch: expected compute_80 or later, found {listed.stdout!r}")
    return known


def source_digest() -> str:
    """Tells an extension from one that was built of other sources."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.is_file()):
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def ninja_text(output: Path, build: Path) -> str:
    """The whole build as a ninja file; ninja rebuilds what a changed flag or header touches."""
    nvcc = find_nvcc()
    cxx = os.environ.get("CXX", "g++")
    sources = [CSRC / "bindings.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    archs = cuda_architectures(nvcc) if nvcc else []
    if nvcc:
        sources += sorted((CSRC / "cuda").glob("*.cu"))
    include = quoted(f"-I{CSRC}")
    headers = (pybind11.get_include(), python_headers())
    python_include = " ".join(f"-isystem {quoted(path)}" for path in headers)
    facts = {
        "RESQUE_SOURCE_DIGEST": source_digest(),
        "RESQUE_CXX_FLAGS": CXX_FLAGS,
        "RESQUE_CUDA_ARCHS": ",".join(archs),
    }
    defines = " ".join(shlex.quote(f'-D{k}="{v}"') for k, v in facts.items())
    if nvcc:
        defines += " -DRESQUE_WITH_CUDA"
    gencode = " ".join(f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs)
    if archs:
        gencode += f" -gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"
    more = os.environ.get("RESQUE_NVCC_FLAGS", "")
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    static = (
        "" if sys.platform == "darwin" else "-static-libstdc++ -static-libgcc -Wl,--gc-sections"
    )
    link = (
        f"{nvcc} -shared -cudart static -Xcompiler -static-libstdc++,-static-libgcc $in -o $out"
        if nvcc
        else f"{cxx} {shared} -pthread {static} $in -o $out"
    )
    compile_to = f"-MMD -MF $out.d {include} $flags -c $in -o $out"
    rules = [
        "rule cxx",
        f"  command = {cxx} {CXX_FLAGS} {compile_to}",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {nvcc} {NVCC_FLAGS} {gencode} {more} {compile_to}",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link}",
    ]
    objects = []

    def compile_one(source: Path, flags: str = "", label: str = "") -> None:
        stem = source.relative_to(CSRC).as_posix().replace("/", "_")
        objects.append(escape(build / f"{stem}{label}.o"))
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        rules.extend([f"build {objects[-1]}: {rule} {escape(source)}", f"  flags = {flags}"])

    for source in sources:
        compile_one(source, f"{python_include} {defines}" if source.name == "bindings.cpp" else "")
    for source in sorted((CSRC / "cpu" / "isa").glob("*.cpp")):
        for isa, flags in ISA_FLAGS.items():
            compile_one(source, f"-DRESQUE_ISA={isa} {flags} -Wno-maybe-uninitialized", f".{isa}")
    rules.append(f"build {escape(output)}: link {' '.join(objects)}")
    return "\n".join(rules) + "\n"


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quoted(text: str) -> str:
    """A word of a command in a ninja file."""
    return shlex.quote(text).replace("$", "$$")


def python_headers() -> str:
    import sysconfig

    return sysconfig.get_paths()["include"]


class BuildWithNinja(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(ninja_text(output, build))
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            sys.exit("resque_ext._C was not built: the compiler's message is above")


setup(
    ext_modules=[Extension("resque_ext._C", sources=[])],
    cmdclass={"build_ext": BuildWithNinja},
)
