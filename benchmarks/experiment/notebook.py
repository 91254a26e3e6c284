#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The notebook "Attention intuition" as a program: python3 notebook.py [--epochs 50] [--device cpu]

Two nets learn to redraw every shape of a signal at the mean height of its kind. main.cpp is the same program with attend.
With --drive it reads requests of measure.py, one in each line, and answers each with a line of JSON:

  epoch NET        trains convolution or attention for one epoch: seconds, training_loss (the mean), last_batch_loss
  held_out COUNT   makes held-out samples: seconds
  evaluate NET     held_out_loss
  memory           peak memory of the process in MiB: peak_mib, and on a GPU device_mib
  quit             ends the program

Needs torch and numpy.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shape_dataset"))
from compare import sample  # noqa: E402

BATCH_SIZE = 32


class ShapeDataset(torch.utils.data.Dataset):
    """The samples as in the notebook: made one by one, and kept in lists of tensors."""

    def __init__(self, count):
        self.inputs, self.targets = [], []
        for _ in range(count):
            signal, target = sample()
            self.inputs.append(torch.from_numpy(signal))
            self.targets.append(torch.from_numpy(target))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


class SelfAttention(nn.Module):
    """Self-attention over the positions, without a scale."""

    def __init__(self, in_channels, key_channels, out_channels):
        super().__init__()
        self.query = nn.Conv1d(in_channels, key_channels, 1, bias=False)
        self.key = nn.Conv1d(in_channels, key_channels, 1, bias=False)
        self.value = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x):
        weights = torch.softmax(self.query(x).transpose(1, 2) @ self.key(x), dim=2)  # (N, L, L)
        return (weights @ self.value(x).transpose(1, 2)).transpose(1, 2)


def convolution(in_channels, out_channels):
    return nn.Conv1d(in_channels, out_channels, 5, padding="same")


def convolution_net():
    return nn.Sequential(convolution(1, 64), nn.ReLU(), convolution(64, 64), nn.ReLU(), convolution(64, 64), nn.ReLU(),
                         convolution(64, 64), nn.ReLU(), convolution(64, 1))


def attention_net():
    return nn.Sequential(convolution(1, 64), nn.ReLU(), convolution(64, 64), nn.ReLU(), SelfAttention(64, 64, 64),
                         convolution(64, 64), nn.ReLU(), convolution(64, 1))


class Training:
    """One net with its optimizer, and the notebook's loop."""

    def __init__(self, net, data, settings):
        self.device, self.net = settings.device, net.to(settings.device)
        self.loader = torch.utils.data.DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=settings.workers,
                                                  pin_memory=settings.device == "cuda")
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.loss_of = nn.MSELoss()
        self.autocast = torch.autocast(settings.device, torch.bfloat16, enabled=settings.dtype == "bfloat16")

    def epoch(self):
        self.net.train()
        losses, sizes = [], []
        begin = time.perf_counter()
        for signals, targets in self.loader:
            signals, targets = signals.to(self.device), targets.to(self.device)
            self.optimizer.zero_grad()
            with self.autocast:
                loss = self.loss_of(self.net(signals), targets)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(signals))
        last = loss.item()  # waits for the GPU
        seconds = time.perf_counter() - begin
        # The notebook does not compute the mean, so it is not timed.
        return {"seconds": seconds, "training_loss": np.average(torch.stack(losses).tolist(), weights=sizes),
                "last_batch_loss": last}

    @torch.no_grad()
    def evaluate(self, data):
        self.net.eval()
        total = 0.0
        for signals, targets in torch.utils.data.DataLoader(data, 500):
            with self.autocast:
                loss = self.loss_of(self.net(signals.to(self.device)), targets.to(self.device))
            total += loss.item() * len(signals)
        return total / len(data)


def peak_memory(device):
    """Peak memory in MiB: of the process, if /proc exists, and of torch on the GPU."""
    answer = {"peak_mib": None}
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        answer["peak_mib"] = int(line.split()[1]) / 1024  # kB
    if device == "cuda":
        answer["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return answer


def timed_data(count):
    begin = time.perf_counter()
    data = ShapeDataset(count)
    return data, time.perf_counter() - begin


def serve(trainings):
    held_out = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "epoch":
            answer = trainings[words[0]].epoch()
        elif command == "held_out":
            held_out, seconds = timed_data(int(words[0]))
            answer = {"seconds": seconds}
        elif command == "evaluate":
            answer = {"held_out_loss": trainings[words[0]].evaluate(held_out)}
        elif command == "memory":
            answer = peak_memory(trainings["attention"].device)
        elif command == "quit":
            return
        else:
            raise SystemExit(f"notebook.py: invalid request {command}")
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each net (default: 50)")
    parser.add_argument("--samples", type=int, default=10_000, help="training samples (default: 10000)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="dtype of the training; bfloat16 uses torch.autocast, unlike the notebook (default: float32)")
    parser.add_argument("--threads", type=int, help="threads (default: chosen by torch)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the batches (default: none)")
    parser.add_argument("--seed", type=int, default=7, help="seed of data, weights and order (default: 7)")
    parser.add_argument("--drive", action="store_true", help="read requests from standard input")
    settings = parser.parse_args()

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("notebook.py: torch finds no GPU on this machine")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    # The notebook makes the same data again for its second net. Here they are made once, in favour of the notebook.
    data, seconds = timed_data(settings.samples)
    trainings = {"convolution": Training(convolution_net(), data, settings),
                 "attention": Training(attention_net(), data, settings)}
    if settings.drive:
        ready = {"torch": torch.__version__.split("+")[0], "compiler": f"Python {sys.version.split()[0]}",
                 "threads": torch.get_num_threads(), "data_seconds": seconds}
        if settings.device == "cuda":
            ready["gpu"] = torch.cuda.get_device_name()
        print(json.dumps(ready), flush=True)
        serve(trainings)
        return
    for name, training in trainings.items():
        print(f"Training with {name} model")
        for epoch in range(settings.epochs):
            loss = training.epoch()["last_batch_loss"]
            if epoch % 10 == 0:
                print(f"Epoch: {epoch}, Loss: {loss}", flush=True)


if __name__ == "__main__":
    main()
