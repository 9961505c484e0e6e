"""The recipe of experiments.images in PyTorch: python -m bench.recipe --dataset=cifar10 --rate=0.3 [--seeds=0,1]

Trains the additive ResNet-8 of width 16 and prints its final test accuracy for every seed: does our `add` with the same
recipe agree? Initial weights, order of the images and crops are PyTorch's own, so that only distributions can agree.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.torch_resnet import ResNet
from experiments.images.plan import RECIPE
from resjax import config as base
from resjax.data.dataset import load

PADDING = 4
DECAY = 5e-4


def augmented(x_BxCxHxW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each normalised image moved by up to four pixels, 0 where it leaves the frame, and mirrored or not."""
    B, _, H, W = x_BxCxHxW.shape
    padded = F.pad(x_BxCxHxW, [PADDING] * 4)
    top_B, left_B = torch.randint(0, 2 * PADDING + 1, (2, B), generator=generator)
    flip_B = torch.rand(B, generator=generator) < 0.5
    out = [padded[i, :, top_B[i] : top_B[i] + H, left_B[i] : left_B[i] + W] for i in range(B)]
    return torch.stack([image.flip(-1) if flip else image for image, flip in zip(out, flip_B, strict=True)])


def initialised(net: nn.Module) -> nn.Module:
    """He normal convolutions, as here; a head of variance 1/fan_in."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    return net


def trained(dataset: str, rate: float, epochs: int, seed: int) -> float:
    """Test accuracy after the last epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = load(base.with_preset(base.base(), dataset).dataset)
    mean, std = (torch.tensor(np.array(v), dtype=torch.float32)[None, :, None, None] for v in (data.mean_C, data.std_C))

    def tensors(split) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(split.images_NxHxWxC).permute(0, 3, 1, 2), torch.tensor(split.labels_N, dtype=torch.int64)

    (x, y), (x_test, y_test) = tensors(data.train), tensors(data.test)
    net = initialised(ResNet(3, 8, data.num_classes))
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    batch = RECIPE["batch_size"]
    steps = epochs * (len(y) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=RECIPE["schedule.warmup"], cycle_momentum=False
    )
    for epoch in range(epochs):
        order = torch.randperm(len(y), generator=generator)[: len(y) // batch * batch].reshape(-1, batch)
        for index in order:
            images = augmented((x[index].float() / 255 - mean) / std, generator)
            loss = F.cross_entropy(net(images), y[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), RECIPE["optimizer.clip_norm"])
            optimizer.step()
            schedule.step()
        print(f"seed {seed}: epoch {epoch + 1}/{epochs}, loss of the last batch {loss.item():.3f}", flush=True)
    net.eval()
    with torch.no_grad():
        hits = [
            (net((images.float() / 255 - mean) / std).argmax(1) == labels).sum().item()
            for images, labels in zip(x_test.split(512), y_test.split(512), strict=True)
        ]
    return sum(hits) / len(y_test)


def main() -> None:
    """Trains every seed and prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", default="0,1")
    args = parser.parse_args()
    for seed in map(int, args.seeds.split(",")):
        print(f"seed {seed}: {100 * trained(args.dataset, args.rate, args.epochs, seed):.2f} %", flush=True)


if __name__ == "__main__":
    main()
