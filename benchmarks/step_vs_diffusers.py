"""Compares one training step with the same step in plain diffusers: `python -m benchmarks.step_vs_diffusers`, on the CPU in fp32.

Each side runs in a process of its own; they take turns, so that a busy machine slows both. Legend: b batch, c channels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.models import NUM_VECTORS, SD15_256, TINY, Sizes, first_vectors, make_batch, random_model
from benchmarks.table import publish, table, where

SIDES = ("ours", "diffusers")
CASES: dict[str, tuple[Sizes, int]] = {"tiny": (TINY, 8), "sd15": (SD15_256, 1)}
LEARNING_RATE = 0.005


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_vs_diffusers", description="Time a training step beside plain diffusers'."
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="models (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default: 2)")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.worker:
        work(*options.worker)
        return 0
    rows = [row(case, options.rounds, options.threads) for case in options.cases]
    columns = (
        "model",
        "batch",
        "ours, s/step",
        "diffusers, s/step",
        "times as fast",
        "in processor time",
        *(f"{side}, peak GiB" for side in SIDES),
    )
    publish(f"{where('cpu')}\n\n{table(columns, rows)}", options.out)
    return 0


# the parent process


@dataclass
class Worker:
    """A process with one side of the comparison, which runs steps on request."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, side: str, case: str, threads: int) -> Worker:
        command = [sys.executable, "-m", "benchmarks.step_vs_diffusers", "--threads", str(threads), "--worker", side, case]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))

    def ask(self, steps: int) -> dict[str, float]:
        """Run some steps. Return mean seconds and CPU seconds of one step, the last loss, and peak memory in GiB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a side of the comparison ended early with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def row(case: str, rounds: int, threads: int) -> list[str]:
    """Medians over rounds in which the two sides take turns: A B B A A B ..., so that neither always comes first."""
    sizes, batch = CASES[case]
    workers = {side: Worker.start(side, case, threads) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks = dict.fromkeys(SIDES, 0.0)
    try:
        once = max(worker.ask(1)["seconds"] for worker in workers.values())  # the first steps warm up
        steps = max(1, int(3 / once))
        for turn in range(rounds):
            for side in SIDES if turn % 2 == 0 else reversed(SIDES):
                answer = workers[side].ask(steps)
                seconds[side].append(answer["seconds"])
                cpu[side].append(answer["cpu"])
                peaks[side] = answer["peak"]
            shown = {side: [round(seconds[side][-1], 3), round(cpu[side][-1], 3)] for side in SIDES}
            print(f"{sizes.name}, seconds and processor seconds: {json.dumps(shown)}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    ratios = [statistics.median(b / a for a, b in zip(*(times[side] for side in SIDES))) for times in (seconds, cpu)]
    medians = [f"{statistics.median(seconds[side]):.3f}" for side in SIDES]
    return [sizes.name, str(batch), *medians, *(f"{ratio:.2f}" for ratio in ratios), *(f"{peaks[side]:.1f}" for side in SIDES)]


# the worker process


def work(side: str, case: str) -> None:
    """Answer each number of steps on stdin with one line of JSON."""
    sizes, batch = CASES[case]
    step = {"ours": our_step, "diffusers": diffusers_step}[side](sizes, batch)
    for line in sys.stdin:
        steps = int(line)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = step()
        seconds, cpu = (time.perf_counter() - begin) / steps, (time.process_time() - cpu_begin) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "cpu": cpu, "loss": loss, "peak": peak}), flush=True)


def our_step(sizes: Sizes, batch_size: int) -> Callable[[], float]:
    """The package's step on cached latents, as the trainer runs it."""
    from textual_inversion.settings.training import TrainingConfig
    from textual_inversion.training.data.batches import Batch
    from textual_inversion.training.data.latents import LatentMoments, sample
    from textual_inversion.training.step import TrainingStep

    config = TrainingConfig("word", "pictures", method="classic")
    step = TrainingStep(random_model(sizes, "cpu", torch.float32), first_vectors(sizes), config)
    first = make_batch(sizes, batch_size, 0, "cpu")
    moments = LatentMoments(first.latents, torch.rand_like(first.latents))
    rows = torch.arange(batch_size)

    def next_batch() -> Batch:
        latents = sample(moments, rows, torch.randn_like(moments.mean))
        return Batch(latents, torch.randn_like(latents), torch.randint(1000, (batch_size,)), first.prompts)

    return lambda: float(step.run(next_batch, LEARNING_RATE, 1.0)[0])


def diffusers_step(sizes: Sizes, batch_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """The step of diffusers' textual inversion example, without its data loader and its accelerator.

    The pictures go through the VAE each time, the optimizer holds the whole token table, and the rows of other words are put back.

    Args:
        device, dtype: where it runs, and the type of UNet and VAE; the text encoder is fp32 under autocast, as its accelerator has it.
    """
    unet, vae, clip, scheduler = diffusers_parts(sizes, device, dtype)
    rows = clip.get_input_embeddings().weight
    optimizer = torch.optim.AdamW([rows], lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    before = rows.detach().clone()
    learned = range(sizes.clip.vocab_size - NUM_VECTORS, sizes.clip.vocab_size)
    others = torch.ones(len(rows), dtype=torch.bool)
    others[list(learned)] = False
    ids = make_batch(sizes, batch_size, 0, device).prompts.tokens.ids
    ids[:, 5 : 5 + NUM_VECTORS] = torch.tensor(list(learned), device=device)
    pixels = torch.rand(batch_size, 3, sizes.pixels, sizes.pixels, device=device) * 2 - 1  # b c height width
    mixed = torch.autocast(torch.device(device).type, dtype, enabled=dtype is not torch.float32)

    def step() -> float:
        latents = vae.encode(pixels.to(dtype)).latent_dist.sample().detach() * vae.config.scaling_factor  # b c h w
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (batch_size,), device=device)
        with mixed:
            context = clip(ids)[0].to(dtype)
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            rows[others] = before[others]
        return float(loss.detach())

    return step


def diffusers_parts(sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, ...]:
    """UNet, VAE, text encoder and noise schedule of diffusers and transformers; of the weights, only the token table is trained."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    widths = [sizes.vae.base_channels * mult for mult in sizes.vae.channel_mult]
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(widths), "up_block_types": ("UpDecoderBlock2D",) * len(widths)}
    width, layers = sizes.clip.width, sizes.clip.layers
    config = CLIPTextConfig(
        vocab_size=sizes.clip.vocab_size, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=sizes.clip.heads,
    )  # fmt: skip
    with torch.device(device):  # weights are drawn there, which is quicker
        unet = UNet2DConditionModel(**unet_options(sizes)).to(dtype)
        vae = AutoencoderKL(block_out_channels=widths, layers_per_block=sizes.vae.num_res_blocks, **kinds).to(dtype)
        clip = CLIPTextModel(config).train()
    for part in (unet.eval(), vae.eval(), clip):
        part.requires_grad_(False)
    clip.get_input_embeddings().requires_grad_(True)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return unet, vae, clip, scheduler


def unet_options(sizes: Sizes) -> dict[str, object]:
    """Arguments of diffusers' UNet for one of ours."""
    config = sizes.unet
    attends = [depth > 0 for depth in config.transformer_depth]
    return {
        "block_out_channels": tuple(config.model_channels * mult for mult in config.channel_mult),
        "layers_per_block": config.num_res_blocks[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": 8,
    }


if __name__ == "__main__":
    sys.exit(main())
