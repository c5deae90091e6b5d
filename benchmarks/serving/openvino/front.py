"""The process that speaks HTTP: a thread for each connection, and one that hands out what the engine tells."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.serving.openvino.chat import ask_of, chunk, usage_chunk, whole
from benchmarks.serving.openvino.messages import Ask, Cancel, End, Event, Failure, Piece


class Front:
    """Answers of an engine at the other end of ``connection``."""

    def __init__(self, connection: Connection) -> None:
        self.numbers = itertools.count()
        self._connection = connection
        self._sending = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[Event]] = {}
        threading.Thread(target=self._hand_out, daemon=True).start()

    def events(self, ask: Ask) -> Generator[Event]:
        """Up to the end of the answer; closing this earlier cancels it."""
        events = self._answers[ask.number] = queue.SimpleQueue()
        try:
            self._send(ask)
            while True:
                event = events.get()
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            del self._answers[ask.number]
            self._send(Cancel(ask.number))

    def _send(self, message: Ask | Cancel) -> None:
        with self._sending:
            self._connection.send(message)

    def _hand_out(self) -> None:
        while True:
            try:
                event: Event = self._connection.recv()
            except (EOFError, OSError):  # the engine is gone: nobody gets more
                for number, answer in list(self._answers.items()):
                    answer.put(Failure(number, "the engine ended"))
                return
            reader = self._answers.get(event.number)
            if reader is not None:  # else it was given up
                reader.put(event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    front: Front

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the standard error is for what went wrong."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            return self._whole(404, _error(f"there is no {self.path}"))
        try:
            body = json.loads(raw)
            ask = ask_of(next(self.front.numbers), body)
        except (KeyError, TypeError, ValueError, OSError) as error:
            return self._whole(400, _error(f"{type(error).__name__}: {error}"))
        model, events = str(body.get("model", "")), self.front.events(ask)
        try:
            first = next(events)
            if isinstance(first, Failure):
                self._whole(400, _error(first.message))
            elif body.get("stream"):
                self._stream(first, events, model, bool((body.get("stream_options") or {}).get("include_usage")))
            else:
                self._joined(first, events, model)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            events.close()

    def _joined(self, event: Event, events: Iterator[Event], model: str) -> None:
        text = ""
        while isinstance(event, Piece):
            text += event.text
            event = next(events)
        self._whole(*((200, whole(event, model, text)) if isinstance(event, End) else (500, _error(event.message))))

    def _stream(self, event: Event, events: Iterator[Event], model: str, with_usage: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while isinstance(event, Piece):
            self._line(json.dumps(chunk(event.number, model, event.text)))
            event = next(events)
        if isinstance(event, End):
            self._line(json.dumps(chunk(event.number, model, "", event.reason)))
            if with_usage:
                self._line(json.dumps(usage_chunk(event, model)))
        else:
            self._line(json.dumps(_error(event.message)))
        self._line("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _line(self, data: str) -> None:
        if _gone(self.connection):
            raise BrokenPipeError
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _gone(connection: socket.socket) -> bool:
    """A client that closed its end; without this the first write after it succeeds."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # all clients may come at once


def http_server(front: Front, host: str, port: int) -> ThreadingHTTPServer:
    """At ``port``, 0 for a free one; not serving yet."""
    return _Server((host, port), type("Handler", (_Handler,), {"front": front}))
