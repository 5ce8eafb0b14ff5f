"""Takes single barriers out of a kernel's source, to see that a sanitizer then complains."""

import re

# Comments first, so that a barrier that is only spoken of is passed over.
_BARRIER = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?P<barrier>\b(?:__syncthreads|__syncwarp)\s*\((?:[^()]|\([^()]*\))*\))",
    re.DOTALL,
)


def _barriers(source: str) -> list[re.Match[str]]:
    return [match for match in _BARRIER.finditer(source) if match["barrier"]]


def count_barriers(source: str) -> int:
    """How many ``__syncthreads()`` and ``__syncwarp()`` the text of a .cu file calls."""
    return len(_barriers(source))


def remove_barrier(source: str, index: int) -> str:
    """The text without its ``index``-th barrier; every line keeps its number."""
    match = _barriers(source)[index]
    lines = "\n" * match["barrier"].count("\n")
    return f"{source[: match.start()]}(void)0{lines}{source[match.end() :]}"
