"""Small text models that need no package, texts for them, and padding of any width and side."""

import torch
from torch import nn

CLASSES, VOCABULARY, PAD = 3, 40, 0


class Block(nn.Module):
    """Attention over the real tokens (of a decoder: those before), and a perceptron."""

    def __init__(self, width, causal):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 20),
            nn.Linear(20, width),
        )
        self.causal = causal

    def forward(self, x, mask):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        allowed = mask[:, None, :].expand(-1, x.shape[1], -1)
        if self.causal:
            allowed = allowed & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = (q @ k.transpose(1, 2)).masked_fill(~allowed, -1e30)
        x = x + self.proj(scores.softmax(-1) @ v)
        return x + self.down(self.up(x).tanh())


class Text(nn.Module):
    """An encoder whose head reads the first token, a decoder whose head reads every token and that
    returns the last one's logits, or an encoder without a head."""

    def __init__(self, kind, width=8, layers=2):
        super().__init__()
        self.kind = kind
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width, kind == "decoder") for _ in range(layers))
        self.score = nn.Linear(width, CLASSES) if kind != "embedder" else None

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.bool()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        x = self.words(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x, mask)
        rows = torch.arange(len(x))
        if self.kind == "embedder":
            return {"last_hidden_state": x, "pooler_output": x[:, 0].tanh()}
        if self.kind == "encoder":
            return {"logits": self.score(x[rows, mask.int().argmax(1)])}
        last = (mask * torch.arange(mask.shape[1])).argmax(1)
        return {"logits": self.score(x)[rows, last]}


def make(kind, dtype=torch.float64):
    torch.manual_seed(3)
    return Text(kind).to(dtype).eval()


def texts(count=24, seed=0, longest=7):
    """[(ids, label)] of 1 to `longest` words, every class as often."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=g).tolist()
    ids = [torch.randint(1, VOCABULARY, (n,), generator=g) for n in lengths]
    return [(words, i % CLASSES) for i, words in enumerate(ids)]


def padded(some, width, left):
    """A batch ({input_ids, attention_mask}, labels)."""
    ids = torch.full((len(some), width), PAD)
    mask = torch.zeros(len(some), width, dtype=torch.int64)
    for i, (words, _) in enumerate(some):
        at = slice(width - len(words), width) if left else slice(0, len(words))
        ids[i, at], mask[i, at] = words, 1
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([y for _, y in some])


def batched(some, size=8, extra=0, left=False, order=None):
    """Batches of the texts, each padded to its longest and `extra` more."""
    some = [some[i] for i in order] if order is not None else some
    parts = [some[i : i + size] for i in range(0, len(some), size)]
    return [padded(part, max(len(w) for w, _ in part) + extra, left) for part in parts]


def alone(some):
    """Every text by itself, without padding: what no mask is needed for."""
    return [padded([text], len(text[0]), False) for text in some]
