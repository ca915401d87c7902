"""The command line as a user meets it: real processes, one-line errors, exit code 0 only on success."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpu_kernels import write_glb

COMMANDS = ["simulate", "world", "ui", "render", "distance", "judge", "commitments", "fetch", "backfill", "doctor"]


def gen404(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GEN404_")}
    command = [sys.executable, "-m", "gen404_dagster.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=clean | environment)


def box() -> bytes:
    corners = np.array([[x, y, z] for x in (-0.4, 0.4) for y in (-0.4, 0.4) for z in (-0.4, 0.4)], np.float32)
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = np.array([t for a, b, c, d in faces for t in ((a, b, c), (a, c, d))], np.uint32)
    return write_glb(corners, triangles, base_colour=(0.9, 0.3, 0.1, 1.0), roughness=0.7)


def picture(path: Path, colour: str) -> Path:
    Image.new("RGB", (300, 300), colour).save(path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    done = gen404(command, "--help", COLUMNS="120")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_render_writes_the_preview_and_refuses_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "box.glb").write_bytes(box())
    (tmp_path / "bad.glb").write_bytes(b"not a model")
    done = gen404("render", str(tmp_path / "box.glb"), str(tmp_path / "bad.glb"), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "bad.glb: refused: " in done.stderr
    with Image.open(io.BytesIO((tmp_path / "out" / "box.png").read_bytes())) as preview:
        assert preview.size == (1041, 1041)
    assert not (tmp_path / "out" / "bad.png").exists()


def test_distance_and_judge_print_what_a_round_would_use(tmp_path: Path) -> None:
    (tmp_path / "box.glb").write_bytes(box())
    preview = tmp_path / "box.png"
    assert gen404("render", str(tmp_path / "box.glb"), "-o", str(preview)).returncode == 0
    white = picture(tmp_path / "white.png", "white")
    same = json.loads(gen404("distance", str(preview), str(preview), "--json").stdout)
    assert same["distance"] == 0
    assert same["model"]
    other = json.loads(gen404("distance", str(preview), str(white), "--json").stdout)
    assert 0.1 < other["distance"] <= 2
    view = tmp_path / "prompt.png"
    with Image.open(preview) as grid:
        grid.crop((0, 0, 518, 518)).save(view)
    judged = json.loads(gen404("judge", str(view), str(white), str(preview), "--json").stdout)
    assert judged["winner"] == "right"
    assert judged["left_penalty"] > judged["right_penalty"]
    assert set(judged) == {"winner", "left_penalty", "right_penalty", "issues"}


def test_a_picture_that_is_none_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    done = gen404("distance", str(tmp_path / "a.png"), str(tmp_path / "a.png"))
    assert done.returncode == 1
    assert done.stderr.startswith("gen404: ")
    assert done.stderr.count("\n") == 1


def test_commitments_reads_a_dump_as_a_round_does(tmp_path: Path) -> None:
    hotkeys = ["5" + letter * 47 for letter in "ABCDE"]
    commit, text = "a" * 40, json.dumps({"repo": "own/er", "commit": "a" * 40, "cdn_url": "https://cdn.example.org/x/"})
    raw = text.encode()
    prefix = (len(raw) << 2 | 1).to_bytes(2, "little")
    dump = {
        hotkeys[0]: [[10, text], [11, "[]"], [12, 7]],
        hotkeys[1]: [[11, "0x" + (prefix + raw).hex()]],
        hotkeys[2]: [[12, "0xff"]],
        hotkeys[3]: [[13, "not json"]],
        hotkeys[4]: [[99, text]],
    }
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    done = gen404("commitments", str(tmp_path / "dump.json"), "--from", "5", "--to", "20", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["submissions"]) == hotkeys[:2]
    assert found["submissions"][hotkeys[1]]["cdn_url"] == "https://cdn.example.org/x"
    assert found["submissions"][hotkeys[1]]["commit"] == commit
    assert set(found["refused"]) == set(hotkeys[2:])
    assert "window" in found["refused"][hotkeys[4]]
    assert found["ignored"] == {hotkeys[0]: "block 11: a JSON list, not an object; [12, 7] is no [block, text]"}


def test_commitments_shows_an_address_as_it_is_written(tmp_path: Path) -> None:
    url = "https://cdn.example.org/[red]a[/x]"
    text = json.dumps({"repo": "own/er", "commit": "a" * 40, "cdn_url": url})
    (tmp_path / "dump.json").write_text(json.dumps({"5" + "A" * 47: [[10, text]]}))
    done = gen404("commitments", str(tmp_path / "dump.json"), COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert url in done.stdout


def test_fetch_refuses_a_private_address_and_fetches_it_when_allowed(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"model")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/model.glb"
        refused = gen404("fetch", url, "-o", str(tmp_path / "model.glb"))
        assert refused.returncode == 1
        assert refused.stderr.startswith("gen404: ")
        assert not (tmp_path / "model.glb").exists()
        assert (
            gen404("fetch", url, "-o", str(tmp_path / "model.glb"), GEN404_ALLOW_PRIVATE_NETWORK="true").returncode == 0
        )
        server.shutdown()
    assert (tmp_path / "model.glb").read_bytes() == b"model"


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    done = gen404("doctor", "--json", GEN404_DATA=str(tmp_path))
    assert done.returncode == 1
    parts = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert not parts["state repository"]["good"]
    assert "GEN404_STATE_REPO" in parts["state repository"]["detail"]
    renderer = parts["renderer"]
    assert renderer["good"], renderer["detail"]
    assert "chosen by auto" in renderer["detail"]
    assert re.search(r"within 60 s and 4 GiB a file; self-test [0-9a-f]{64}$", renderer["detail"])
    assert parts["renderer cpu"]["good"]
    assert {"renderer cpu", "renderer gl", "renderer gsplat"} <= set(parts)
    assert not any(finding["needed"] for part, finding in parts.items() if part.startswith("renderer "))
    assert all(finding["detail"] for finding in parts.values())


def test_doctor_says_that_a_forced_backend_is_not_to_be_had(tmp_path: Path) -> None:
    done = gen404("doctor", "--json", GEN404_DATA=str(tmp_path), GEN404_RENDER_BACKEND="abacus")
    parts = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert not parts["renderer"]["good"]
    assert "abacus" in parts["renderer"]["detail"]
    assert parts["renderer cpu"]["good"]


def test_a_wrong_setting_is_named() -> None:
    done = gen404("doctor", GEN404_JUDGE="oracle")
    assert done.returncode == 1
    assert "GEN404_JUDGE" in done.stderr


def test_a_workdir_refuses_another_simulation(tmp_path: Path) -> None:
    arguments = ("simulate", "--miners", "0", "--prompts", "0", "--workdir", str(tmp_path), "--json")
    first = gen404(*arguments)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["rounds"][0]["winner"] == "leader"
    assert gen404(*arguments).stdout == first.stdout
    other = gen404(*arguments, "--seed", "9")
    assert other.returncode == 1
    assert "seed" in other.stderr
    rounds = gen404(*arguments, "--rounds", "2")
    assert rounds.returncode == 1
    assert "--rounds 1" in rounds.stderr
