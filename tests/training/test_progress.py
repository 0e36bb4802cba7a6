"""The display during training."""

import io

import pytest
from rich.console import Console

from gptloom.generate.task import Score
from gptloom.training.callbacks import Request, View
from gptloom.training.progress import Display, LiveDisplay, duration


def view(step, *, logging=True, best_step=None, seconds=10.0):
    loss = 2.0 if logging else None
    return View(step, 100, 1e-3, step * 1024, seconds, loss, logging, None if best_step is None else 1.5, best_step)


def test_plain_lines_tell_loss_rate_speed_and_time_left():
    lines = []
    display = Display(lines.append)
    display.on_start(view(0, logging=False, seconds=0.0))
    assert display.after_step(view(50)) == Request.NOTHING
    assert lines == ["step 50 of 100  training loss 2.0000  lr 1.00e-03  5,120 tokens/s  10 s left"]
    display.after_step(view(51))
    assert len(lines) == 1  # ten lines per run, not a hundred
    display.after_evaluation(view(50, best_step=50), Score(150.0, 100, 100))
    display.after_evaluation(view(60, best_step=50), Score(160.0, 100, 100))
    display.after_step(view(61, seconds=100.0))  # the 90 s of an evaluation are not counted as training
    assert "5,120 tokens/s" in display.line(view(61, seconds=100.0))
    display.after_step(view(70, seconds=101.0))
    assert "9,216 tokens/s" in display.line(view(70, seconds=101.0))  # 9 steps of 1,024 tokens in the second since
    display.peak = 36_864.0
    assert "9,216 tokens/s (25% MFU)" in display.line(view(70, seconds=101.0))
    assert lines[1] == "step 50: validation loss 1.5000 (2.164 bits per byte), the best so far"
    assert lines[2] == "step 60: validation loss 1.6000 (2.308 bits per byte); the best is 1.5000 at step 50"


def test_the_live_panel_shows_the_same_and_the_latest_sample():
    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=120, height=30))
    display.on_start(view(0, logging=False, seconds=0.0))
    display.after_step(view(50))
    display.show_sample("ROMEO:\n[bold]what is this[/bold]")  # a text is never read as markup
    display.on_end(view(50))
    shown = screen.getvalue()
    assert (
        "training loss 2.0000" in shown
        and "50 %" in shown
        and "[bold]what is this[/bold]" in shown
        and "latest sample" in shown
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min"), (61_200.0, "17 h 00 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
