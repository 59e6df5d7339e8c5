"""Backends that the suite's engine does not have: how an instance of `services.yaml` may behave in our cases.

`how: silent`      takes no connection and refuses none: its queue is full, so that a caller's SYN is never answered
`how: script`      answers in words of its own: `answers` has for each path a list of texts, written one after the other;
                   between two of them it waits for `pause_ms`; `{body}` stands for what it was sent, read when it gets there
"""
import asyncio
import socket

from lib import backend

plain_start, plain_stop, plain_http1 = backend.Instance.start, backend.Instance.stop, backend.Instance.http1


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


async def http1(self, reader, writer, data):
    if self.b.get("how") != "script":
        return await plain_http1(self, reader, writer, data)
    while True:
        while b"\r\n\r\n" not in data:
            more = await reader.read(65536)
            if not more:
                return
            data += more
        head, data = data.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = [[part.strip() for part in line.split(":", 1)] for line in lines[1:]]
        self.total += 1
        request = {"method": method, "path": path, "http": "1.1", "headers": headers, "body": "",
                   "authority": next((v for k, v in headers if k.lower() == "host"), None)}
        self.note(request)
        self.live -= 1
        length = int(next((v for k, v in headers if k.lower() == "content-length"), 0))
        for text in self.b["answers"][path.split("?")[0]]:
            if "{body}" in text:
                while len(data) < length:
                    data += await reader.readexactly(length - len(data))
                body, data, length = data[:length], data[length:], 0
                request["body"] = body.decode("latin-1")
                text = text.replace("{body}", body.decode("latin-1"))
            if text == "{close}":
                return
            writer.write(text.encode("latin-1"))
            await writer.drain()
            await asyncio.sleep(self.b.get("pause_ms", 0) / 1000)
        if length:
            # What was never read stands before the next request: nothing can follow.
            return


backend.Instance.start, backend.Instance.stop, backend.Instance.http1 = start, stop, http1
