"""How long until nanoGPT's CPU result, and what is reached in nanoGPT's time: two claims against its README's CPU command.

    python benchmarks/against_nanogpt.py --nanogpt PATH [--repeats 5] [--minutes 0.06] [--only first]

PATH is a checkout of nanoGPT; nothing of it is imported here: its commands run as its README has them, by this Python. Each repeat is that
command, then `gptloom train shakespeare` with the short budget, then with the time that nanoGPT has just taken; everything counts, from a
process's start to its end. Losses of all checkpoints are taken alike: the whole validation split in fixed windows of 64 tokens, nanoGPT's
context here, and in windows of 128, which is gptloom's own. Prints one JSON object, raw figures included.
"""

import argparse
import json
import os
import pickle  # the peer's own file, written by its own script a moment ago
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import gptloom
from gptloom.bundle import load
from gptloom.data.batches import evaluation_windows
from gptloom.data.token_files import Tokens
from gptloom.inference.evaluation import evaluate
