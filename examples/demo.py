"""The whole pipeline on the example: train, export, measure, register, build, serve, ask, stop.

make demo
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RECIPE = ROOT / "examples" / "support_tickets" / "recipe.yaml"
MESSAGES = (
    "Hello, my parcel was supposed to be here on Tuesday and tracking has not moved since.",
    "the blender leaks from the bottom and now it won't switch on any more",
    "Why is there a second charge of 9.99 on my card this month?",
)
START_SECONDS = 120


def main(run_folder: Path) -> None:
    """Run every stage with the command that a user would give."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    step("train, export, evaluate and register")
    command("whetstone", "run", RECIPE, "--output_dir", run_folder, "--overwrite")

    version = json.loads((run_folder / "package" / "manifest.json").read_text("utf-8"))["version"]
    step(f"build the bento of version {version}")
    tag = build_bento(version)

    step(f"serve {tag}")
    port = free_port()
    server = subprocess.Popen(
        [BIN / "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(server, port)
        for message, answer in zip(MESSAGES, classify(port), strict=True):
            print(f"  {answer['label']:<16} {answer['score']:.3f}  {message}")
    finally:
        server.terminate()
        server.wait(timeout=60)

    print("\nThe server is stopped. To keep one running:")
    # An environment of one's own may lie anywhere.
    programs = BIN.relative_to(ROOT) if BIN.is_relative_to(ROOT) else BIN
    print(f"  {programs}/bentoml serve {tag}")
    print("and ask it:")
    print("  curl -s localhost:3000/classify -H 'Content-Type: application/json' \\")
    print("""    -d '{"input": "where is my parcel?"}'""")


def step(text: str) -> None:
    """Print which stage begins."""
    print(f"\n== {text}", flush=True)


def command(*words: str | Path) -> str:
    """Run one command of this environment to its end; stop the demo if it fails. The output."""
    name, *rest = words
    capture = name == "bentoml"
    done = subprocess.run(
        [BIN / name, *rest], cwd=ROOT, check=False, text=True, capture_output=capture
    )
    if done.returncode:
        print(done.stderr or "", file=sys.stderr)
        sys.exit(f"demo: `{name} {rest[0]}` failed with exit status {done.returncode}")
    return done.stdout or ""


def build_bento(version: str) -> str:
    """Build a bento with exactly this model version; its tag."""
    argument = f"model=text-classifier:{version}"
    return (
        command("bentoml", "build", "--output", "tag", "--arg", argument).strip().split(":", 1)[1]
    )


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until /readyz answers 200."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"demo: the server ended with exit status {server.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"demo: the server was not ready after {START_SECONDS} seconds")


def classify(port: int) -> list[dict[str, object]]:
    """Send the three messages in one request; the answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/classify",
        data=json.dumps({"input": MESSAGES}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        data: list[dict[str, object]] = json.load(answer)["data"]
        return data


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
