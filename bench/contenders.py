"""The training loops that `bench.training` compares: the same ResNet, batch 128, SGD with Nesterov momentum.

Run as `python -m bench.contenders NAME PIXELS CHANNELS DEPTH SEEDS IMAGES`: after set-up it prints "ready"; then, for
every line on standard input, it trains each of its seeds one epoch and prints images per second over all of them.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

BATCH = 128
Epoch = Callable[[], None]


def images(pixels: int, channels: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random uint8 images and labels: speed does not depend on what is learned."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, pixels, pixels, channels), np.uint8), rng.integers(0, 10, count).astype(
        np.int32
    )


def resjax(x_NxHxWxC: np.ndarray, y_N: np.ndarray, depth: int, seeds: int, **entries) -> Epoch:
    """The compiled epoch of this project, augmentation off as in the others; `entries` of its config."""
    from functools import partial

    from resjax import config as config_lib
    from resjax.runtime import startup
    from resjax.training import mesh

    config = config_lib.base()
    config.update_from_flattened_dict(
        {
            "seeds": seeds,
            "model.depth": depth,
            "dataset.augment": "none",
            "batch_size": BATCH,
            "epochs": 1000,
        }
        | entries
    )
    startup.start(config)
    import jax
    import jax.numpy as jnp

    from resjax.data.dataset import Dataset, Split, pixel_statistics
    from resjax.training import loop, step

    split = Split(x_NxHxWxC, y_N)
    mean_C, std_C = pixel_statistics(x_NxHxWxC)
    task = loop.make_task(config, Dataset("random", split, None, split, 10, mean_C, std_C))
    replicas = mesh.Replicas(config)
    init = replicas.compile(partial(step.init, task))
    states = init(replicas.copy(jnp.zeros((1, *x_NxHxWxC.shape[1:]))), replicas.spread(jnp.arange(seeds)))
    zeros = replicas.spread(jax.tree.map(lambda zero: jnp.stack([zero] * seeds), step.Sums.zeros()))
    examples = replicas.copy(step.Examples(jnp.asarray(x_NxHxWxC), jnp.asarray(y_N)))
    train = replicas.compile_training(partial(step.train_steps, task))
    own, steps = [states, zeros], [0]

    def epoch():
        bounds = replicas.copy((jnp.int32(steps[0]), jnp.int32(steps[0] + task.steps_per_epoch)))
        own[:] = jax.block_until_ready(train((examples, *bounds), tuple(own)))
        steps[0] += task.steps_per_epoch

    return epoch


def resjax_split(x_NxHxWxC: np.ndarray, y_N: np.ndarray, depth: int, seeds: int) -> Epoch:
    """The same with every batch split over all cores; one seed after another."""
    from resjax.runtime.startup import cores

    return resjax(x_NxHxWxC, y_N, depth, seeds, parallel="pmap", batch_devices=cores())


def flax(x_NxHxWxC: np.ndarray, y_N: np.ndarray, depth: int, seeds: int) -> Epoch:
    """A plain Flax example loop: a jitted step a batch, transfers, metrics fetched every step, seeds in turn."""
    from functools import partial

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    conv3 = partial(nn.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False)
    norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(norm()(conv3(16)(x)))
            for stage, features in enumerate((16, 32, 64)):
                for block in range((depth - 2) // 6):
                    stride = 2 if stage and not block else 1
                    out = nn.relu(norm()(conv3(features, strides=(stride, stride))(x)))
                    out = norm()(conv3(features)(out))
                    if stride == 2:
                        x = norm()(nn.Conv(features, (1, 1), (2, 2), padding="VALID", use_bias=False)(x))
                    x = x + out
            return nn.Dense(10)(x.mean((1, 2)))

    net, optimizer = Net(), optax.sgd(0.1, momentum=0.9, nesterov=True)

    @jax.jit
    def step(state, x, y):
        params, stats, opt_state = state

        def objective(params):
            logits, new = net.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (logits, new["batch_stats"])

        (loss, (logits, stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, -1) == y)}
        return (optax.apply_updates(params, updates), stats, opt_state), metrics

    x = ((x_NxHxWxC / 255 - 0.5) / 0.29).astype(np.float32)
    states = []
    for seed in range(seeds):
        variables = net.init(jax.random.key(seed), x[:1])
        states.append((variables["params"], variables["batch_stats"], optimizer.init(variables["params"])))
    rng = np.random.default_rng(0)

    def epoch():
        for i in range(seeds):
            for batch in _batches(rng, len(y_N)):
                states[i], metrics = step(states[i], x[batch], y_N[batch])
                jax.device_get(metrics)

    return epoch


def torch(x_NxHxWxC: np.ndarray, y_N: np.ndarray, depth: int, seeds: int, *, compiled: bool, last: bool) -> Epoch:
    """PyTorch's usual loop, eager or torch.compile, channels first or last, seeds in turn."""
    import torch
    from torch.nn import functional as F

    from bench.torch_resnet import ResNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.tensor(((x_NxHxWxC / 255 - 0.5) / 0.29).astype(np.float32).transpose(0, 3, 1, 2)).contiguous(
        memory_format=layout
    )
    y = torch.tensor(y_N, dtype=torch.int64)
    # One net stands for all seeds: compiling each would take minutes.
    net = ResNet(x.shape[1], depth).to(device, memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    forward = torch.compile(net) if compiled else net
    rng = np.random.default_rng(0)

    def epoch():
        for _ in range(seeds):
            for batch in map(torch.from_numpy, _batches(rng, len(y_N))):
                loss = F.cross_entropy(forward(x[batch].to(device)), y[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()

    return epoch


def _batches(rng: np.random.Generator, count: int) -> np.ndarray:
    """A permutation in whole batches, [batches, BATCH]."""
    return rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)


CONTENDERS: dict[str, Callable[..., Epoch]] = {
    "resjax": resjax,
    "resjax split": resjax_split,
    "resjax bfloat16": lambda *data: resjax(*data, dtype="bfloat16"),
    "flax": flax,
    **{
        f"torch {'compile' if compiled else 'eager'}{' channels-last' if last else ''}": (
            lambda *data, compiled=compiled, last=last: torch(*data, compiled=compiled, last=last)
        )
        for compiled in (False, True)
        for last in (False, True)
    },
}


def main(name: str, *numbers: str) -> None:
    """Serves rounds over standard input and output."""
    pixels, channels, depth, seeds, count = map(int, numbers)
    epoch = CONTENDERS[name](*images(pixels, channels, count), depth, seeds)
    epoch()  # compiles
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        epoch()
        print(seeds * (count // BATCH) * BATCH / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
