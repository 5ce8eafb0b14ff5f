"""What setup.py reads and writes for ninja; what the extension links and says of itself."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import resque_ext
from resque_ext import build_info
from resque_ext.ops import backend as _backend

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("RESQUE_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")
READ = ("RESQUE_CUDA", *ARCHS, "RESQUE_NVCC_FLAGS", "RESQUE_CCACHE", "CXX", "MAX_JOBS")


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py as a module, without its last step, in an environment that asks for nothing."""
    pytest.importorskip("ninja")
    pytest.importorskip("pybind11")
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in READ:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RESQUE_CCACHE", "0")  # one that is installed would call the stand-ins too
    spec = importlib.util.spec_from_file_location("resque_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A stand-in on the PATH that knows compute capabilities from 7.5 to 10.0, and does no more."""
    known = "\n".join(f"compute_{a}" for a in (75, 80, 86, 87, 89, 90, 100))
    path = put_on_path(tmp_path, monkeypatch, "nvcc", f"echo '{known}'")
    put_on_path(tmp_path, monkeypatch, "nvidia-smi", "exit 9")  # a machine without a GPU
    return str(path)


def put_on_path(tmp_path, monkeypatch, name, script):
    """A shell script that is found under this name first."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    if str(path.parent) not in os.environ["PATH"].split(os.pathsep):
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    return path


def exits_with(function, *arguments):
    """The one line that a wrong setting ends the build with."""
    with pytest.raises(SystemExit) as ended:
        function(*arguments)
    message = ended.value.code
    assert isinstance(message, str)
    assert "\n" not in message
    return message


def python(code, *, isolated=True, **env):
    """Another Python that finds the same package, whatever its working directory."""
    package = str(Path(resque_ext.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
        cwd=Path(sys.executable).parent if isolated else ROOT,
        timeout=300,
    )


# RESQUE_CUDA


def test_cuda_is_found_or_left_out(setup_py, nvcc, monkeypatch):
    assert setup_py.find_nvcc() == nvcc  # auto
    for wanted, found in (("auto", nvcc), ("1", nvcc), ("0", None)):
        monkeypatch.setenv("RESQUE_CUDA", wanted)
        assert setup_py.find_nvcc() == found


def test_cuda_without_nvcc(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: None)
    for wanted in ("auto", "0"):
        monkeypatch.setenv("RESQUE_CUDA", wanted)
        assert setup_py.find_nvcc() is None
    monkeypatch.setenv("RESQUE_CUDA", "1")
    message = exits_with(setup_py.find_nvcc)
    assert message.startswith("RESQUE_CUDA=1: expected nvcc on the PATH, found none")


@pytest.mark.parametrize("value", ["yes", "2", "on", "AUTO", ""])
def test_cuda_of_another_value(setup_py, nvcc, monkeypatch, value):
    monkeypatch.setenv("RESQUE_CUDA", value)
    assert exits_with(setup_py.find_nvcc) == f"RESQUE_CUDA: expected auto, 0 or 1, found {value!r}"


# Architectures


@pytest.mark.parametrize("variable", ARCHS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ["80"]),
        ("80,90", ["80", "90"]),
        ("9.0 8.0+PTX", ["80", "90"]),
        ("10.0;9.0a; 8.6", ["86", "90a", "100"]),
        ("120f, 90,90", ["90", "120f"]),
        ("8.0, 75-virtual", ["75-virtual", "80"]),
    ],
)
def test_architectures(setup_py, nvcc, monkeypatch, variable, text, expected):
    monkeypatch.setenv(variable, text)
    assert setup_py.cuda_architectures(nvcc) == expected


def test_architectures_of_the_own_variable_come_first(setup_py, nvcc, monkeypatch):
    assert setup_py.cuda_architectures(nvcc) == ["75-virtual"]  # of a machine without a GPU
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert setup_py.cuda_architectures(nvcc) == ["86"]
    monkeypatch.setenv("RESQUE_CUDA_ARCHS", "90")
    assert setup_py.cuda_architectures(nvcc) == ["90"]
    monkeypatch.setenv("RESQUE_CUDA_ARCHS", "")  # as good as not set
    assert setup_py.cuda_architectures(nvcc) == ["86"]


@pytest.mark.parametrize("variable", ARCHS)
@pytest.mark.parametrize(
    "text",
    [
        "sm_80",
        "80,Hopper",
        "native",
        "8",
        "8000",
        ",",
        " ",
        "80 -O0",
        "90b",
        "-80",
        "80-real",
        "ALL",
    ],
)
def test_architectures_that_are_none(setup_py, nvcc, monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    message = exits_with(setup_py.cuda_architectures, nvcc)
    assert message == f'{variable}: expected compute capabilities like "80,90", found {text!r}'


def test_all_architectures_that_nvcc_knows(setup_py, nvcc, monkeypatch):
    monkeypatch.setenv("RESQUE_CUDA_ARCHS", "all")
    assert setup_py.cuda_architectures(nvcc) == ["75", "80", "86", "89", "90", "100"]
    monkeypatch.delenv("RESQUE_CUDA_ARCHS")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "all")  # means nothing to torch
    assert "found 'all'" in exits_with(setup_py.cuda_architectures, nvcc)


def test_architectures_that_the_kernels_cannot_have(setup_py, nvcc, monkeypatch):
    """torch's own list goes back further, and is set in many images: the rest of it is used."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "6.0 7.0 7.5 8.0+PTX")
    assert setup_py.cuda_architectures(nvcc) == ["75", "80"]
    for variable, text in (("TORCH_CUDA_ARCH_LIST", "6.0 7.0"), ("RESQUE_CUDA_ARCHS", "70,80")):
        monkeypatch.setenv(variable, text)
        message = exits_with(setup_py.cuda_architectures, nvcc)
        assert message == f"{variable}: expected compute capabilities from 7.5 on, found {text!r}"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 9.0", ["90"]),
        ("printf '8.6\\n8.6\\n8.0\\n'", ["80", "86"]),
        ("echo 8.7", ["86"]),  # code of a lower minor version runs there
        ("echo 12.0", ["100"]),  # later than this nvcc: by the PTX that comes along
        ("printf '7.0\\n9.0\\n'", ["90"]),
        ("echo 7.0", ["75-virtual"]),  # too old for the kernels
        ("echo 9.0; exit 9", ["75-virtual"]),
        ("echo '[N/A]'", ["75-virtual"]),
        ("echo No devices were found; exit 0", ["75-virtual"]),
        (":", ["75-virtual"]),
    ],
)
def test_architectures_of_the_gpus_in_the_machine(
    setup_py, nvcc, monkeypatch, tmp_path, answer, expected
):
    put_on_path(
        tmp_path,
        monkeypatch,
        "nvidia-smi",
        f'[ "$1" = --query-gpu=compute_cap ] || exit 1\n{answer}',
    )
    assert setup_py.cuda_architectures(nvcc) == expected


