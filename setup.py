"""Builds resque_ext._C with ninja: C++ always, CUDA where nvcc is found. Imports no torch.

RESQUE_CUDA=auto|0|1     auto (default): CUDA kernels if nvcc is on the PATH; 1: fail without it
RESQUE_CUDA_ARCHS=80,90  GPU architectures, each with machine code, the last one with PTX too;
                         75-virtual: PTX alone; all: 7.5 to 12.0 as far as nvcc knows them.
                         Else TORCH_CUDA_ARCH_LIST, else what this machine's GPUs need, and without
                         a GPU 75-virtual.
RESQUE_NVCC_FLAGS        further flags for nvcc, for example "-Werror all-warnings -Xptxas -v"
RESQUE_CCACHE=auto|0     auto (default): through ccache or sccache if one is on the PATH
MAX_JOBS                 compilers at a time, else as many as ninja chooses

docs/building.md says more.
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
# The files that gain from a set; one that is not here is for all of csrc/cpu/isa.
ISA_FILES = {"avx512icl": ("row_distances_rows.cpp",)}
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi"
BINDINGS_FLAGS = "-O1"  # after -O3: they only pass pointers on, and take a third of the time
# -O1 is for the host's side, which only launches; the kernels are always optimized in full.
NVCC_FLAGS = "-std=c++17 -O1 -Xcompiler -fPIC,-fvisibility=hidden -Xcompiler -Wall"
# What "all" means: GPUs that people rent or own. The kernels need the first at least.
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# The sources that take longest, first: started last, one would end alone. Others follow by name.
LONGEST = (
    *("cuda/row_distances_*.cu", "cuda/class_moments.cu", "cuda/lloyd_step_*.cu"),
    *("bindings.cpp", "cpu/row_distances.cpp", "cuda/*.cu"),
)


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
    """What to compile for, lowest first: "80", or "80-virtual" for PTX without machine code."""
    for variable in ("RESQUE_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        text = os.environ.get(variable, "")
        if not text:
            continue
        if text == "all" and variable == "RESQUE_CUDA_ARCHS":
            return known_architectures(nvcc)
        words = [w.removesuffix("+PTX").replace(".", "") for w in re.split(r"[\s,;]+", text) if w]
        if not words or not all(re.fullmatch(r"\d{2,3}[af]?(-virtual)?", w) for w in words):
            sys.exit(f'{variable}: expected compute capabilities like "80,90", found {text!r}')
        enough = sorted({w for w in words if number(w) >= number(ARCHITECTURES[0])}, key=number)
        # torch's list names those that torch supports, which go further back.
        if not enough or (variable == "RESQUE_CUDA_ARCHS" and len(enough) < len(set(words))):
            sys.exit(f"{variable}: expected compute capabilities from 7.5 on, found {text!r}")
        return enough
    known = known_architectures(nvcc)
    # Code of a lower minor version runs on a higher one; PTX of the last on all that come after it.
    fitting = (
        [a for a in known if number(a) <= number(gpu)][-1:] for gpu in gpus_of_this_machine()
    )
    found = sorted({a for fit in fitting for a in fit}, key=number)
    # Without a GPU nobody knows where the kernels will run, and they need not be fast here. PTX of
    # the lowest serves every GPU: its driver compiles it once, when it is first used.
    return found or [f"{known[0]}-virtual"]


def number(architecture: str) -> int:
    return int(re.match(r"\d+", architecture)[0])


def known_architectures(nvcc: str) -> list[str]:
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = [a for a in ARCHITECTURES if f"compute_{a}\n" in listed.stdout]
    if not known:
        sys.exit(f"{nvcc} --list-gpu-arch: expected compute_75 or later, found {listed.stdout!r}")
    return known


def gpus_of_this_machine() -> list[str]:
    """Their compute capabilities, as "90"; none where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.split() if done.returncode == 0 else []
    return [line.replace(".", "") for line in lines if re.fullmatch(r"\d+\.\d", line)]


