"""What our cases look at beyond the suite's checks, and a client of HTTP/1 that sees it.

A step may say `version: "1.0"`, `wait: true` (the body is sent once a 100 has come) and `half: true` (the sending side is closed after
the request). `tls: {sni: NAME, alpn: [h2], cert: NAME}` makes it a visitor over TLS, with a certificate of the suite's if it has `cert`; with `proto: tcp`
there are bytes inside. `proto: tcp` with `hold_ms` keeps the connection for so long, in silence: `held`, or `cut` by who is asked. Checks of
ours:

`interim`          status and the named headers of each informational answer, in order: `interim: [link]`
`trailers`         the named trailers of the answer: `trailers: [x-sum]`
`closes`           whether the connection was closed after the answer, within half a second
`text`             the body of the answer, however it was framed
`asked`            the head that a proxy on the way was sent, lower case
`proxied`          the PROXY header that an instance was sent; the caller's port and the one dialled have words in their place
`shown`            for whom the certificate is that the visitor was shown, and the protocol agreed on
`told`             which parts of the visitor's certificate the application is told of
"""
import asyncio
import json
import re
import ssl
import time

from lib import client, runner

plain_do, plain_seen, plain_exchange = client.Http1._do, runner.seen, client.tcp_exchange
OURS = ("interim", "trailers", "closes", "text", "asked", "proxied", "shown", "told")


async def do(self, q, res, keep):
    if not {"version", "wait", "half", "tls"} & set(q) and not set(OURS) & set(q["check"]):
        return await plain_do(self, q, res, keep)
    if "tls" in q:
        # Who turns a visitor away may do so with an alert or by closing, before or after the handshake seems over.
        try:
            return await ask(self, q, res)
        except (ssl.SSLError, ConnectionError, EOFError, asyncio.IncompleteReadError, IndexError):
            res.status = "refused"
            return None
    return await ask(self, q, res)


async def exchange(port, q, certs):
    """As the suite's, of bytes inside TLS."""
    if q.get("proto") != "tcp" or not ({"tls", "hold_ms"} & set(q) or {"proxied", "asked"} & set(q["check"])):
        return await plain_exchange(port, q, certs)
    res = client.Result()
    begun = time.monotonic()
    try:
        await asyncio.wait_for(greet(port, q, res), 10)
    except asyncio.TimeoutError:
        res.status = "timeout"
    except (ssl.SSLError, ConnectionError, EOFError):
        res.status = "refused"
    res.ms = (time.monotonic() - begun) * 1000
    return res


async def greet(port, q, res):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **tls_of(q))
    res.ports = (writer.get_extra_info("sockname")[1], port)
    try:
        res.shown = shown_by(writer) if "tls" in q else None
        hello = await reader.readline()
        if not hello:
            raise EOFError
        res.body = json.dumps({"instance": hello.decode().strip()}).encode()
        writer.write(b"ping\n")
        await writer.drain()
        res.status = "connected" if await reader.readline() == b"ping\n" else "no-echo"
        if "hold_ms" in q:
            res.status = "cut" if await ends(reader, q["hold_ms"] / 1000) else "held"
    finally:
        writer.close()


async def ends(reader, within):
    try:
        return await asyncio.wait_for(reader.read(1), within) == b""
    except asyncio.TimeoutError:
        return False
    except ConnectionError:
        return True


def shown_by(writer):
    socket = writer.get_extra_info("ssl_object")
    names = [name for _, name in socket.getpeercert().get("subjectAltName", ())]
    return {"names": names, "protocol": socket.selected_alpn_protocol()}


