"""A W&B server that keeps what it is sent, and a model whose steps have scores."""

import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lightning.pytorch as pl
import torch

from tests.cli.toy import Toy
from zoo.callbacks.pictures import log_picture, new_figure
from zoo.losses import InfoNCE


class StandIn(ThreadingHTTPServer):
    """Answers what wandb 0.31 asks when it uploads runs, tables and reports; an unknown question gets a 400.

    Attributes:
        asked: variables of the GraphQL operations by name.
        history: rows of each run's history by its name.
        files: uploaded files by path, of all runs.
        refused: names of runs that are not taken.
        reports: reports by identifier.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: dict[str, list[dict]] = defaultdict(list)
        self.history: dict[str, list[dict]] = defaultdict(list)
        self.files: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self.reports: dict[str, dict] = {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """wandb hangs up when it is done."""

    def run(self, name: str) -> dict:
        """What the server knows of a run: the last value of each field that was sent."""
        sent = [v for v in self.asked["UpsertBucket"] if v["name"] == name]
        return {key: value for variables in sent for key, value in variables.items() if value is not None}

    def answer(self, name: str, v: dict) -> dict:
        someone = {"id": "1", "name": v.get("entity") or v.get("entityName") or "someone"}
        project = {"id": "1", "internalId": "1", "name": v.get("project") or v.get("projectName")}
        answers = {
            "Viewer": {"viewer": {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}",
                                  "teams": {"edges": []}}},
            "GetDefaultEntity": {"viewer": {"id": "1", "entity": "someone"}},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": {"entity": {"organization": None}},
            "ArtifactType": {"project": None},
            "UpsertBucket": {"upsertBucket": {"inserted": True, "bucket": {
                "id": "1", "name": v.get("name"), "displayName": v.get("displayName"), "description": "",
                "config": "{}", "sweepName": None, "historyLineCount": 0, "project": {**project, "entity": someone}}}},
            "CreateRunFiles": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": [
                {"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in v.get("files", [])]}},
            "CreateArtifact": {"createArtifact": {"artifact": {
                "id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}}},
            "ProjectInternalId": {"project": project},
            "GetProjects": {"models": {
                "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
                "edges": [{"node": {"__typename": "Project", "id": "1", "name": name, "entityName": "someone",
                                    "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}}
                          for name in {v.get("project") for v in self.asked["UpsertBucket"]}]}},
            "ProjectViews": {"project": {"allViews": {
                "edges": [{"node": report, "cursor": ""} for report in self.reports.values()],
                "pageInfo": {"endCursor": None, "hasNextPage": False}}}},
        }  # fmt: skip
        if name == "upsertView":
            kept = self.keep_report(v["id"] or f"view{len(self.reports)}", v)
            place = {"id": "1", "name": v["projectName"], "entityName": v["entityName"]}
            return {"upsertView": {"inserted": not v["id"], "view": {**kept, "project": place}}}
        return answers[name]

    def keep_report(self, number: str, fields: dict) -> dict:
        own = {key: fields.get(key, "") for key in ("type", "name", "displayName", "description", "spec")}
        dates = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00Z")
        user = {"username": "someone", "photoUrl": "", "email": ""}
        self.reports[number] = {"id": number, **own, **dates, "user": user}
        return {key: value for key, value in self.reports[number].items() if key != "user"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *_):
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, content = 200, {}
        if self.path == "/graphql":
            question = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", question["query"])[1]  # type: ignore[index]
            variables = question.get("variables") or {}
            self.server.asked[name].append(variables)
            try:
                content = {"data": self.server.answer(name, variables)}
            except KeyError:
                status, content = 400, {"errors": [{"message": f"unknown: {name}"}]}
            if name == "UpsertBucket" and variables["name"] in self.server.refused:
                status, content = 403, {"errors": [{"message": "permission denied"}]}
        elif found := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history[found[1]] += map(json.loads, lines)
        elif self.path.startswith("/upload/"):
            self.server.files[self.path.removeprefix("/upload/")] = body
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815


class Scored(Toy):
    """A toy with the outputs that the callbacks on scores read."""

    def __init__(self, bonus: float = 0.0):
        super().__init__(bonus)
        self.loss = InfoNCE()

    def training_step(self, batch, batch_idx):
        query = torch.nn.functional.normalize(self.layer(batch.anchor / 32), dim=1)
        scores = query @ query.T
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "positives": scores[:, :1], "negatives": scores[:, 1:], "mask": None, "query": query}


class Panel(pl.Callback):
    """A picture of a test."""

    def on_test_end(self, trainer, pl_module) -> None:
        figure = new_figure(1, 1)
        path = Path(trainer.default_root_dir) / "panel.png"
        figure.savefig(path)
        log_picture(trainer, "test/panel", path)