def gencode(architectures: list[str]) -> str:
    """nvcc's flags for them; PTX of the last one is always included."""
    flags = []
    for a in architectures:
        name, _, virtual = a.partition("-")
        if not virtual:
            flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if virtual or a == architectures[-1]:
            flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return " ".join(flags)


def compression(nvcc: str) -> str:
    """nvcc's flags for kernels that take little room, which every driver that it needs can read."""
    listed = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+)\.", listed.stdout)
    if release and int(release[1]) >= 13:
        return "--compress-mode=size"  # in CUDA 12 it needs a later driver than the code does
    return "-Xfatbin=-compress-all"


def compiler_cache() -> str:
    """What goes before a compiler's command: a compiler cache, if there is one on the PATH."""
    wanted = os.environ.get("RESQUE_CCACHE", "auto")
    if wanted not in ("auto", "0"):
        sys.exit(f"RESQUE_CCACHE: expected auto or 0, found {wanted!r}")
    if wanted == "0":
        return ""
    if ccache := shutil.which("ccache"):
        # nvcc preprocesses for the host and for each architecture: ccache, which looks at one of
        # them, is to compare the files instead. And nvcc may be a script that calls another one.
        check = shlex.quote("%compiler% --version")
        return f"env CCACHE_DEPEND=1 CCACHE_COMPILERCHECK={check} {quoted(ccache)} "
    sccache = shutil.which("sccache")
    return f"{quoted(sccache)} " if sccache else ""


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
    cache = compiler_cache()
    sources = [CSRC / "bindings.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    archs = cuda_architectures(nvcc) if nvcc else []
    if nvcc:
        sources += sorted((CSRC / "cuda").glob("*.cu"))
    sources.sort(key=place)
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
    # PTX for a GPU that is not here: the fewest kernels that do everything.
    few = " -DRESQUE_FEWEST_KERNELS" if archs and archs[0].endswith("-virtual") else ""
    gpu_flags = f"{compression(nvcc)} {gencode(archs)}" if nvcc else ""
    more = os.environ.get("RESQUE_NVCC_FLAGS", "")
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    # Stripped: symbols other than those that Python looks up are for debuggers.
    static = (
        ""
        if sys.platform == "darwin"
        else "-static-libstdc++ -static-libgcc -Wl,--gc-sections,--strip-all"
    )
    link = (
        f"{nvcc} -shared -cudart static -Xcompiler -static-libstdc++,-static-libgcc "
        "-Xlinker --strip-all $in -o $out"
        if nvcc
        else f"{cxx} {shared} -pthread {static} $in -o $out"
    )
    compile_to = f"-MMD -MF $out.d {include} $flags -c $in -o $out"
    rules = [
        "rule cxx",
        f"  command = {cache}{cxx} {CXX_FLAGS} {compile_to}",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {cache}{nvcc} {NVCC_FLAGS}{few} {gpu_flags} {more} {compile_to}",
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

    bindings = f"{BINDINGS_FLAGS} {python_include} {defines}"
    for source in sources:
        compile_one(source, bindings if source.name == "bindings.cpp" else "")
    for source in sorted((CSRC / "cpu" / "isa").glob("*.cpp")):
        for isa, flags in ISA_FLAGS.items():
            if source.name not in ISA_FILES.get(isa, (source.name,)):
                continue
            compile_one(source, f"-DRESQUE_ISA={isa} {flags} -Wno-maybe-uninitialized", f".{isa}")
    rules.append(f"build {escape(output)}: link {' '.join(objects)}")
    return "\n".join(rules) + "\n"


def place(source: Path) -> tuple[int, str]:
    """Where a source stands in the build: ninja starts what is ready in the order of the file."""
    name = source.relative_to(CSRC).as_posix()
    found = (i for i, pattern in enumerate(LONGEST) if Path(name).match(pattern))
    return next(found, len(LONGEST)), name


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
