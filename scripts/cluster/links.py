"""Workers on one machine that reach each other by slow links only: network namespaces with a limit of their rate."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnxpart.errors import UsageError

LINK = "wire"
"""The name that each worker has its link by."""


@contextmanager
def linked(count: int, mbit: float | None) -> Iterator[list[list[str]]]:
    """Give each of some workers a network namespace with one link to a switch; nothing else of the machine changes.

    :param mbit: megabits per second of each link, in both directions; None for no limit.
    :returns: for each worker what stands in front of its command.
    :raises UsageError: where namespaces can't be made.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))):
        raise UsageError("network namespaces need root, ip and tc; run as root and install iproute2.")
    switch, *names = (f"onnxpart{os.getpid()}-{i}" for i in range(count + 1))
    with ExitStack() as stack:
        for name in (switch, *names):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            _run("ip", "-n", name, "link", "add", LINK, "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            _run("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _run("ip", "-n", name, "addr", "add", f"{address(i)}/24", "dev", LINK)
            for device in ("lo", LINK):
                _run("ip", "-n", name, "link", "set", device, "up")
            for place, device in ((name, LINK), (switch, f"port{i}")):
                if mbit is not None:
                    limit = ("rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
                    _run("tc", "-n", place, "qdisc", "add", "dev", device, "root", "tbf", *limit)
        yield [["ip", "netns", "exec", name] for name in names]


def address(i: int) -> str:
    """The address of a worker, by its number."""
    return f"10.0.0.{i + 1}"


def sent(device: str = LINK) -> int:
    """Return the bytes that have left by this process's link, or another network device; 0 where it has none."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == device:
            return int(counts.split()[8])
    return 0


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
