"""Lets single barriers of a kernel be left out, to see that a sanitizer then complains."""

import re

# Comments first, so that a barrier that is only spoken of is passed over.
_BARRIER = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?P<barrier>\b(?:__syncthreads|__syncwarp)\s*\((?:[^()]|\([^()]*\))*\))",
    re.DOTALL,
)
VARIABLE = "WITHOUT_BARRIER"
_SWITCH = f"""#ifndef SWITCHED_BARRIERS
#define SWITCHED_BARRIERS
#include <stdlib.h>
static const char* const without_barrier = getenv("{VARIABLE}");
static const int left_out = without_barrier ? atoi(without_barrier) : -1;
#endif
#line 1
"""


def count_barriers(source: str) -> int:
    """How many ``__syncthreads()`` and ``__syncwarp()`` the text of a .cu or .cuh file calls."""
    return sum(match["barrier"] is not None for match in _BARRIER.finditer(source))


def switch_barriers(source: str, first: int = 0) -> str:
    """The text with a switch at every barrier: one build then runs without any one of them.

    The program leaves out barrier i, counted from ``first``, where its environment has
    ``VARIABLE`` = i. Every line keeps its number.
    """
    index = first - 1

    def switched(match: re.Match[str]) -> str:
        nonlocal index
        if match["barrier"] is None:
            return match[0]
        index += 1
        return f"(left_out == {index} ? (void)0 : (void){match[0]})"

    return _SWITCH + _BARRIER.sub(switched, source)
