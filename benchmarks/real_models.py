"""What `score` reads of the models that people have: layer, pooling and five indices of each.

    python benchmarks/real_models.py                  a line a model, some minutes
    python benchmarks/real_models.py --only swin      those whose name has "swin" in it
    python benchmarks/real_models.py --write          also writes the table of docs/real_models.md

torchvision, timm and transformers at random weights and small sizes, 4 classes, 16 images or texts
a side; what is not installed is left out. Values of random weights mean nothing by themselves: the
table shows that something is read, and what.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resque_ext import score

INDICES = ("resque_dist", "resque_task", "preindex", "arm", "linear_residual")
PAGE = Path(__file__).parents[1] / "docs" / "real_models.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
CLASSES, ROWS, BATCH, WORDS = 4, 16, 8, 100


@dataclass(frozen=True)
class Case:
    """A model of the table.

    Attributes:
        make: the model, in eval mode.
        kind: of its inputs: "image", "text", "sound" or "clip".
        pixels: of an image.
        dtype: of its inputs, if they are numbers.
    """

    make: Callable[[], nn.Module]
    kind: str = "image"
    pixels: int = 64
    dtype: torch.dtype = torch.float32


@dataclass
class Row:
    """What was found of one.

    Attributes:
        values: by index, or the reason why there is none.
    """

    name: str
    layer: str | None = None
    pooling: str | None = None
    layers: int | None = None
    accuracy: float | None = None
    values: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0


def from_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return make


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, **({"num_classes": CLASSES} | options))

    return make


def from_transformers(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**(SMALL | {"num_labels": CLASSES} | options))
        return getattr(transformers, kind)(made)

    return make


SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA = {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
BART |= {"decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
BART |= {"eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 2}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
VIT = {"image_size": 64, "patch_size": 16}
SOUND = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
SOUND |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "classifier_proj_size": 16}
SOUND |= {"num_conv_pos_embedding_groups": 4}
SEGFORMER = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "decoder_hidden_size": 16}
SEGFORMER |= {"num_attention_heads": [1, 2, 4, 8], "hidden_act": "gelu"}


class Recurrent(nn.Module):
    """Words, an LSTM, and a linear layer over its state after the last word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 16), nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(input_ids))
        last = (attention_mask * torch.arange(input_ids.shape[1])).argmax(1)
        return self.head(states[torch.arange(len(states)), last])