def test_architectures_without_nvidia_smi(setup_py, nvcc, monkeypatch):
    monkeypatch.setattr(setup_py, "known_architectures", lambda nvcc: ["75", "80"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert setup_py.cuda_architectures(nvcc) == ["75-virtual"]


@pytest.mark.parametrize(
    ("architectures", "machine_code", "ptx"),
    [
        (["80", "90a"], ["80", "90a"], ["90a"]),
        (["75-virtual"], [], ["75"]),
        (["75-virtual", "80"], ["80"], ["75", "80"]),
        (["80", "90-virtual"], ["80"], ["90"]),
    ],
)
def test_what_nvcc_is_asked_for(setup_py, architectures, machine_code, ptx):
    """Machine code of each, PTX of the last, and no machine code of one that is virtual."""
    asked = re.findall(r"-gencode=arch=compute_(\w+),code=(\w+)", setup_py.gencode(architectures))
    assert [(a, c) for a, c in asked if c.startswith("sm_")] == [
        (a, f"sm_{a}") for a in machine_code
    ]
    assert [(a, c) for a, c in asked if c.startswith("compute_")] == [
        (a, f"compute_{a}") for a in ptx
    ]


# Compiler caches


CACHES = ("ccache", "sccache")


@pytest.fixture
def without_caches(monkeypatch, setup_py):
    """They are looked for, but none is on the PATH but those that a test puts there."""
    monkeypatch.delenv("RESQUE_CCACHE")
    found = shutil.which
    there = set()

    def which(name):
        return found(name) if name not in CACHES or name in there else None

    monkeypatch.setattr(setup_py.shutil, "which", which)
    return there


@pytest.mark.parametrize("name", CACHES)
def test_a_compiler_cache_on_the_path(setup_py, nvcc, without_caches, monkeypatch, tmp_path, name):
    plain = text_of(setup_py, tmp_path)
    assert setup_py.compiler_cache() == ""
    cache = str(put_on_path(tmp_path, monkeypatch, name, "exit 1"))
    without_caches.add(name)
    commands = re.findall(r"^  command = (.*)", text_of(setup_py, tmp_path), re.MULTILINE)
    compiling = [command for command in commands if "-c $in" in command]
    assert len(compiling) == 2  # g++ and nvcc
    for command in compiling:
        words = setup_py.shlex.split(command)
        after = words[words.index(cache) + 1]
        assert after in (nvcc, "g++")
    assert not any(cache in command for command in commands if command not in compiling)
    monkeypatch.setenv("RESQUE_CCACHE", "0")
    assert text_of(setup_py, tmp_path) == plain


def test_ccache_comes_before_sccache(setup_py, nvcc, without_caches, monkeypatch, tmp_path):
    for name in CACHES:
        put_on_path(tmp_path, monkeypatch, name, "exit 1")
        without_caches.add(name)
    assert "/sccache" not in setup_py.compiler_cache()
    assert "/ccache" in setup_py.compiler_cache()


def test_ccache_of_another_value(setup_py, monkeypatch):
    monkeypatch.setenv("RESQUE_CCACHE", "yes")
    message = exits_with(setup_py.compiler_cache)
    assert message == "RESQUE_CCACHE: expected auto or 0, found 'yes'"


def test_a_build_goes_through_the_cache(setup_py, without_caches, monkeypatch, tmp_path):
    """As ninja runs it: one call of the cache for each source, with the compiler's command."""
    marking = 'while [ "$1" != -o ]; do [ "$1" = -MF ] && : > "$2"; shift; done\n: > "$2"\n'
    put_on_path(tmp_path, monkeypatch, "ccache", f'echo "$1" >> "$0.log"\n{marking}')
    without_caches.add("ccache")
    compiler = put_on_path(tmp_path, monkeypatch, "a-compiler", marking)
    monkeypatch.setenv("RESQUE_CUDA", "0")
    monkeypatch.setenv("CXX", str(compiler))
    build = tmp_path / "build"
    build.mkdir()
    (build / "build.ninja").write_text(text_of(setup_py, tmp_path))
    (tmp_path / "out").mkdir()
    ninja = Path(setup_py.ninja.BIN_DIR) / "ninja"
    subprocess.run([ninja, "-C", build], check=True, capture_output=True)
    calls = (tmp_path / "bin" / "ccache.log").read_text().split()
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    isa = list(ROOT.glob("csrc/cpu/isa/*.cpp"))
    only = setup_py.ISA_FILES
    steps = [f for f in isa for name in setup_py.ISA_FLAGS if f.name in only.get(name, (f.name,))]
    assert len(steps) == len(isa) * len(setup_py.ISA_FLAGS) - (len(isa) - 1) * len(only)
    assert calls == [str(compiler)] * (len(sources) + len(steps))


# The ninja file


def text_of(setup_py, tmp_path):
    return setup_py.ninja_text(tmp_path / "out" / "_C.so", tmp_path / "build")


def test_ninja_file_with_cuda(setup_py, nvcc, monkeypatch, tmp_path):
    monkeypatch.setenv("RESQUE_CUDA_ARCHS", "80,90")
    text = text_of(setup_py, tmp_path)
    for arch in ("80", "90"):
        assert f"-gencode=arch=compute_{arch},code=sm_{arch}" in text
    assert text.count("code=compute_") == 1  # PTX of the last
    assert "code=compute_90" in text
    assert "-cudart static" in text
    assert "-DRESQUE_WITH_CUDA" in text
    assert """'-DRESQUE_CUDA_ARCHS="80,90"'""" in text
    assert "fast-math" not in text
    for source in ROOT.glob("csrc/cuda/*.cu"):
        assert f": nvcc {source}\n" in text


def test_ninja_file_without_cuda(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("RESQUE_CUDA", "0")
    text = text_of(setup_py, tmp_path)
    assert "RESQUE_WITH_CUDA" not in text
    assert ".cu\n" not in text
    assert "fast-math" not in text
    for source in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]:
        assert f": cxx {source}\n" in text
    for isa in setup_py.ISA_FLAGS:
        assert f"-DRESQUE_ISA={isa}" in text
    assert text == text_of(setup_py, tmp_path)  # nothing to rebuild


def test_the_longest_steps_come_first(setup_py, nvcc, tmp_path):
    """Ninja starts steps of one weight in the order of the file."""
    text = text_of(setup_py, tmp_path)
    sources = re.findall(rf"^build .*: (?:nvcc|cxx) {ROOT}/csrc/(.*)$", text, re.MULTILINE)
    for pattern in setup_py.LONGEST:
        assert any(Path(source).match(pattern) for source in sources), f"{pattern} names nothing"
    types = ("bfloat16", "float16", "float32", "float64")
    assert sources[:5] == [
        *(f"cuda/row_distances_{t}.cu" for t in types),
        "cuda/row_distances_long.cu",
    ]
    assert sources[5] == "cuda/class_moments.cu"
    assert sources[6:10] == [f"cuda/lloyd_step_{t}.cu" for t in types]
    assert sources[10] == "bindings.cpp"
    cuda = [i for i, source in enumerate(sources) if source.startswith("cuda/")]
    assert max(cuda) == len(cuda) + 1  # of the C++ files, two take as long
    assert (
        len(sources) == len(set(sources)) + 2 + 2 + 3
    )  # files for three instruction sets, or four


def test_ninja_starts_what_comes_first(setup_py, monkeypatch, tmp_path):
    """One compiler at a time, which says what it compiles: in the order of the file."""
    script = """for word; do case $word in *.cpp) echo "$word" >> "$0.log" ;; esac; done
while [ "$1" != -o ]; do [ "$1" = -MF ] && : > "$2"; shift; done
: > "$2"
"""
    compiler = put_on_path(tmp_path, monkeypatch, "a-compiler", script)
    monkeypatch.setenv("RESQUE_CUDA", "0")
    monkeypatch.setenv("CXX", str(compiler))
    (tmp_path / "out").mkdir()
    (tmp_path / "build").mkdir()
    text = text_of(setup_py, tmp_path)
    (tmp_path / "build" / "build.ninja").write_text(text)
    ninja = Path(setup_py.ninja.BIN_DIR) / "ninja"
    subprocess.run([ninja, "-j1", "-C", tmp_path / "build"], check=True, capture_output=True)
    started = Path(f"{compiler}.log").read_text().split()
    assert started == re.findall(r"^build .*: cxx (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RESQUE_NVCC_FLAGS", "-lineinfo"),
        ("RESQUE_CUDA_ARCHS", "90"),
        ("TORCH_CUDA_ARCH_LIST", "9.0"),
        ("RESQUE_CUDA", "0"),
        ("CXX", "clang++"),
    ],
)
def test_a_changed_setting_changes_the_commands(setup_py, nvcc, monkeypatch, tmp_path, name, value):
    """Ninja runs again what was made by another command."""
    before = text_of(setup_py, tmp_path)
    monkeypatch.setenv(name, value)
    assert text_of(setup_py, tmp_path) != before


