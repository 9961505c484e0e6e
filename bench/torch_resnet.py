"""The additive ResNet of this project in PyTorch, for comparison; imported where PyTorch is installed."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """`shortcut(x) + norm(conv(relu(norm(conv(x)))))`, no activation after the sum."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, 2, bias=False), nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, features, H/stride, W/stride]."""
        return self.shortcut(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class ResNet(nn.Module):
    """CIFAR ResNet of width 16 (He et al. 2016): images [B, channels, H, W] -> logits [B, classes]."""

    def __init__(self, channels: int, depth: int, classes: int = 10):
        super().__init__()
        blocks, inputs = [], 16
        for stage, features in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                blocks.append(Block(inputs, features, 2 if stage and not block else 1))
                inputs = features
        self.stem, self.norm = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> [B, classes]."""
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))
