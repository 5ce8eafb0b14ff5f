"""The embedding of a batch: a layer's output, by default the vector that the model itself uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext.data.checks import FLOATS, describe
from resque_ext.model.head import Head, Run, tokens_read
from resque_ext.model.hooks import LayerError
from resque_ext.model.layers import OUTPUT, Place
from resque_ext.model.layout import Layouts
from resque_ext.model.order import Order, remedy
from resque_ext.model.outputs import score_tensors, sentence_path
from resque_ext.model.pooling import Features, Pooling, together
from resque_ext.model.streams import TokenMasks

Consumer = Callable[[Features, Pooling], None]
UNKNOWN = "which token the model reads is not known"


class EmbeddingReader:
    """Hands the embedding of every forward pass to a consumer.

    Args:
        model: the unwrapped model.
        layer: what to read, see :meth:`Place.of`; None: what the model itself uses, found at the
            first forward pass.
        pooling: of positions.
        token: of an earlier reader of the same layer: whether the head reads one of its tokens.

    Attributes:
        name: the layer's; None until it is known.
        token: whether the embedding is the token whose scores the model returns; None until known.
        done: what was done to the positions, for the result.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None,
        pooling: Pooling,
        layouts: Layouts,
        order: Order,
        token: bool | None = None,
    ) -> None:
        self._model, self._pooling, self._layouts = model, pooling, layouts
        self._order, self._rows = order, 0
        self.name, self.token, self.done = layer, token, ""
        self._asked = layer is not None
        self._place = None if layer is None else Place.of(model, layer, "layer")
        self._consume: Consumer | None = None
        self._masks = TokenMasks()
        self._packed: Tensor | None = None  # the mask that the layer's output brings
        self._held: Tensor | None = None
        self._runs = 0
        self._reading = False
        self._scores: Tensor | None = None  # what the head gave, where it reads tokens

    def attach(self) -> list[Any]:
        """Registers the hooks; the caller removes them."""
        if self._place is None:
            return []
        handles = self._place.attach(self._take)
        if self._place.is_input and self._pooling == "auto":
            handles.append(self._place.module.register_forward_hook(self._on_scores))
        return handles

    def begin(self, masks: TokenMasks, rows: int, consume: Consumer | None) -> None:
        """Before a forward pass: the embedding goes to `consume` at once, or is held (None)."""
        undecided = self.token is None and (self._place is None or self._place.is_input)
        self._consume = None if self.token or (undecided and self._pooling == "auto") else consume
        self._masks, self._held, self._scores, self._runs = masks, None, None, 0
        self._rows, self._packed = rows, None
        self._reading = True

    @property
    def is_known(self) -> bool:
        """It is known what is read."""
        return self._place is not None

    def find(self, head: Head, run: Run | None, last: Run | None, output: Any) -> list[Any]:
        """After the first forward pass with `layer` None: what the model itself uses, held. Returns
        hooks for the passes to come.

        Args:
            head, run: what gave the model's scores.
            last: of the layers that could have, the last one to run.
            output: the model's.

        Raises:
            LayerError: nothing tells.
        """
        if run is None:
            found = self._of_output(output) if head.classes is None else None
            if found is None:
                run = last
            else:
                self._place, (self._held, self._runs) = found[0], (found[1], 1)
        if run is not None:
            self._place = Place(f"{run.name}:input", run.module, is_input=True)
            self._held, self._scores, self._runs = run.read, run.gave, run.times
        if self._place is None:
            raise LayerError(
                f"layer: expected a name, because {type(self._model).__name__} has no linear layer "
                "whose input could be read and returns no vectors, found None"
            )
        self.name = self._place.name
        self._check_once()
        assert self._held is not None
        self._held = self._in_front(self._held)
        return self.attach()

    def _of_output(self, output: Any) -> tuple[Place, Tensor] | None:
        """The model's output as its embedding, where it is not scores."""
        path = sentence_path(output)
        if path is not None:
            place = Place(f"{OUTPUT}:{path}", self._model, path=path)
            return place, place.tensor(output, "layer")[0].clone()
        if isinstance(output, Tensor):
            return (Place(OUTPUT, self._model), output.clone()) if _is_embedding(output) else None
        # Of maps at several depths the last; several tensors of another kind say nothing.
        parts = {key: x for key, x in score_tensors(output) if _is_embedding(x)}
        if len(parts) == 1 or (parts and all(x.dim() == 4 for x in parts.values())):
            path, x = list(parts.items())[-1]
            return Place(f"{OUTPUT}:{path}", self._model, path=path), x.clone()
        return None

    def stop(self) -> None:
        """After the forward pass: what the model does from here on is not read."""
        self._reading = False

    def check_order(self, wrong: Mapping[str, str]) -> None:
        """Raises LayerError where the layer is among those that cannot be read."""
        if self.name in wrong:
            raise LayerError(f"layer: expected {self.name!r} to be read, but {wrong[self.name]}")

    def end(self, head: Head, scores: Tensor | None, consume: Consumer) -> None:
        """After a forward pass: hands on what was held.

        Args:
            scores: of the model, [N, K]; None for other models.

        Raises:
            LayerError: the layer did not run, or the head reads another token than before.
        """
        asked = 1 if self._place is None else self._place.run or 1
        if self._runs < asked:
            raise LayerError(
                f"layer: expected {self.name!r} to run in the forward pass, found it "
                + ("never did" if not self._runs else f"ran {self._runs} times")
            )
        if self._held is None:
            return
        held, given, self._held, self._scores = self._held, self._scores, None, None
        place = self._place
        assert place is not None
        of_tokens = held.dim() == 3 and self._pooling == "auto" and place.is_input
        of_tokens = of_tokens and (not self._asked or self.name == f"{head.name}:input")
        if of_tokens and self.token is not False and len(held):
            index = None
            if scores is not None and given is not None:
                index = tokens_read(scores, given, self._mask())
            if index is None and self.token:
                raise LayerError(
                    f"pooling: expected {self.name!r} to be read at one token of every sample, as "
                    "in earlier batches, found none whose scores the model returns (pooling='mean',"
                    " 'first' or 'last' sets one for all)"
                )
            if index is not None:
                self.token = True
                read = held[torch.arange(len(held), device=held.device), index]
                self._hand_on(read, consume, "token")
                return
        if len(held):
            self.token = False
        unknown = of_tokens and scores is not None and head.reads != "mean"
        self._hand_on(held, consume, None, UNKNOWN if unknown and len(held) else None)

    def _on_scores(self, _module: nn.Module, _args: Any, output: Any) -> None:
        held = self._reading and self._consume is None
        if held and isinstance(output, Tensor) and output.dim() == 3:
            self._scores = output.clone()

    def _take(self, found: Any) -> None:
        if not self._reading:
            return
        place = self._place
        assert place is not None
        self._runs += 1
        if place.run is not None and place.run != self._runs:
            return
        self._check_once()
        x, self._packed = place.tensor(found, "layer")
        x = self._in_front(x)
        if self._consume is None:
            # A copy: what comes after may change it in place.
            self._held = x.clone()
        else:
            self._hand_on(x, self._consume)

    def _mask(self) -> Tensor | None:
        place = self._place
        assert place is not None
        if self._packed is not None:
            return self._packed
        return self._masks.of(place.name, place.module, self._runs)

    def _in_front(self, x: Tensor) -> Tensor:
        """The samples in front; raises LayerError where they are not."""
        place = self._place
        assert place is not None
        x = self._order.in_front(x, place, self._rows)
        if x.dim() > 2 and x.shape[0] != self._rows:  # of vectors whoever takes them says so
            raise LayerError(
                f"layer: expected {self.name!r} to give one row a sample, {self._rows} of them, "
                f"found {describe(x)} ({remedy(place.name)})"
            )
        return x

    def _check_once(self) -> None:
        place = self._place
        if self._runs > 1 and (place is None or place.run is None):
            base, colon, path = str(self.name).partition(":")
            raise LayerError(
                f"layer: expected {self.name!r} to run once in a forward pass, found more "
                f"(layer= takes '{base}#1{colon}{path}', '{base}#2{colon}{path}' and so on)"
            )

    def _hand_on(
        self, x: Tensor, consume: Consumer, done: str | None = None, remark: str | None = None
    ) -> None:
        place = self._place
        assert place is not None
        features = self._layouts.features(
            x, place.name, place.module, self._mask(), "layer", place.is_input
        )
        done = done or features.described(self._pooling)
        done = f"{done} ({remark})" if remark else done
        self.done = together(self.done, done)
        consume(features, self._pooling)


def _is_embedding(x: Tensor) -> bool:
    """Vectors, tokens or maps that are more than one number each position; pooled maps, too."""
    if x.dtype not in FLOATS or x.dim() not in (2, 3, 4):
        return False
    size = x.shape[1:].numel()
    return size > 1 and (min(x.shape[1], x.shape[-1]) > 1 or max(x.shape[1:]) == size)
