"""Backends that the suite's engine does not have: how an instance of `services.yaml` may behave in our cases.

`how: silent`      takes no connection and refuses none: its queue is full, so that a caller's SYN is never answered
"""
import socket

from lib import backend

plain_start, plain_stop = backend.Instance.start, backend.Instance.stop


async def start(self):
    if self.b.get("how") != "silent":
        return await plain_start(self)
    # Linux keeps one connection for a queue of 0; the kernel drops what comes after.
    self.queue = socket.socket()
    self.queue.bind((self.addr, 0))
    self.queue.listen(0)
    self.lport = self.queue.getsockname()[1]
    self.filler = socket.create_connection((self.addr, self.lport))


async def stop(self):
    for held in (getattr(self, "queue", None), getattr(self, "filler", None)):
        if held:
            held.close()
    await plain_stop(self)


backend.Instance.start, backend.Instance.stop = start, stop
