"""Backends that the suite's engine does not have: how an instance of `services.yaml` may behave in our cases.

`how: silent`      takes no connection and refuses none: its queue is full, so that a caller's SYN is never answered
`how: script`      answers in words of its own: `answers` has for each path a list of texts, written one after the other;
                   between two of them it waits for `pause_ms`; `{body}` stands for what it was sent, read when it gets there
`how: forward`     a proxy on the way: takes CONNECT and POST, and tells within the tunnel what it was asked; `refuses: 403` says no
`proxied: true`    a PROXY header comes first on every connection; of TCP the greeting tells it, of HTTP a header of the request
"""
import asyncio
import ipaddress
import json
import socket
import struct

from lib import backend

plain_start, plain_stop, plain_http1 = backend.Instance.start, backend.Instance.stop, backend.Instance.http1
plain_conn, plain_tcp = backend.Instance.conn, backend.Instance.tcp


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


async def conn(self, reader, writer):
    if self.b.get("proxied"):
        try:
            writer.told = await asyncio.wait_for(proxy_header(reader), 5)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
            writer.told = f"none: {error}"
    await plain_conn(self, reader, writer)


async def proxy_header(reader):
    """Either version, in the words of version 1."""
    line = await reader.readuntil(b"\r\n")
    if line != b"\r\n":
        return "v1 " + line.decode().strip()
    rest = await reader.readexactly(14)
    body = await reader.readexactly(struct.unpack("!H", rest[12:])[0])
    if rest[:10] != b"\r\n\0\r\nQUIT\n" or rest[10] != 0x21:
        return f"v2 {rest.hex()}"
    size, family = (4, "TCP4") if rest[11] == 0x11 else (16, "TCP6")
    source, target = (ipaddress.ip_address(body[at:at + size]) for at in (0, size))
    return f"v2 PROXY {family} {source} {target} {' '.join(str(port) for port in struct.unpack('!HH', body[2 * size:2 * size + 4]))}"


async def forward(self, reader, writer):
    """Tells the head it was sent on one line, then echoes: raw after CONNECT, in chunks after POST."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    self.hits.append({"tcp": True})
    if "refuses" in self.b:
        writer.write(f"HTTP/1.1 {self.b['refuses']} No\r\ncontent-length: 0\r\n\r\n".encode())
        return await writer.drain()
    is_post = head[0].startswith("POST")
    writer.write(b"HTTP/1.1 200 OK\r\n" + (b"transfer-encoding: chunked\r\n" if is_post else b"") + b"\r\n")

    async def say(data):
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" if is_post else data)
        await writer.drain()

    await say(json.dumps([head[0], *sorted(head[1:], key=str.lower)]).encode() + b"\n")
    while True:
        if is_post:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = (await reader.readexactly(size + 2))[:size]
        else:
            data = await reader.read(4096)
        if not data:
            return
        await say(data)


async def tcp(self, reader, writer):
    if self.b.get("how") == "forward":
        return await forward(self, reader, writer)
    if not self.b.get("proxied"):
        return await plain_tcp(self, reader, writer)
    self.hits.append({"tcp": True})
    writer.write((writer.told + "\n").encode())
    while True:
        await writer.drain()
        data = await reader.read(4096)
        if not data:
            return
        writer.write(data)


async def http1(self, reader, writer, data):
    if self.b.get("proxied"):
        head, rest = data.split(b"\r\n", 1) if b"\r\n" in data else (data + await reader.readuntil(b"\r\n"), b"")
        data = head.rstrip(b"\r\n") + b"\r\nx-proxied: " + writer.told.encode() + b"\r\n" + rest
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
backend.Instance.conn, backend.Instance.tcp = conn, tcp
