"""A convolutional network for sentences.

Kim: Convolutional Neural Networks for Sentence Classification, EMNLP 2014 (arXiv:1408.5882).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["TextCNN", "text_cnn"]


class TextCNN(torch.nn.Module):
    """An embedding, convolutions of several widths over it, the maximum of each map over time; see `text_cnn`."""

    def __init__(
        self,
        num_classes: int = 2,
        vocabulary: int = 20_000,
        embedding: int = 300,
        widths: Sequence[int] = (3, 4, 5),
        channels: int = 100,
        dropout: float = 0.5,
        padding_index: int | None = 0,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: expected at least one, each at least 1, got {tuple(widths)}")
        self.embedding = torch.nn.Embedding(vocabulary, embedding, padding_index)
        self.convolutions = torch.nn.ModuleList(nn.Conv1d(embedding, channels, width) for width in widths)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.dropout = torch.nn.Dropout(dropout)
        self.fc = torch.nn.Linear(channels * len(widths), num_classes)
        torch.nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
        if padding_index is not None:
            with torch.no_grad():
                self.embedding.weight[padding_index].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        maps = [torch.nn.functional.relu(convolution(x)) for convolution in self.convolutions]
        features = torch.cat([self.pool(values).squeeze(2) for values in maps], 1)
        return self.fc(self.dropout(features))


@register_model(input_shape=(64,), input_dtype=torch.int64)
def text_cnn(
    num_classes: int = 2,
    vocabulary: int = 20_000,
    embedding: int = 300,
    widths: Sequence[int] = (3, 4, 5),
    channels: int = 100,
    dropout: float = 0.5,
    padding_index: int | None = 0,
) -> TextCNN:
    """Kim's network for sentences: convolutions of the widths 3, 4, 5 over an embedding, maxima over time.

    This is CNN-rand of the paper, with word vectors drawn from ± 0.25 and trained; others go into
    `model.embedding.weight`. The paper also bounds the norm of the last layer's weights, which is the training's
    business.

    Input: int64 [N, words], at least as many as the largest width; shorter texts are filled up with `padding_index`.
    Output: [N, num_classes].

    Args:
        vocabulary: number of words.
        embedding: numbers a word.
        widths: of the convolutions, in words.
        channels: convolutions of each width.
        dropout: the share of zeros before the last layer.
        padding_index: the word that stands for none: its vector is 0 and stays so. None: there is no such word.
    """
    return TextCNN(num_classes, vocabulary, embedding, widths, channels, dropout, padding_index)