def compiled(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: torch.compile(make(), backend="eager")  # type: ignore[return-value]


def in_dtype(make: Callable[[], nn.Module], dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: make().to(dtype)


VISION, TIMM, TEXT = "torchvision", "timm", "transformers"
BF16 = torch.bfloat16
CASES: Mapping[str, Case] = {
    f"{VISION} resnet18": Case(from_torchvision("resnet18")),
    f"{VISION} resnet50": Case(from_torchvision("resnet50")),
    f"{VISION} mnasnet0_5": Case(from_torchvision("mnasnet0_5")),
    f"{VISION} squeezenet1_1": Case(from_torchvision("squeezenet1_1")),
    f"{VISION} densenet121": Case(from_torchvision("densenet121")),
    f"{VISION} googlenet": Case(
        from_torchvision("googlenet", aux_logits=False, init_weights=False)
    ),
    f"{VISION} mobilenet_v2": Case(from_torchvision("mobilenet_v2")),
    f"{VISION} mobilenet_v3_small": Case(from_torchvision("mobilenet_v3_small")),
    f"{VISION} shufflenet_v2_x0_5": Case(from_torchvision("shufflenet_v2_x0_5")),
    f"{VISION} efficientnet_b0": Case(from_torchvision("efficientnet_b0")),
    f"{VISION} regnet_y_400mf": Case(from_torchvision("regnet_y_400mf")),
    f"{VISION} convnext_tiny": Case(from_torchvision("convnext_tiny")),
    f"{VISION} swin_t": Case(from_torchvision("swin_t")),
    f"{VISION} swin_v2_t": Case(from_torchvision("swin_v2_t")),
    f"{VISION} vit_b_16": Case(from_torchvision("vit_b_16", image_size=32), pixels=32),
    f"{VISION} lraspp_mobilenet_v3_large": Case(
        from_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None)
    ),
    f"{VISION} fcn_resnet50": Case(from_torchvision("fcn_resnet50", weights_backbone=None)),
    f"{VISION} r3d_18": Case(from_torchvision("r3d_18"), kind="clip", pixels=32),
    f"{VISION} resnet18, compiled": Case(compiled(from_torchvision("resnet18"))),
    f"{VISION} resnet18, bfloat16": Case(in_dtype(from_torchvision("resnet18"), BF16), dtype=BF16),
    f"{TIMM} resnet10t, no head": Case(from_timm("resnet10t", num_classes=0)),
    f"{TIMM} convnext_atto": Case(from_timm("convnext_atto")),
    f"{TIMM} swin_tiny": Case(
        from_timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4)
    ),
    f"{TIMM} vit_tiny": Case(from_timm("vit_tiny_patch16_224", img_size=64)),
    f"{TIMM} vit_tiny, no head": Case(
        from_timm("vit_tiny_patch16_224", img_size=64, num_classes=0)
    ),
    f"{TIMM} deit_tiny_distilled": Case(from_timm("deit_tiny_distilled_patch16_224", img_size=64)),
    f"{TIMM} mixer_s32": Case(from_timm("mixer_s32_224", img_size=64)),
    f"{TIMM} mobilenetv3_small_050": Case(from_timm("mobilenetv3_small_050")),
    f"{TIMM} mobilevit_xxs": Case(from_timm("mobilevit_xxs")),
    f"{TIMM} edgenext_xx_small": Case(from_timm("edgenext_xx_small")),
    f"{TIMM} poolformer_s12": Case(from_timm("poolformer_s12")),
    f"{TIMM} pvt_v2_b0": Case(from_timm("pvt_v2_b0")),
    f"{TEXT} BERT": Case(from_transformers("BertForSequenceClassification", "BertConfig"), "text"),
    f"{TEXT} RoBERTa": Case(
        from_transformers("RobertaForSequenceClassification", "RobertaConfig"), "text"
    ),
    f"{TEXT} DistilBERT": Case(
        from_transformers("DistilBertForSequenceClassification", "DistilBertConfig", **DISTIL),
        "text",
    ),
    f"{TEXT} ELECTRA": Case(
        from_transformers("ElectraForSequenceClassification", "ElectraConfig"), "text"
    ),
    f"{TEXT} ALBERT": Case(
        from_transformers("AlbertForSequenceClassification", "AlbertConfig"), "text"
    ),
    f"{TEXT} GPT-2": Case(
        from_transformers("GPT2ForSequenceClassification", "GPT2Config", **GPT2), "text"
    ),
    f"{TEXT} Llama": Case(
        from_transformers("LlamaForSequenceClassification", "LlamaConfig", **LLAMA), "text"
    ),
    f"{TEXT} Mistral": Case(
        from_transformers("MistralForSequenceClassification", "MistralConfig", **LLAMA), "text"
    ),
    f"{TEXT} Qwen2": Case(
        from_transformers("Qwen2ForSequenceClassification", "Qwen2Config", **LLAMA), "text"
    ),
    f"{TEXT} BART": Case(
        from_transformers("BartForSequenceClassification", "BartConfig", **BART), "text"
    ),
    f"{TEXT} T5 encoder": Case(from_transformers("T5EncoderModel", "T5Config", **T5), "text"),
    f"{TEXT} BERT, no head": Case(from_transformers("BertModel", "BertConfig"), "text"),
    f"{TEXT} BERT, of tokens": Case(
        from_transformers("BertForTokenClassification", "BertConfig"), "text"
    ),
    f"{TEXT} GPT-2, language model": Case(
        from_transformers("GPT2LMHeadModel", "GPT2Config", **GPT2), "text"
    ),
    f"{TEXT} ViT": Case(from_transformers("ViTForImageClassification", "ViTConfig", **VIT)),
    f"{TEXT} Segformer": Case(
        from_transformers("SegformerForSemanticSegmentation", "SegformerConfig", **SEGFORMER)
    ),
    f"{TEXT} wav2vec 2.0": Case(
        from_transformers("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **SOUND), "sound"
    ),
    f"{TEXT} BERT, bfloat16": Case(
        in_dtype(from_transformers("BertForSequenceClassification", "BertConfig"), BF16), "text"
    ),
    "torch LSTM": Case(Recurrent, "text"),
}


def data_of(case: Case) -> list[tuple[Any, Tensor]]:
    """Two batches, a seed for all."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    if case.kind == "text":
        lengths = torch.randint(3, 13, (ROWS, 1), generator=g)
        mask = (torch.arange(12) < lengths).long()
        ids = torch.randint(3, WORDS, (ROWS, 12), generator=g) * mask
        ids[torch.arange(ROWS), lengths[:, 0].clamp(max=12) - 1] = 2  # the end, for those who look
        parts = zip(ids.split(BATCH), mask.split(BATCH), strict=True)
        inputs: list[Any] = [{"input_ids": i, "attention_mask": m} for i, m in parts]
    else:
        shape = {"image": (3, case.pixels, case.pixels), "sound": (1600,)}
        shape["clip"] = (3, 4, case.pixels, case.pixels)
        inputs = list(torch.rand(ROWS, *shape[case.kind], generator=g).to(case.dtype).split(BATCH))
    return list(zip(inputs, labels.split(BATCH), strict=True))


def shifted(inputs: Any) -> Any:
    """Half of the words replaced, or less contrast and noise of a pattern."""
    if isinstance(inputs, dict):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        other = (ids * 7) % (WORDS - 3) + 3
        middle = (mask > 0) & (ids > 2) & (torch.arange(ids.shape[1]) % 2 == 0)
        return inputs | {"input_ids": torch.where(middle, other, ids)}
    wave = torch.linspace(0, 20, inputs.shape[-1]).sin().to(inputs.dtype)
    return 0.6 * inputs + 0.2 + 0.1 * wave


def measure(name: str, case: Case) -> Row:
    """Five indices of one model; where all at once fail, each alone, with its reason."""
    begin, row = time.perf_counter(), Row(name)
    torch.manual_seed(0)
    model, data = case.make().eval(), data_of(case)
    try:
        found = read(model, data, INDICES)
        results = dict(found)
    except Exception:  # whatever an index makes of a model is its answer
        results = {}
        for index in INDICES:
            try:
                results[index] = read(model, data, index)
            except Exception as error:
                row.values[index] = " ".join(str(error).split())
    for index, result in results.items():
        row.values[index] = result.value
        row.accuracy = result.old_accuracy if hasattr(result, "old_accuracy") else row.accuracy
        row.layers = len(result.layers) if index == "arm" else row.layers
    embedded = results.get("resque_dist") or results.get("resque_task")
    if embedded is not None:
        row.layer, row.pooling = embedded.layer, embedded.pooling
    row.seconds = time.perf_counter() - begin
    return row


def read(model: nn.Module, data: Any, indices: Any) -> Any:
    options = {"resque_task": {"baselines": False}}
    options = {k: v for k, v in options.items() if k in indices}
    return score(model, data, shift=shifted, indices=indices, progress=False, options=options)


def rows(only: str = "") -> Iterator[Row]:
    """Those of the models whose package is installed."""
    for name, case in CASES.items():
        if only.lower() in name.lower():
            try:
                yield measure(name, case)
            except ModuleNotFoundError as error:
                print(f"{name}: left out, no {error.name}", file=sys.stderr)


def cells(row: Row, reasons: list[str]) -> list[str]:
    """A line of the table; reasons go below it, by number."""
    shown = [row.name, row.layer or "-", row.pooling or "-", str(row.layers or "-")]
    for index in INDICES:
        value = row.values[index]
        if isinstance(value, str):
            if value not in reasons:
                reasons.append(value)
            shown.append(f"({reasons.index(value) + 1})")
        else:
            shown.append(f"{value:.3g}")
    return shown


def table(found: list[Row]) -> str:
    reasons: list[str] = []
    head = ["model", "embedding", "pooling", "layers", *INDICES]
    lines = [head, ["---"] * len(head), *(cells(row, reasons) for row in found)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + "".join(f"\n({i}) {reason}\n" for i, reason in enumerate(reasons, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--write", action="store_true", help="write docs/real_models.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = []
    for row in rows(args.only):
        found.append(row)
        print(" | ".join(cells(row, [])), f"| {row.seconds:.1f} s", flush=True)
        for index, value in row.values.items():
            if isinstance(value, str):
                print(f"    {index}: {value}", flush=True)
    if args.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{table(found)}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
