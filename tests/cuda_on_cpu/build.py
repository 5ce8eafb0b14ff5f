"""Compiles CUDA sources as host C++, with the emulator linked in, and runs the result."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EMULATOR = Path(__file__).parent / "emulator"
CSRC = Path(__file__).parents[2] / "csrc"

COMPILE = [
    *["-std=c++17", "-fPIC", "-g", "-pthread", "-Wall", "-Wno-unknown-pragmas"],
    # Without this a second module in one process shares the first one's template statics.
    "-fno-gnu-unique",
]
SANITIZE = {
    None: ["-O2"],
    "address": [
        *["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined,float-cast-overflow"],
        "-fno-sanitize-recover=undefined,float-cast-overflow",
    ],
    "thread": ["-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}
HEADERS = {".h", ".hpp", ".cuh"}


def unavailable() -> str | None:
    """Why the emulator cannot be built here, or None if it can."""
    if platform.system() != "Linux":
        return f"the CUDA emulator needs Linux, this is {platform.system()}"
    return None if shutil.which("g++") else "the CUDA emulator needs g++, which is not installed"


def build_module(
    sources: Iterable[str | Path],
    output: str,
    *,
    include_dirs: Iterable[str | Path] = (),
    defines: Iterable[str] = (),
    sanitizer: str | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Build the file ``output``, a shared library if it ends in ``.so``, else an executable.

    ``.cu`` sources are compiled as C++ against the emulated CUDA headers; other sources are
    compiled as what they are. ``csrc`` is on the include path, last. ``sanitizer`` is None,
    "address" (with UBSan) or "thread" (make that an executable). ``extra`` goes to compiler and
    linker.
    The same command on the same sources and headers returns the earlier build.
    """
    folders = [EMULATOR / "include", *map(Path, include_dirs), CSRC]
    flags = [*COMPILE, *(f"-D{name}" for name in defines)]
    jobs = [
        *((Path(source), [*flags, *SANITIZE[sanitizer], *extra], folders) for source in sources),
        # The emulator's own switching of stacks is nothing that a sanitizer could follow.
        *((source, [*flags, "-O2"], folders[:1]) for source in sorted(EMULATOR.glob("*.cpp"))),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        objects = list(workers.map(lambda job: _compile(*job), jobs))

    # -Bsymbolic: a CUDA runtime loaded globally must not take over the emulated functions.
    link = ["-shared", "-Wl,-Bsymbolic"] if output.endswith(".so") else []
    command = ["g++", *map(str, objects), "-pthread", *link, *SANITIZE[sanitizer], *extra]
    return _once(_cache() / _digest(command) / output, command)


def run(
    command: Sequence[str | Path], *, sanitizer: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program built here, or a Python that loads a module built here, under ``sanitizer``."""
    command = [str(part) for part in command]
    environment = dict(os.environ)
    if sanitizer == "address":
        # First in the process, so that Python's and NumPy's allocations are checked too. Python
        # itself leaves memory behind at exit.
        libraries = [_library("libasan.so"), _library("libubsan.so")]
        environment |= {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    if sanitizer == "thread":
        environment["TSAN_OPTIONS"] = "halt_on_error=1"

    def attempt(prefix: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *command], capture_output=True, text=True, timeout=timeout, env=environment
        )

    done = attempt([])
    if "unexpected memory mapping" in done.stderr:  # more address randomisation than TSan can take
        done = attempt(["setarch", "-R"])
    return done


def _compile(source: Path, flags: list[str], folders: list[Path]) -> Path:
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    # The object and its key say nothing of where the sources lie: checkouts share what they build.
    places = [f"-ffile-prefix-map={folder}/=" for folder in (CSRC.parent, source.parent)]
    includes = [f"-I{folder}" for folder in folders]
    # Every header that the source could include; one beside it needs no -I.
    headers = [(path, source.parent) for path in sorted(source.parent.glob("*"))]
    headers += [(path, folder) for folder in folders for path in sorted(folder.rglob("*"))]
    parts = [
        part
        for path, folder in headers
        if path.suffix in HEADERS
        for part in (str(path.relative_to(folder)), path.read_bytes())
    ]
    key = _digest([_compiler(), *flags, *language, source.name, source.read_bytes(), *parts])
    command = ["g++", *flags, *places, *includes, *language, "-c", str(source)]
    return _once(_cache() / key / f"{source.stem}.o", command)


def _once(target: Path, command: list[str]) -> Path:
    """Run ``command`` for ``target`` unless it is there; another process that does is waited for.

    Renamed into place: never half-written.
    """
    import fcntl  # where the emulator cannot be built, there may be none

    target.parent.mkdir(exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            made.replace(target)
    return target


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


@functools.cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"resque-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # what lies there is loaded into this process
        raise RuntimeError(f"{folder} belongs to another user")
    return folder
