"""A slow link between two network namespaces: TUN devices and a process that passes packets on.

netem does the same in the kernel, where it is built in; this needs TUN devices alone.
Linux: tun in its kernel's documentation (networking/tuntap), setns(2).
"""

import argparse
import ctypes
import fcntl
import os
import queue
import random
import struct
import threading
import time

DEVICE = "slow0"
TUNSETIFF, IFF_TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
CLONE_NEWNET = 0x40000000
MOST_WAITING = 0.2  # seconds of packets that wait for the link; later ones are dropped


def open_device(namespace: str) -> int:
    """Make a TUN device in a namespace, into which this thread goes; return its handle."""
    handle = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}")
    finally:
        os.close(handle)
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN_WITHOUT_HEADER))
    return device


def carry(source: int, target: int, rate: float, delay: float, loss: float) -> None:
    """Pass packets on at `rate` bits a second, `delay` seconds late, dropping a share of `loss`."""
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()
    chance = random.Random(0)

    def deliver() -> None:
        while True:
            due, packet = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                os.write(target, packet)
            except OSError:  # the device is down
                continue

    threading.Thread(target=deliver, daemon=True).start()
    free = time.monotonic()
    while True:
        packet = os.read(source, 1 << 16)
        now = time.monotonic()
        if free - now > MOST_WAITING or chance.random() < loss:
            continue
        free = max(free, now) + 8 * len(packet) / rate
        waiting.put((free + delay, packet))


def main() -> None:
    """Make both devices, say so, and pass packets on until the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--rate", type=float, required=True, help="bits a second")
    parser.add_argument("--delay", type=float, required=True, help="seconds, each way")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    options = parser.parse_args()
    first, second = map(open_device, options.namespaces)
    print("ready", flush=True)
    how = (options.rate, options.delay, options.loss)
    threading.Thread(target=carry, args=(first, second, *how), daemon=True).start()
    carry(second, first, *how)


if __name__ == "__main__":
    main()
