"""What the reference needs to know of this package: see mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([\w.]+)`")
LINK = r'<autoref optional identifier="\1"><code>\1</code></autoref>'


class Package(griffe.Extension):
    """Links for roles, and functions that have the name of the module that they are in."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """:func:`resque_ext.score` becomes a link, where the reference has the name."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(LINK, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """`from .arm import arm`: the name is the function, where griffe sees the module."""
        loader.resolve_aliases(implicit=True)
        for module in list(_modules(pkg)):
            for name in map(str, module.exports or ()):
                member = found = module.members.get(name)
                if isinstance(found, griffe.Alias):
                    found = found.final_target
                while isinstance(found, griffe.Module) and name in found.members:
                    found = found.members[name]
                if found is not member and not isinstance(found, griffe.Module):
                    module.set_member(name, griffe.Alias(name, found, parent=module))


def _modules(module: griffe.Module) -> Any:
    for member in list(module.members.values()):
        if isinstance(member, griffe.Module):
            yield from _modules(member)
    yield module
