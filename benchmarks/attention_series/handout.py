#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The handout's program in Python, for comparison with examples/attention_series: python3 handout.py conv --epochs 12 --seed 1

Draws the data, trains one net of the series, and prints its losses after each epoch as comma-separated values.
"""

import argparse
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 100


def draw(count, by_location):
    """Draws candidates by the handout's rule: (inputs, targets) of (count, 1, SIZE), and a mask of the valid samples."""
    centre = torch.empty(count, 4, 1).uniform_(5.5, SIZE - 5.5)
    height = torch.empty(count, 4, 1).uniform_(1, 25)
    width = torch.empty(count, 4, 1).uniform_(5, 11)

    def render(height):  # (count, 4, SIZE): two triangles, two boxes
        distance = (torch.arange(SIZE) - centre).abs()
        triangles = F.relu(height - 2 * height / width * F.relu(distance - 0.5))
        boxes = torch.where(distance * 2 * height / width < height, height, 0.0)
        return torch.cat((triangles[:, :2], boxes[:, 2:]), 1)

    shapes = render(height)
    is_on = F.max_pool1d(shapes.sign(), kernel_size=2, stride=1)  # 1 if the position or the next one is covered
    is_sample = (is_on.sum(1) <= 1).all(1)
    if by_location:
        order = centre.argsort(1)
        means = height.gather(1, order).view(count, 2, 2).mean(2, keepdim=True)  # (count, 2, 1): left, right
        target = torch.empty_like(height).scatter_(1, order, means.repeat_interleave(2, 1))
        is_sample &= (means[:, 0] - means[:, 1]).abs().squeeze(1) > 4
    else:
        target = height.view(count, 2, 2).mean(2, keepdim=True).repeat_interleave(2, 1)
        is_sample &= (height[:, 0] - height[:, 1]).abs().squeeze(1) > 4
    noise = torch.empty(2, count, 1, SIZE).uniform_(-0.15, 0.15)
    return (shapes.amax(1, keepdim=True) + noise[0], render(target).amax(1, keepdim=True) + noise[1]), is_sample


def make_data(count, by_location):
    inputs, targets, found = [], [], 0
    while found < count:
        signals, is_sample = draw(4096, by_location)
        inputs.append(signals[0][is_sample])
        targets.append(signals[1][is_sample])
        found += len(inputs[-1])
    return torch.cat(inputs)[:count], torch.cat(targets)[:count]


class SelfAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv1d(channels, channels, 1, bias=False) for _ in range(3))

    def forward(self, x):
        weights = (self.query(x).transpose(1, 2) @ self.key(x)).softmax(2)  # (N, queries, keys)
        return self.value(x) @ weights.transpose(1, 2)


class Net(nn.Module):
    def __init__(self, has_attention, has_positions, mean, deviation):
        super().__init__()
        bits = math.ceil(math.log2(SIZE)) if has_positions else 0
        self.register_buffer("positions", (torch.arange(SIZE) // 2 ** torch.arange(bits)[:, None] % 2)[None].float())
        self.mean, self.deviation = mean, deviation
        convolution = lambda i, o: nn.Conv1d(i, o, 5, padding=2)
        middle = (SelfAttention(64),) if has_attention else (convolution(64, 64), nn.ReLU())
        self.layers = nn.Sequential(convolution(1 + bits, 64), nn.ReLU(), convolution(64, 64), nn.ReLU(), *middle,
                                    convolution(64, 64), nn.ReLU(), convolution(64, 1))

    def forward(self, x):
        x = torch.cat((x, self.positions.expand(len(x), -1, -1)), 1)
        return self.layers((x - self.mean) / self.deviation)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("conv", "attention", "location", "location_positions"))
    parser.add_argument("--epochs", type=int, default=250, help="number of epochs (default: 250)")
    parser.add_argument("--seed", type=int, default=1, help="seed of data, weights and order (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: chosen by torch)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    by_location = arguments.experiment.startswith("location")
    inputs, targets = make_data(25_000, by_location)
    held_out, held_out_targets = make_data(1_000, by_location)
    net = Net(arguments.experiment != "conv", arguments.experiment == "location_positions", inputs.mean(), inputs.std())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    print("epoch,train_loss,validation_loss,seconds")
    for epoch in range(arguments.epochs):
        begin, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(inputs)).split(100):
            loss = F.mse_loss(net(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - begin
        with torch.no_grad():
            outputs = torch.cat([net(some) for some in held_out.split(100)])
        print(f"{epoch},{total / len(inputs)},{F.mse_loss(outputs, held_out_targets).item()},{seconds}", flush=True)


if __name__ == "__main__":
    main()
