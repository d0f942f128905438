"""Memory and operations without a GPU: what is known by hand, and what the allocator says of the same work."""

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from drpose.ground.counting import counted


def test_products_and_attention_are_what_they_are_by_hand():
    left, query = torch.empty(64, 64, device="meta"), torch.empty(1, 2, 256, 16, device="meta")
    assert counted(lambda: (left @ left) @ left) == (2 * 64 * 64 * 4, 2 * 2 * 64**3)
    assert counted(lambda: F.scaled_dot_product_attention(query=query, key=query, value=query)) == (query.nbytes, 4 * 2 * 256 * 256 * 16)
    assert counted(lambda: F.scaled_dot_product_attention(query, query, query))[0] == query.nbytes


def test_a_network_allocates_what_was_counted():
    def network(device):
        with torch.device(device):
            return torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)), torch.nn.SiLU())

    given = torch.zeros(2048, 256)
    shape = given.to("meta")
    real, shapes = network("cpu"), network("meta")
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        real(given)
    held = most = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"):
        held += size
        most = max(most, held)
    expected, _ = counted(lambda: shapes(shape))
    assert 0.8 < expected / most < 1.05, (expected, most)
