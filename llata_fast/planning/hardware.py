"""Devices and the links between them, by their makers' data sheets; nothing here was measured.

Sources: NVIDIA's data sheets of H100 (SXM5), H200 (SXM), B200 (HGX), A100 (SXM4), L40S, L4, A10G and GeForce RTX
4090, dense rates without sparsity. Between nodes: the usual network of such machines (8 x 400 Gbit/s InfiniBand for
Hopper and Blackwell, 8 x 200 Gbit/s for A100, 100 Gbit/s per card elsewhere). `cpu` is one ordinary server core.
"""

import math
import os
from typing import NamedTuple


class Device(NamedTuple):
    """One GPU, or one CPU rank."""

    memory_gib: float
    """in units of 2**30 bytes, as the driver shows them: a nominal 80 GB are about 79.6"""
    bf16_tflops: float
    fp32_tflops: float
    memory_gbps: float
    """bandwidth of its own memory, GB/s"""
    link_gbps: float
    """GB/s to the other devices in a node, one direction"""
    devices_per_node: int
    network_gbps: float
    """GB/s to other nodes, one direction, per device"""
    host_gbps: float
    """GB/s to host memory, one direction"""


DEVICES: dict[str, Device] = {
    "b200": Device(179, 2250, 80, 8000, 900, 8, 50, 64),
    "h200": Device(140.4, 989, 67, 4800, 450, 8, 50, 64),
    "h100-80g": Device(79.6, 989, 67, 3350, 450, 8, 50, 64),
    "a100-80g": Device(79.6, 312, 19.5, 2039, 300, 8, 25, 32),
    "a100-40g": Device(39.6, 312, 19.5, 1555, 300, 8, 25, 32),
    "l40s": Device(45, 362, 91.6, 864, 32, 8, 12.5, 32),
    "l4": Device(22.5, 121, 30.3, 300, 32, 8, 12.5, 32),
    "a10g": Device(22.5, 70, 31.2, 600, 32, 8, 12.5, 32),
    "rtx4090": Device(24, 165, 82.6, 1008, 32, 8, 12.5, 32),
    # all ranks share the machine's memory; bf16 is emulated on cores without instructions for it
    "cpu": Device(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 0.05, 0.05, 20, 4, 64, 1.25, 20),
}

# latency of a collective: within a node, and over the network
_LINK_LATENCY, _NETWORK_LATENCY = 5e-6, 15e-6
# share of a link's rate that collectives reach with messages of several megabytes
_LINK_EFFICIENCY = 0.8


def collective_seconds(device: Device, ranks: int, sent_bytes: float, calls: float, bandwidth_gbps: float = 0) -> float:
    """Alpha-beta model: `calls` collectives over `ranks`, in which each rank sends `sent_bytes` in total.

    Rings over several nodes cross each node's network cards together, so the slower of link and cards limits them;
    latency grows with the logarithm of the ranks. `bandwidth_gbps`, if measured, replaces the data sheet's value.
    """
    if ranks == 1:
        return 0.0
    inside = min(ranks, device.devices_per_node)
    nodes = math.ceil(ranks / device.devices_per_node)
    bandwidth = device.link_gbps
    if nodes > 1:
        bandwidth = min(bandwidth, device.network_gbps * device.devices_per_node)
    bandwidth = bandwidth_gbps or bandwidth * _LINK_EFFICIENCY
    latency = _LINK_LATENCY * math.log2(max(inside, 2)) + _NETWORK_LATENCY * math.log2(nodes)
    return calls * latency + sent_bytes / (1e9 * bandwidth)
