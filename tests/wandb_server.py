"""A server of Weights & Biases on this machine, as far as metrics need one; its files too."""

import gzip
import http.server
import json
import struct
import threading

from wandb.proto import wandb_internal_pb2

_BLOCK = 32768  # bytes, of the LevelDB log format that the library writes


class Server:
    """Answers like the real one, and keeps the rows of every run: id -> [row, ...]."""

    def __init__(self):
        self.rows, self.configs, self.ended = {}, {}, {}
        self.refuses = ""  # the operation that gets a 503 for an answer
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self):
        """Goes away: the port then refuses connections."""
        self._server.shutdown()
        self._server.server_close()

    def query(self, name, variables):
        """The data of a GraphQL operation."""
        run = variables.get("name")
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "e", "username": "e", "teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "bucket": self._bucket(run)}}
        if name == "UpsertBucket":
            self.rows.setdefault(run, [])
            if variables.get("config"):
                self.configs[run] = json.loads(variables["config"])
            return {"upsertBucket": {"bucket": self._bucket(run), "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/up"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "i", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, run, sent):
        """Takes what a run streams: rows at an offset, and at the end its exit status."""
        history = sent.get("files", {}).get("wandb-history.jsonl")
        if history:
            rows = self.rows[run]
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if sent.get("complete"):
            self.ended[run] = sent["exitcode"]

    def _bucket(self, run):
        if run not in self.rows:
            return None
        rows = self.rows[run]
        return {
            "id": "i", "name": run, "displayName": run, "sweepName": None,
            "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]",
            "summaryMetrics": json.dumps(rows[-1] if rows else {}), "tags": [], "notes": None,
            "config": json.dumps(self.configs.get(run, {})),
            "wandbConfig": '{"t": 1}',
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
        }  # fmt: skip


def _handler_of(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):  # noqa: N802 the base class names it
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer, status = {}, 200
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName")
                answer = {"data": server.query(name, asked.get("variables") or {})}
                status = 503 if name == server.refuses else 200
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            self._answer(answer, status)

        def do_PUT(self):  # noqa: N802
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer({})

        def _answer(self, content, status=200):
            content = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def read_file(path):
    """(run id, rows, exit status) of a run-ID.wandb file, read without the library's own reader.

    Blocks of 32 KiB hold records: crc (4 bytes), length (2), type (1: whole; 2, 3, 4: first,
    middle and last part); the file begins with 7 bytes of its own.
    """
    data, at, part, records = path.read_bytes(), 7, b"", []
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    (run,) = {record.run.run_id for record in records if record.HasField("run")}
    rows = [
        {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
         for item in record.history.item}
        for record in records if record.HasField("history")
    ]  # fmt: skip
    exits = [record.exit.exit_code for record in records if record.HasField("exit")]
    return run, rows, exits[-1] if exits else None
