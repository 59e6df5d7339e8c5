"""A small service: says its name, its version and the machine it runs on. Usage: service.py NAME VERSION PORT."""

import http.server
import socket
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave at once: the second of two small writes would wait 40 ms for the first one's ACK.
    wbufsize = -1

    def do_GET(self):
        body = f"{sys.argv[1]} {sys.argv[2]} on {socket.gethostname()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    # Room for all who connect at once, where five is usual: others would be heard again after a second.
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