async def ask(self, q, res):
    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20, **tls_of(q))
    self.r, self.w = reader, writer
    res.ports = (writer.get_extra_info("sockname")[1], self.port)
    if "tls" in q:
        res.shown = shown_by(writer)
    body = (q.get("body") or "").encode()
    headers = q.get("headers") or {}
    headers = list(headers.items()) if isinstance(headers, dict) else [tuple(x) for x in headers]
    names = {k.lower() for k, _ in headers}
    lines = [f"{q.get('method', 'GET')} {q.get('target', q.get('path', '/'))} HTTP/{q.get('version', '1.1')}"]
    if q.get("host") is not None and "host" not in names:
        lines.append(f"Host: {q['host']}")
    lines += [f"{k}: {v}" for k, v in headers]
    if body and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    writer.write(head if q.get("wait") else head + body)
    await writer.drain()
    if q.get("half"):
        writer.write_eof()
    res.interim = []
    while True:
        status, fields = await read_head(reader)
        if not 100 <= status < 200 or status == 101:
            break
        res.interim.append((status, fields))
        if status == 100 and q.get("wait"):
            writer.write(body)
    res.headers, res.http = fields, "1.1"
    await read_body(reader, res, q, status)
    try:
        res.closes = await asyncio.wait_for(reader.read(1), 0.5) == b""
    except asyncio.TimeoutError:
        res.closes = False
    except ConnectionResetError:
        res.closes = True
    res.status = status
    self.close()


def tls_of(q):
    if "tls" not in q:
        return {}
    context = ssl.create_default_context(cafile=runner.CERTS + "/ca.crt")
    context.check_hostname = False
    if q["tls"].get("alpn"):
        context.set_alpn_protocols(q["tls"]["alpn"])
    if q["tls"].get("cert"):
        context.load_cert_chain(f"{runner.CERTS}/{q['tls']['cert']}.crt", f"{runner.CERTS}/{q['tls']['cert']}.key")
    return {"ssl": context, "server_hostname": q["tls"].get("sni") or "127.0.0.1"}


async def read_head(reader):
    line = await reader.readline()
    if not line:
        raise EOFError
    return int(line.split()[1]), await read_fields(reader)


async def read_fields(reader):
    fields = []
    while True:
        line = await reader.readline()
        if line in (b"\r\n", b""):
            return fields
        name, value = line.decode("latin-1").split(":", 1)
        fields.append((name.strip(), value.strip()))


async def read_body(reader, res, q, status):
    low = {k.lower(): v for k, v in res.headers}
    if q.get("method") == "HEAD" or status in (204, 304):
        return
    if low.get("transfer-encoding") == "chunked":
        while True:
            size = int((await reader.readline()).split(b";")[0], 16)
            if size == 0:
                res.trailers = await read_fields(reader)
                return
            res.body += await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in low:
        res.body = await reader.readexactly(int(low["content-length"]))
    else:
        res.body = await reader.read()


def named(fields, names):
    return {n: [v for k, v in fields if k.lower() == n] for n in names}


def seen(case, st, results):
    check = st["check"]
    theirs = {k: v for k, v in check.items() if k not in OURS}
    out = plain_seen(case, {**st, "check": theirs}, results)
    first = results[0]
    if case.services.get("gateway"):
        # Its ports are those of its rules, wherever they were opened.
        shown = out.get("response_headers", {})
        out.update({"response_headers": {k: re.sub(r":<(\d+)>", r":\1", v) if isinstance(v, str) else v for k, v in shown.items()}} if shown else {})
    if "interim" in check:
        out["interim"] = [{"status": status, **named(fields, check["interim"])} for status, fields in getattr(first, "interim", [])]
    if "trailers" in check:
        out["trailers"] = named(first.trailers, check["trailers"])
    if "closes" in check:
        out["closes"] = getattr(first, "closes", None)
    if "asked" in check:
        out["asked"] = [line.lower() for line in json.loads((first.echo or {}).get("instance") or "[]")]
    if "proxied" in check:
        echo = first.echo or {}
        header = next((v for k, v in echo.get("headers") or [] if k.lower() == "x-proxied"), echo.get("instance"))
        for port, word in zip(getattr(first, "ports", ()), ("<caller>", "<dialled>")):
            header = re.sub(rf" {port}\b", f" {word}", header or "")
        out["proxied"] = header
    if "shown" in check:
        out["shown"] = getattr(first, "shown", None)
    if "told" in check:
        headers = (first.echo or {}).get("headers") or []
        said = ",".join(v for k, v in headers if k.lower() == "x-forwarded-client-cert")
        out["told"] = re.findall(r"(?:^|[;,])([A-Za-z]+)=", re.sub(r'"[^"]*"', "", said))
    if "text" in check:
        out["text"] = first.body.decode("latin-1")
    return out


client.Http1._do, runner.seen, client.tcp_exchange = do, seen, exchange
