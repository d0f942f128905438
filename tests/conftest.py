"""Shared test set-up: one thread (two busy threads on two cores run several times slower than one), no network, kernels that start at once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import warm_python
from jupyter_client.provisioning import local_provisioner

torch.set_num_threads(1)
local_provisioner.launch_kernel = warm_python.WarmKernel  # some forty notebooks are run in kernels of their own, each of which would spend ten seconds on imports
