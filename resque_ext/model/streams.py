"""Which of a model's layers a mask is of: models with several streams have other tokens in each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

DECODER, ENCODER = "decoder", "encoder"
_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
# How the parts of a model that see images, and no words, begin.
_PIXELS = re.compile(r"(vision|visual|image)(?!.*(text|language|bert))")
# What reads the encoder's tokens within a decoder.
_CROSS = re.compile(r"cross|encoder_att|encdec")
_KEYS = ("k", "v", "k_proj", "v_proj", "key", "value")


@dataclass(frozen=True)
class TokenMasks:
    """The masks [N, T] bool of a batch, by stream.

    Modules go by the parts of their names: the mask is not of those that see images; where the
    batch has a decoder's own tokens, it is of the encoder, and of what the decoder reads of that.

    Attributes:
        own: of the tokens that the model is given; None: all are real.
        decoder: of a decoder's own tokens; None: all are real.
        decodes: the batch has tokens of the decoder's own.
        everywhere: the mask is of every layer, as one that a function gave.
    """

    own: Tensor | None = None
    decoder: Tensor | None = None
    decodes: bool = False
    everywhere: bool = False

    @classmethod
    def of_batch(cls, inputs: Any, own: Tensor | None, decoder: Tensor | None) -> TokenMasks:
        """Of what a model is given, and the masks in it."""
        decodes = isinstance(inputs, Mapping) and any(inputs.get(k) is not None for k in _INPUTS)
        return cls(own, decoder, decodes)

    def of(self, name: str, module: nn.Module, run: int = 1) -> Tensor | None:
        """The mask of a layer or a part of the output, called `name`, in its run of that number."""
        if self.everywhere or (self.own is None and self.decoder is None):
            return self.own
        parts = re.split(r"[.:#]", name.lower())
        if any(map(_PIXELS.match, parts)):
            return None
        if not self.decodes:
            return self.own
        within = next((p for p in parts if p.startswith((DECODER, ENCODER))), None)
        if within is not None and within.startswith(ENCODER):
            return self.own
        reads_encoder = any(map(_CROSS.search, parts)) and any(p in _KEYS for p in parts)
        # Both streams' tokens are embedded by one module, the encoder's first.
        shared = within is None and isinstance(module, nn.Embedding) and run == 1
        return self.own if reads_encoder or shared else self.decoder
