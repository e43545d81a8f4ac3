"""Entry point of `dfqs`: the table of verbs, and the one place where errors become messages and exit codes.

A verb's module is imported only when that verb is asked for, so that `dfqs --help` costs no more than Python and typer.
"""

import contextlib
import importlib
import inspect
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer

from dfqs import __version__
from dfqs.cli.output import complain, complain_json, note, print_plain
from dfqs.cli.signals import WORDS, exit_code, let_signals_go, received, take_signals
from dfqs.errors import DfqsError

VERBS: dict[str, str] = {
    "demo": "The whole flow on the embedded model, offline after the first fetch; ends with a report.",
    "pull": "Fetch a model's shards from the Hub straight into one file.",
    "merge": "Make one file of a model's shards.",
    "split": "Make shards of one file.",
    "inspect": "Show what a model is: parameters, experts, bits per weight by role, class and tier.",
    "verify": "Check a model's structure and hashes, or prove it equal to its shards.",
    "manifest": "Write down a model's hashes and where it came from.",
    "repair": "Make a correct file of a damaged one, where its bytes are all there.",
    "find": "Find GGUF files on this machine, and copies that could be freed.",
    "quantize": "Make an artifact of a deployment class out of a model.",
    "ladder": "Make several classes of a model, and measure each against it.",
    "imatrix": "Measure which weights matter, per expert, for quantizing.",
    "perplexity": "Measure per-token loss, and divergence from a reference.",
    "plan": "Say whether a model fits, here or elsewhere, and with which settings.",
    "forecast": "Say how fast a model will be on this machine, by context and against memory.",
    "tune": "Find the settings that make a model fastest on this machine, and keep them.",
    "runtime": "Show which llama.cpp is used, and install or choose another build.",
    "run": "Answer one prompt, with tokens per second.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve a model over HTTP (OpenAI-compatible, with a web page) on this machine.",
    "eval": "Measure the five DFQS metrics.",
    "route": "Capture, check and compare expert routing.",
    "report": "Render an evaluation's report.",
    "compare": "Compare evaluations question by question, or say why they do not compare.",
    "conform": "Hold a model against the specification, clause by clause.",
    "card": "Write a model card for the Hub, of measured values alone.",
