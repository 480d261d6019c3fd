"""The explorer over HTTP: its answers, what it refuses in words, and the command."""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn

from tinylm.inference import server
from tinylm.inference.explorer.app import build_app
from tinylm.inference.explorer.library import Library


@pytest.fixture(scope="module")
def ask(checkpoint):
    """ask(path, body=None, host=...) -> (status, headers, text), of an explorer of one model."""
    running = uvicorn.Server(uvicorn.Config(build_app(Library([checkpoint])), log_level="critical", lifespan="off"))
    with server.bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()

        def asked(path, body=None, host=f"127.0.0.1:{port}"):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                content = None if body is None else json.dumps(body)
                headers = {"Content-Type": "application/json", "Host": host}
                connection.request("GET" if body is None else "POST", path, content, headers)
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read().decode()

        try:
            yield asked
        finally:
            running.should_exit = True
            thread.join(timeout=60)


def test_the_page_is_served_with_its_own_parts_alone(ask):
    status, headers, text = ask("/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert ask("/main.js")[1].get_content_type() == "text/javascript"


@pytest.mark.parametrize("path", ["tokens", "layers", "lens", "choice", "writing", "history", "rungs"])
@pytest.mark.parametrize("text", ["The cook", "", "x" * 3000, "<script>alert(1)</script>\u202e\x00"])
def test_every_panel_answers(ask, path, text):
    status, _, answer = ask(f"/api/{path}", {"point": 0, "text": text})
    assert status == 200, answer
    json.loads(answer)


def test_the_models_are_listed_with_their_shape(ask):
    (point,) = json.loads(ask("/api/models")[2])["points"]
    assert (point["id"], point["depth"], point["step"], point["run"]) == (0, 2, None, False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"point": 3, "text": "a"}, "no model number 3"),
        ({"point": 0, "text": "a", "top_p": 2}, "top_p must be"),
        ({"point": 0, "text": "a", "temperature": -1}, "temperature must be"),
        ({"point": 0, "text": "a", "position": 9}, "position: wanted"),
        ({"point": 0, "text": "a", "knob": 9}, "knob: "),
        ({"point": 0}, "text: "),
    ],
)
def test_what_cannot_be_shown_is_told(ask, body, words):
    status, _, answer = ask("/api/choice", body)
    assert status == 400
    assert words in json.loads(answer)["error"]


def test_a_rung_is_begun_and_asked_for(ask):
    status, _, begun = ask("/api/rungs/start", {"point": 0, "text": "The cook", "rung": "arrays", "tokens": 2})
    assert status == 200
    number = json.loads(begun)["id"]
    while (told := json.loads(ask("/api/rungs/status", {"id": number})[2]))["state"] == "running":
        time.sleep(0.01)
    assert (told["state"], told["fraction"], told["result"]["tokens"]) == ("done", 1.0, 2)
    assert json.loads(ask("/api/rungs/cancel", {"id": number})[2])["state"] == "done"
    status, _, answer = ask("/api/rungs/status", {"id": number + 1})
    assert status == 400
    assert "another was begun" in json.loads(answer)["error"]


def test_ctrl_c_leaves_nothing_behind(checkpoint):
    command = [sys.executable, "-m", "tinylm.inference", "explore", str(checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as explorer:
        try:
            assert "Ctrl-C ends it" in explorer.stdout.readline()
            explorer.send_signal(signal.SIGINT)
            rest, told = explorer.communicate(timeout=120)
        finally:
            explorer.kill()
    assert (explorer.returncode, rest, told.strip()) == (130, "", "")


def test_another_sites_name_is_refused(ask):
    assert ask("/api/models", host="evil.example")[0] == 400


def test_a_port_that_is_taken_is_told(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "tinylm.inference", "explore", str(checkpoint), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot serve at 127.0.0.1 port {port}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("missing", "words"), [("config.json", "no config.json"), ("tokenizer.json", "copy that of the model there")]
)
def test_a_path_that_is_no_checkpoint_is_told(checkpoint, tmp_path, missing, words):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    command = [sys.executable, "-m", "tinylm.inference", "explore", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
