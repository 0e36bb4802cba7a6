"""The same faults on a checkout of nanoGPT (github.com/karpathy/nanoGPT), to compare its score with ours.

Only its unchanged train.py and model.py run.
"""

import contextlib
import importlib.util
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from faults.damage import damage
from faults.disk import make_room
from faults.table import Row, Tally
from faults.trials import kill, wait_for

EVERY = 1
"""Steps between saves."""

COMMON = "--device=cpu --dtype=float32 --compile=False --always_save_checkpoint=True --eval_iters=1"
COMMON += " --gradient_accumulation_steps=1 --batch_size=1 --block_size=8"
COMMON += f" --n_layer=1 --n_head=4 --warmup_iters=0 --eval_interval={EVERY} --dataset=gptloom-faults"


def rows(quick: bool, checkout: Path) -> Iterator[Row]:
    """Small runs on random tokens; the checkout's text is not needed."""
    peer = _Peer(checkout.resolve())
    try:
        yield peer.kills(3 if quick else 40)
        yield peer.damaged(30 if quick else 1000)
        yield peer.full_disk(1 if quick else 5)
        yield peer.terminated(1 if quick else 8)
        yield peer.resumed(1 if quick else 3)
    finally:
        peer.close()


class _Peer:
    """nanoGPT, started as in its README."""

    def __init__(self, checkout: Path) -> None:
        self.checkout, self.chance = checkout, random.Random(10)
        self.data = checkout / "data" / "gptloom-faults"
        self.data.mkdir(parents=True, exist_ok=True)
        for name in ("train.bin", "val.bin"):
            (self.data / name).write_bytes(
                b"".join(bytes([self.chance.randrange(256), 0]) for _ in range(10_000))
            )  # ids of two bytes
        self.folder = Path(tempfile.mkdtemp())
        self.log = self.folder / "log"

    def close(self) -> None:
        """Restore the checkout."""
        shutil.rmtree(self.data)
        shutil.rmtree(self.folder)

    def _start(self, out: Path, *, width: int, steps: int) -> subprocess.Popen[bytes]:
        begin = "resume" if (out / "ckpt.pt").exists() else "scratch"
        words = [
            *COMMON.split(),
            f"--n_embd={width}",
            f"--max_iters={steps}",
            f"--out_dir={out}",
            f"--init_from={begin}",
        ]
        with self.log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-u", "train.py", *words], cwd=self.checkout, stdout=file, stderr=file
            )

    def _last(self) -> int:
        return max(
            map(int, re.findall(r"^iter (\d+):", self.log.read_text(errors="replace"), re.MULTILINE)), default=-1
        )

    def _load(self, out: Path) -> dict[str, Any] | None:
        try:
            return torch.load(out / "ckpt.pt", map_location="cpu")
        except Exception:  # noqa: BLE001  # whatever it raises, it is lost
            return None

    def kills(self, tries: int) -> Row:
        """Kill it at random moments; it is halted first, to check its open files."""
        tally, inside, out = Tally("kill -9"), 0, self.folder / "kills"
        while tally.tries < tries:
            path = out / "ckpt.pt"
            before = path.stat().st_mtime_ns if path.exists() else 0
            process = self._start(out, width=64, steps=10**6)
            wait_for(lambda before=before, path=path: path.exists() and path.stat().st_mtime_ns > before, process)
            time.sleep(self.chance.uniform(0.0, 1.0))
            process.send_signal(19)
            time.sleep(0.01)
            inside += any(_target(entry).endswith("ckpt.pt") for entry in Path(f"/proc/{process.pid}/fd").iterdir())
            kill(process)
            state = self._load(out)
            problem = "ckpt.pt does not load: the run is lost" if state is None else ""
            tally.add(problem or ("too much is lost" if state["iter_num"] < self._last() - EVERY else ""))
            if state is None:
                path.unlink(missing_ok=True)
        return tally.row(f"{inside} inside a write of 39 MB")

    def damaged(self, tries: int) -> Row:
        """Load its file as train.py does: torch.load, and load_state_dict of the model and the optimizer."""
        tally, kinds, out = Tally("damaged checkpoint"), Counter(), self.folder / "damaged"
        self._start(out, width=8, steps=EVERY).wait()
        gpt = _module(self.checkout / "model.py")
        whole = (out / "ckpt.pt").read_bytes()
        for _ in range(tries):
            (out / "ckpt.pt").write_bytes(whole)
            kind = damage(out / "ckpt.pt", self.chance)
            kinds[kind] += 1
            tally.add("" if self._notices(gpt, out) else f"nothing is noticed ({kind})")
        return tally.row(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))

    def _notices(self, gpt: ModuleType, out: Path) -> bool:
        state = self._load(out)
        if state is None:
            return True
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model = gpt.GPT(gpt.GPTConfig(**state["model_args"]))
                model.load_state_dict(state["model"])
                model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu").load_state_dict(state["optimizer"])
        except Exception:  # noqa: BLE001
            return True
        return False

    def full_disk(self, tries: int) -> Row:
        """Another program fills all free space."""
        tally = Tally("full disk")
        for _ in range(tries):
            with make_room(self.folder, mounts=True, size=16 << 20) as room:
                out, done = room.folder / "out", threading.Event()
                process = self._start(out, width=8, steps=10**6)
                wait_for(lambda out=out: (out / "ckpt.pt").exists() and self._last() >= EVERY, process)
                eater = threading.Thread(target=_eat, args=(room.folder / "eaten", done))
                eater.start()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    kill(process)
                done.set()
                eater.join()
                tally.add(
                    "" if self._load(out) else f"exit {process.returncode}, and ckpt.pt does not load: the run is lost"
                )
        return tally.row()

    def terminated(self, tries: int) -> Row:
        """SIGTERM at a random step."""
        tally, lost = Tally("SIGTERM"), 0
        for number in range(tries):
            out = self.folder / f"terminated-{number}"
            process = self._start(out, width=8, steps=10**6)
            step = self.chance.randint(EVERY + 1, 60)
            wait_for(lambda step=step: self._last() >= step, process)
            process.terminate()
            process.wait()
            state = self._load(out)
            lost = max(lost, self._last() - (state["iter_num"] if state else 0))
            tally.add("" if state and state["iter_num"] > self._last() else "the state is not saved")
        return tally.row(f"at most {lost} steps lost, at a save every {EVERY}")

    def resumed(self, tries: int) -> Row:
        """12 steps, compared with 6 steps and 6 more."""
        tally = Tally("interrupted and resumed")
        for number in range(tries):
            straight, parts = self.folder / f"straight-{number}", self.folder / f"parts-{number}"
            for out, steps in ((straight, 12), (parts, 6), (parts, 12)):
                self._start(out, width=8, steps=steps).wait()
            one, other = self._load(straight), self._load(parts)
            equal = (
                one
                and other
                and all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
            )
            tally.add("" if equal else "the weights differ from the uninterrupted run's")
        return tally.row("stopped by itself at a save")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115
    except OSError:
        return ""


def _eat(path: Path, done: threading.Event) -> None:
    """Fill a file system, and space that becomes free, until it is stopped."""
    with path.open("ab", buffering=0) as file:
        while not done.is_set():
            try:
                file.write(bytes(1 << 16))
            except OSError:
                time.sleep(0.0002)


def _module(path: Path) -> ModuleType:
    """Import a Python file as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
