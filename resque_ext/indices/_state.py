"""States as they come back from a file: tensors by name, made with the same options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from resque_ext.data.checks import as_tensor, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError


def tensors_of(
    state: Mapping[str, Tensor], config: Sequence[int], options: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a state besides its "config", which has to be this one.

    Args:
        state: what `state_dict` gave.
        config: what its "config" has to say.
        options: the options whose values those are, for the message.

    Raises:
        KeyError: there is no "config".
        TypeError: no mapping, or of something that is not a tensor.
        ValueError: made with other options.
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError("state", "a mapping of tensors", describe(state))
    tensors = {key: as_tensor(x, f"state[{key!r}]") for key, x in state.items()}
    found = tensors.pop("config", None)
    if found is None:
        raise KeyError("state: expected the key 'config', found none")
    if found.tolist() != list(config):
        raise ArgumentError(
            "state['config']", f"{list(config)} of ({', '.join(options)})", found.tolist()
        )
    return tensors
