"""A small set model, for tests of what is around it."""

import torch
import torch.nn.functional as F
from torch import nn


class Reader(nn.Module):
    """A query attends to the support set by keys of its inputs; labels or numbers are the values."""

    def __init__(self, inputs, outputs, targets, width=8):
        super().__init__()
        self.key = nn.Linear(inputs, width)
        self.value = nn.Linear(targets + width, width)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh(), nn.Linear(width, outputs))
        self.targets = targets

    def encode_support(self, support_x, support_y):
        key = self.key(support_x.flatten(2))
        y = support_y
        if not y.is_floating_point():
            y = F.one_hot(y.clamp_min(0), self.targets).to(key)
        return {"key": key, "value": self.value(torch.cat([key, y], -1))}

    def decode_queries(self, encoded, query_x):
        query = self.key(query_x.flatten(2))
        seen = F.scaled_dot_product_attention(query, encoded["key"], encoded["value"])
        return self.head(torch.cat([query, seen], -1))

    def forward(self, support_x, support_y, query_x):
        return self.decode_queries(self.encode_support(support_x, support_y), query_x)


class Whole(nn.Module):
    """The same without the pair of methods."""

    def __init__(self, *sizes):
        super().__init__()
        self.reader = Reader(*sizes)

    def forward(self, support_x, support_y, query_x):
        return self.reader(support_x, support_y, query_x)


def reader(kind=Reader):
    """A factory of it for any tasks."""

    def build(spec):
        inputs = int(torch.Size(spec.input_shape).numel())
        return kind(inputs, spec.outputs, spec.target_size or spec.outputs)

    return build
