"""Two processes of one training run, forked from this one so that each starts in a moment; used by test_launching.py as a script."""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import tiny_parts
import torch

from drpose.ground.trainer import _gradients, new_accelerator
from drpose.reward.rewards import RewardSum
from drpose.posttraining.post_training import PostTrainLoss, posttrain, prepare_weights


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def fork(job, ranks: int = 2) -> list[int]:
    "Start `job(rank)` in `ranks` processes that find each other as torchrun's would."
    port, children = free_port(), []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                if ranks == 1:
                    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                        del os.environ[name]
                job(rank)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    "Exit codes; negative = killed by that signal."
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def parts(double: bool) -> tuple:
    found = tiny_parts.parts()
    if double:
        torch.set_default_dtype(torch.float64)
        found = (found[0].double(), found[1], found[2].double(), tiny_parts.PairConditions(*(value.double() for value in (found[3].photos, found[3].descriptors, found[3].joints))), found[4].double(), found[5])
    return found


def train(folder: Path, ranks: int, double: bool = False, **settings) -> list[int]:
    "Train once, start to end; exit codes."
    return wait(fork(lambda rank: posttrain(tiny_parts.config(**settings), *parts(double), folder), ranks))


def gradients(folder: Path, ranks: int, **settings) -> list[int]:
    "Write every rank's loss and gradients of update 3, with an adapter whose B is not zero."

    def job(rank: int) -> None:
        config = tiny_parts.config(**settings)
        unet, scheduler, predictor, data, prompts, rig = parts(True)
        prepare_weights(unet, config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        accelerator = new_accelerator(config, folder)
        assert accelerator.num_processes == ranks
        module = accelerator.prepare(PostTrainLoss(unet, None, scheduler, RewardSum(predictor, config.reward), data, prompts, rig, config))
        loss, _ = _gradients(module, 3, accelerator, config.accumulate)
        loss = accelerator.reduce(loss, "mean")
        torch.save({"loss": loss, "gradients": {name: p.grad for name, p in unet.named_parameters() if p.requires_grad}}, folder / f"rank{rank}-of{ranks}x{config.accumulate}.pt")

    return wait(fork(job, ranks))


def kill_and_resume(folder: Path, kills: int, seed: int, **settings) -> dict:
    "Start a two-process run, kill -9 both at a random moment, start it again …; a run that comes to its end is followed by another until all kills are done."
    chooser, done, attempts, run = random.Random(seed), 0, 0, 0
    moments, latest = [], 1.6  # seconds; longer where the machine is so busy that kills come before the first checkpoint
    while done < kills:
        children = fork(lambda rank, path=folder / f"run{run}": posttrain(tiny_parts.config(**settings), *parts(False), path))
        began, delay, attempts = time.monotonic(), chooser.uniform(0.05, latest), attempts + 1
        while time.monotonic() - began < delay and all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for child in children):
            time.sleep(0.005)
        for child in chooser.sample(children, 2):
            os.kill(child, signal.SIGKILL)
            time.sleep(chooser.choice((0.0, 0.03)))
        codes = wait(children)
        if codes == [0, 0]:
            run += 1
        else:
            assert all(code in (0, 1, -signal.SIGKILL) for code in codes), codes
            done += 1
            checkpoint = folder / f"run{run}" / "checkpoint.pt"
            moments.append(torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0)
            latest *= 1.0 if moments[-1] else 1.3
    return {"kills": done, "attempts": attempts, "runs": run + 1, "resumed_after": moments, "last": wait(fork(lambda rank: posttrain(tiny_parts.config(**settings), *parts(False), folder / f"run{run}")))}


if __name__ == "__main__":
    found = []
    for what, folder, arguments in json.loads(sys.argv[1]):
        Path(folder).mkdir(parents=True, exist_ok=True)
        found.append(globals()[what](Path(folder), **arguments))
    print(json.dumps(found))