@pytest.mark.parametrize("flags", ["CXX_FLAGS", "BINDINGS_FLAGS", "NVCC_FLAGS"])
def test_a_changed_flag_changes_the_commands(setup_py, nvcc, monkeypatch, tmp_path, flags):
    before = text_of(setup_py, tmp_path).splitlines()
    monkeypatch.setattr(setup_py, flags, getattr(setup_py, flags) + " -DCHANGED")
    after = text_of(setup_py, tmp_path).splitlines()
    commands = [a for a, b in zip(after, before, strict=True) if a != b]
    assert any(c.startswith(("  command = ", "  flags = ")) and "-DCHANGED" in c for c in commands)


def test_a_changed_flag_makes_ninja_build_again(setup_py, monkeypatch, tmp_path):
    """With a compiler that only leaves a mark: what runs is what ninja finds out of date."""
    compiler = tmp_path / "mark"
    compiler.write_text(
        '#!/bin/sh\necho x >> "$0.log"\n'
        'while [ "$1" != -o ]; do [ "$1" = -MF ] && : > "$2"; shift; done\n: > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("RESQUE_CUDA", "0")
    monkeypatch.setenv("CXX", str(compiler))
    for folder in ("out", "build"):
        (tmp_path / folder).mkdir()

    def runs():
        log = Path(f"{compiler}.log")
        log.unlink(missing_ok=True)
        (tmp_path / "build" / "build.ninja").write_text(text_of(setup_py, tmp_path))
        ninja = Path(setup_py.ninja.BIN_DIR) / "ninja"
        subprocess.run([ninja, "-C", tmp_path / "build"], check=True, capture_output=True)
        return len(log.read_text().split()) if log.exists() else 0

    everything = runs()
    assert everything > len(setup_py.ISA_FLAGS) + 2
    assert runs() == 0
    monkeypatch.setattr(setup_py, "CXX_FLAGS", setup_py.CXX_FLAGS + " -DCHANGED")
    assert runs() == everything
    monkeypatch.setattr(setup_py, "ISA_FLAGS", setup_py.ISA_FLAGS | {"baseline": "-DCHANGED"})
    files = len(list((setup_py.CSRC / "cpu" / "isa").glob("*.cpp")))
    assert runs() == files + 1  # every file of one instruction set, and the link
    monkeypatch.setattr(setup_py, "source_digest", lambda: "0" * 16)
    assert runs() == 2  # the bindings, which hold it, and the link


def test_a_checkout_in_a_folder_with_a_space(setup_py, monkeypatch, tmp_path):
    copied = tmp_path / "a b" / "csrc"
    shutil.copytree(setup_py.CSRC, copied)
    monkeypatch.setattr(setup_py, "CSRC", copied)
    monkeypatch.setenv("RESQUE_CUDA", "0")
    commands = re.findall(r"command = (.*-c \$in.*)", text_of(setup_py, tmp_path / "a b"))
    assert commands
    for command in commands:
        included = [w for w in setup_py.shlex.split(command) if w.startswith("-I")]
        assert f"-I{copied}" in included


def test_digest_of_the_sources(setup_py, monkeypatch, tmp_path):
    """setup.py and the package must agree on it: names and contents, whatever the folder."""
    assert setup_py.source_digest() == _backend.checkout_digest(ROOT / "resque_ext")
    shutil.copytree(setup_py.CSRC, tmp_path / "csrc")
    assert _backend.checkout_digest(tmp_path / "resque_ext") == setup_py.source_digest()
    assert _backend.checkout_digest(tmp_path / "csrc" / "resque_ext") is None  # not a checkout
    (tmp_path / "csrc" / "resque.h").rename(tmp_path / "csrc" / "other.h")
    assert _backend.checkout_digest(tmp_path / "resque_ext") != setup_py.source_digest()
    monkeypatch.setattr(setup_py, "CSRC", tmp_path / "csrc")
    assert _backend.checkout_digest(tmp_path / "resque_ext") == setup_py.source_digest()


BLOCKED = """
import runpy, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch at build time")

sys.meta_path.insert(0, NoTorch())
import setuptools
setuptools.setup = lambda **_: None
module = runpy.run_path("setup.py")
from pathlib import Path
assert module["ninja_text"](Path("/out/_C.so"), Path("/build"))
assert "torch" not in sys.modules
print("built without torch")
"""


def test_the_build_imports_no_torch(setup_py):
    done = python(BLOCKED, isolated=False, RESQUE_CUDA="0")
    assert done.stdout == "built without torch\n", done.stderr


# The extension


def extension():
    path = build_info()["extension"]
    if path is None:
        pytest.fail(build_info()["missing"])
    return path


def test_the_extension_links_nothing_of_torch_or_cuda():
    """Libraries are asked of the file itself: the loader adds what is in the process already."""
    if not sys.platform.startswith("linux") or shutil.which("readelf") is None:
        pytest.skip("needs readelf (binutils) on Linux")
    done = subprocess.run(
        ["readelf", "-d", extension()], capture_output=True, text=True, check=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)
    assert any(name.startswith("libc.") for name in needed)
    for name in needed:
        assert re.match(r"(libc|libm|libpthread|libdl|librt|ld-linux.*)\.so", name), needed
    assert "RPATH" not in done.stdout
    assert "RUNPATH" not in done.stdout


def test_build_info_says_what_was_built():
    info = build_info()
    assert set(info) == {
        "version",
        "extension",
        "missing",
        "backend",
        "source_digest",
        "compiler",
        "cxx_flags",
        "instruction_set",
        "cuda",
    }
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert info["version"] == resque_ext.__version__
    assert info["missing"] is None
    assert Path(info["extension"]).is_file()
    assert re.fullmatch(r"[0-9a-f]{16}", info["source_digest"])
    assert "-O3" in info["cxx_flags"]
    assert "fast-math" not in info["cxx_flags"]
    assert info["instruction_set"] in ("avx512icl", "avx512", "avx2", "baseline")
    if info["cuda"] is not None:
        assert set(info["cuda"]) == {"toolkit", "architectures"}
        built = info["cuda"]["architectures"]
        assert all(re.fullmatch(r"\d{2,3}[af]?(-virtual)?", a) for a in built)
    with resque_ext.backend("torch"):
        assert build_info()["backend"] == "torch"


def test_version():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{resque_ext.__version__}"\n' in text
    try:
        installed = importlib.metadata.version("resque-ext")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("resque-ext is not installed: it runs from its checkout")
    assert installed == resque_ext.__version__


def test_import_is_light():
    """The command line, plots, energy and the demo pay for themselves when they are used."""
    heavy = ["typer", "rich", "sklearn", "scipy", "matplotlib", "pynvml", "codecarbon", "pyarrow"]
    # torch itself imports pynvml where that is installed.
    done = python(
        "import sys, torch; before = set(sys.modules); import resque_ext; "
        f"print([m for m in {heavy} if m in set(sys.modules) - before])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_source_distribution_would_hold_the_sources():
    """setuptools takes headers and kernels along only because MANIFEST.in names them."""
    manifest = (Path(__file__).parents[2] / "MANIFEST.in").read_text()
    assert "graft csrc" in manifest


def test_readme_has_no_gaps():
    assert "@@" not in (Path(__file__).parents[2] / "README.md").read_text()
